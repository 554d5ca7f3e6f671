"""What `language.py` trains and asks: words, a small GPT-2, its job, and the contenders' rankings of the texts."""

import gzip
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gradindex
from gradindex.influence import CheckpointRecorder
from gradindex.relevance.pooled import Pooled
from gradindex.search.lexical import Bm25

PAD, START, END, UNKNOWN = range(4)
IGNORED = -100
LENGTH = 24
_WORD = re.compile(r"[\w+]+|[^\w\s]")


def words(text: str) -> list[str]:
    """Return a text's words and punctuation, lower case: the model's tokens."""
    return _WORD.findall(text.lower())


def debian() -> tuple[list[str], list[str]]:
    """Return the one-line descriptions of Debian packages and their sections."""
    path = Path(os.environ.get("GRADINDEX_DATA", "")) / "debian_sections.tsv.gz"
    if not path.is_file():
        raise SystemExit("Set GRADINDEX_DATA to the folder that holds debian_sections.tsv.gz.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [row[2] for row in rows], [row[0] for row in rows]


@dataclass(frozen=True)
class Texts:
    """Texts as token numbers: `tokens` (n, t), `mask` (n, t) of those that are there, `labels` (n, t)."""

    tokens: np.ndarray
    mask: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def x(self) -> dict[str, np.ndarray]:
        """What the model takes."""
        return {"input_ids": self.tokens, "attention_mask": self.mask}

    def take(self, rows: np.ndarray) -> "Texts":
        return Texts(self.tokens[rows], self.mask[rows], self.labels[rows])


class Vocabulary:
    """The words that occur at least `least` times in some texts, and others that are named."""

    def __init__(self, texts: Sequence[str], length: int, least: int = 3, others: Sequence[str] = ()) -> None:
        counts = Counter(word for text in texts for word in words(text))
        known = dict.fromkeys([*(word for word, n in counts.most_common() if n >= least), *others])
        self.names = ["[pad]", "[start]", "[end]", "[unknown]", *known]
        self._number = {name: i for i, name in enumerate(self.names)}
        self.length = length

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, word: str) -> bool:
        return word in self._number

    def numbers(self, text: str) -> list[int]:
        """Return a text's tokens: its words, or, of one that is not known, its parts of three letters if these are."""
        found = []
        for word in words(text):
            parts = [word] if word in self._number else [word[i : i + 3] for i in range(0, len(word), 3)]
            known = all(part in self._number for part in parts)
            found += [self._number[part] for part in parts] if known else [UNKNOWN]
        return found

    def encode(self, prompts: Sequence[str], answers: Sequence[str | None] | None = None, ends: bool = True) -> Texts:
        """Return texts, or prompts with answers, whose tokens alone have labels; `ends`: whether the end has one.

        An answer of None: the prompt's tokens have labels.
        """
        shape = len(prompts), self.length
        tokens, labels = np.full(shape, PAD, np.int64), np.full(shape, IGNORED, np.int64)
        for row, prompt in enumerate(prompts):
            first = [START, *self.numbers(prompt)]
            answer = None if answers is None else answers[row]
            rest = [] if answer is None else self.numbers(answer)
            line = [*first, *rest, *([END] if ends else [])][: self.length]
            begin = 1 if answer is None else len(first)
            tokens[row, : len(line)] = line
            labels[row, begin : len(line)] = line[begin:]
        return Texts(tokens, (tokens != PAD).astype(np.int64), labels)


def loss_fn(output: Any, y: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log probability of the tokens that have labels, each predicted from those before it."""
    return F.cross_entropy(output.logits[:, :-1].transpose(1, 2), y[:, 1:], ignore_index=IGNORED)


@dataclass(frozen=True)
class Shape:
    """The size of a model and how long it is trained."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    epochs: int = 12
    rate: float = 2e-3
    batch: int = 32
    dropout: float = 0.0


def new_model(vocabulary: Vocabulary, shape: Shape, seed: int) -> GPT2LMHeadModel:
    """Return a GPT-2 with random weights."""
    torch.manual_seed(seed)
    sizes = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads, "n_positions": vocabulary.length}
    plain = {"bos_token_id": START, "eos_token_id": END, "use_cache": False, "attn_implementation": "eager"}
    plain |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), shape.dropout)  # with it words are not copied
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), **sizes, **plain))


def batches(texts: Texts, size: int, random: np.random.Generator) -> list[np.ndarray]:
    """Return the rows of an epoch's batches in a random order, each of texts of about the same length."""
    lengths = texts.mask.sum(axis=1)
    found = []
    for some in np.array_split(random.permutation(len(texts)), max(1, len(texts) // (16 * size))):
        some = some[np.argsort(lengths[some], kind="stable")]
        found += np.array_split(some, -(-len(some) // size))
    return [found[i] for i in random.permutation(len(found))]


def train(
    model: GPT2LMHeadModel,
    texts: Texts | Iterator[Texts],
    shape: Shape,
    seed: int,
    steps: int | None = None,
    record_at: Sequence[float] = (),
) -> CheckpointRecorder:
    """Train by AdamW with a linearly falling rate, and record checkpoints at shares of the steps.

    For `steps` steps, or for `shape.epochs` of the texts; these may be others in every epoch.
    """
    random = np.random.default_rng(seed)
    several = repeat(texts) if isinstance(texts, Texts) else texts
    now = next(several)
    total = steps or shape.epochs * -(-len(now) // shape.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.05 * total)) * max(0.0, 1 - step / total)
    )
    recorder, at = CheckpointRecorder(), {max(1, round(share * total)) for share in record_at}
    model.train()
    order: list[np.ndarray] = []
    for step in range(total):
        if not order:
            now = next(several) if step else now
            order = batches(now, shape.batch, random)
        batch = now.take(order.pop())
        optimizer.zero_grad()
        used = int(batch.mask.sum(axis=1).max())
        x = {name: torch.from_numpy(part[:, :used]) for name, part in batch.x.items()}
        wanted = torch.from_numpy(batch.labels[:, 1:used])
        there = wanted != IGNORED
        hidden = model.transformer(**x).last_hidden_state[:, :-1]
        F.cross_entropy(model.lm_head(hidden[there]), wanted[there]).backward()  # loss_fn, without words not asked for
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step + 1 in at:
            recorder.record(model, 1.0)
    model.eval()
    return recorder


@torch.no_grad()
def mean_loss(model: GPT2LMHeadModel, texts: Texts) -> float:
    """Return the mean loss of a token of some texts."""
    total, count = 0.0, 0
    for rows in np.array_split(np.arange(len(texts)), max(1, len(texts) // 128)):
        batch = texts.take(rows)
        logits = model(**{name: torch.from_numpy(part) for name, part in batch.x.items()}).logits[:, :-1]
        losses = F.cross_entropy(
            logits.transpose(1, 2), torch.from_numpy(batch.labels[:, 1:]), ignore_index=IGNORED, reduction="sum"
        )
        total, count = total + float(losses), count + int((batch.labels[:, 1:] != IGNORED).sum())
    return total / count


@torch.no_grad()
def share_answered(model: GPT2LMHeadModel, asked: Texts) -> float:
    """Return how often the model's most likely token is the label, of the tokens that have one."""
    found = model(**{name: torch.from_numpy(part) for name, part in asked.x.items()}).logits[:, :-1].argmax(-1).numpy()
    there = asked.labels[:, 1:] != IGNORED
    return float((found == asked.labels[:, 1:])[there].mean())


@dataclass
class Asked:
    """A trained model with its training texts: what the contenders rank the texts by."""

    model: GPT2LMHeadModel
    train: Texts
    train_texts: Sequence[str]
    recorder: CheckpointRecorder | None = None
    damping: float | None = None
    indexes: dict[bool, gradindex.Index] = field(default_factory=dict, repr=False)

    def bm25(self, texts: Sequence[str]) -> np.ndarray:
        scores = Bm25(self.train_texts)
        return np.stack([scores(text) for text in texts])

    def hidden(self, queries: Texts) -> np.ndarray:
        reader = Pooled(gradindex.Job(self.model, loss_fn, (self.train.x, self.train.labels)))
        rows = reader(self.train.x, self.train.labels)
        return reader(queries.x, queries.labels) @ rows.T

    def index(self, along: bool = False) -> gradindex.Index:
        """Return an index of the texts, whitened; `along` training, or of the trained model alone."""
        if along not in self.indexes:
            folder = tempfile.mkdtemp(prefix="gradindex-language-")
            job = gradindex.Job(
                self.model,
                loss_fn,
                (self.train.x, self.train.labels),
                task="regression",
                checkpoints=self.recorder.checkpoints if along and self.recorder else None,
            )
            self.indexes[along] = gradindex.build(job, f"{folder}/i", progress=False)
            self.indexes[along].whiten(damping=self.damping, progress=False)
        return self.indexes[along]

    def kernel(self, name: str, queries: Texts, along: bool = False) -> np.ndarray:
        """Return the scores (m, n) of one of the package's kernels."""
        return self.index(along).scores(queries.x, queries.labels, kernel=name)


def share_found(scores: np.ndarray, wanted: Sequence[Sequence[int]], first: int = 10) -> float:
    """Return the share of each query's wanted texts among its first ones, in the mean."""
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :first]
    return float(np.mean([np.isin(some, line).mean() for some, line in zip(wanted, nearest, strict=True)]))


def share_of_first(scores: np.ndarray, wanted: np.ndarray, first: int = 10) -> float:
    """Return the share of the first texts of each query that are `wanted` (n,) bool, in the mean."""
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :first]
    return float(wanted[nearest].mean())
