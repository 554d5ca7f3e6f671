"""Choose the training texts that a topic wants, and see whether training on them was worth it.

A small causal language model (GPT-2's architecture, random weights) is trained on half of the one-line descriptions of
Debian packages (``debian_sections.tsv.gz`` in the folder named by ``GRADINDEX_DATA``; without it, random words of three
topics). From the other half, the pool, 5 % are chosen for a validation set of 64 texts of one section: by kernels of
gradients in one scan of an index, by similarity of hidden vectors, by BM25, and at random. A copy of the model is
trained on each choice for the same number of steps, and on the whole pool; the script prints the loss on held-out texts
of the section and what share of each choice is of it, whatever comes out. Nothing is downloaded. Needs ``pip install
transformers bm25s``; without bm25s that line is left out.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from data import add_load
from matplotlib.figure import Figure
from saved import there, trained
from texts import read
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import gradindex
from gradindex import hugging_face
from gradindex.search.lexical import Bm25

LENGTH, IGNORED = 20, -100
SHARE, VALIDATION = 0.05, 64


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words and of the pieces of rare ones."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=["[PAD]", "[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return what the model takes, token numbers and mask (n, tokens), and labels: −100 where there is no token."""
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
    x = {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    return x, np.where(x["attention_mask"] == 1, x["input_ids"], IGNORED)


def loss_fn(output, y: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the tokens that have labels, each predicted from those before it."""
    return F.cross_entropy(output.logits[:, :-1].transpose(1, 2), y[:, 1:], ignore_index=IGNORED)


def train(model: nn.Module, x: dict[str, np.ndarray], y: np.ndarray, steps: int, rate: float, seed: int) -> nn.Module:
    """Train for some steps of 16 texts, by AdamW with a falling rate."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)  # of dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    model.train()
    left = np.empty(0, np.int64)
    for _ in range(steps):
        if len(left) < 16:
            left = np.concatenate([left, random.permutation(len(y))])
        rows, left = left[:16], left[16:]
        optimizer.zero_grad()
        batch = {name: torch.from_numpy(part[rows]) for name, part in x.items()}
        loss_fn(model(**batch), torch.from_numpy(y[rows])).backward()
        optimizer.step()
        falling.step()
    return model.eval()


@torch.no_grad()
def loss_of(model: nn.Module, x: dict[str, np.ndarray], y: np.ndarray) -> float:
    """Return the mean loss of a token."""
    output = model(**{name: torch.from_numpy(part) for name, part in x.items()})
    return float(loss_fn(output, torch.from_numpy(y)))


def some(x: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: part[rows] for name, part in x.items()}


def by_words(pool: list[str], validation: list[str], count: int) -> np.ndarray | None:
    """Return the texts with the highest mean BM25 score; None without its package."""
    try:
        bm25 = Bm25(pool)
    except ImportError as error:
        print(error)
        return None
    return np.argsort(-sum(bm25(text) for text in validation), kind="stable")[:count]


def chart(losses: dict[str, float], before: float) -> Figure:
    """Draw the losses as bars."""
    figure = Figure(figsize=(6.4, 0.4 * len(losses) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(losses)[::-1]
    colours = ["#0072B2" if "kernel" in name else "#999999" for name in names]
    bars = axes.barh([name.replace("kernel ", "") for name in names], [losses[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.axvline(before, color="black", linewidth=1, linestyle=":", label="before")
    low, high = min(*losses.values(), before), max(*losses.values(), before)
    axes.set_xlim(low - 0.35 * (high - low) - 0.01, high + 0.25 * (high - low) + 0.01)
    axes.set_xlabel("loss of a held-out token")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topic", default="games", help="the section that is wanted")
    parser.add_argument("--out", type=Path, default=Path("runs/select-data"), help="folder for the index")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer texts, less training")
    add_load(parser)
    options = parser.parse_args()
    limit, steps, more, width = (700, 60, 20, 32) if options.quick else (9000, 1500, 150, 96)
    torch.set_num_threads(1)
    texts, labels, sections = read(limit, options.seed)
    if options.topic not in sections:
        raise SystemExit(f"There is no section {options.topic!r}; there are {', '.join(sections)}.")
    topic = np.flatnonzero(labels == sections.index(options.topic))
    validation, held_out = topic[:VALIDATION], topic[VALIDATION : 2 * VALIDATION]
    rest = np.setdiff1d(np.arange(len(texts)), topic[: 2 * VALIDATION])
    base, pool = rest[::2], rest[1::2]

    saved = options.out / "tokenizer"
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(there(saved))
        if options.load
        else make_tokenizer([texts[i] for i in base])
    )
    tokenizer.save_pretrained(saved)
    x, y = encode(tokenizer, texts)
    torch.manual_seed(options.seed)
    sizes = {"n_embd": width, "n_layer": 3, "n_head": 4, "n_positions": LENGTH, "use_cache": False}
    words = len(tokenizer)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=words, bos_token_id=0, eos_token_id=0, **sizes))
    trained(
        options.out / "model.pt",
        options.load,
        model,
        lambda: train(model, some(x, base), y[base], steps, 2e-3, options.seed),
    )
    how = "loaded, trained before" if options.load else "trained"
    print(f"{sum(one.numel() for one in model.parameters()):,} parameters, {how} on {len(base)} texts", flush=True)

    wanted = [texts[i] for i in validation]
    job = hugging_face.causal_lm(model, tokenizer, [texts[i] for i in pool], max_length=LENGTH)
    index = gradindex.build(job, options.out / "index", whiten=True, overwrite=True)
    count = round(SHARE * len(pool))
    chosen: dict[str, np.ndarray] = {}
    for kernel in ("white_dot", "white_cos", "grad_cos"):
        found = index.select(text=wanted, budget=count, kernel=kernel)
        print(found)
        chosen[f"kernel {kernel}"] = found.ids
        if found.hidden is not None:
            chosen["hidden vectors"] = found.hidden.ids
    lexical = by_words([texts[i] for i in pool], wanted, count)
    if lexical is not None:
        chosen["BM25"] = lexical
    chosen["at random"] = np.random.default_rng(options.seed).permutation(len(pool))[:count]
    chosen["all of the pool"] = np.arange(len(pool))

    before = loss_of(model, some(x, held_out), y[held_out])
    print(f"\n{more} steps on each choice of {count} texts; loss of a token of {len(held_out)} held-out texts of")
    print(f"section {options.topic}, {before:.3f} before:\n{'':20} loss   of the section")
    losses = {}
    for name, ids in chosen.items():
        rows = pool[ids]
        tuned = train(copy.deepcopy(model), some(x, rows), y[rows], more, 5e-4, options.seed)
        losses[name] = loss_of(tuned, some(x, held_out), y[held_out])
        print(f"{name:20} {losses[name]:.3f}  {np.mean(labels[rows] == sections.index(options.topic)):.0%}", flush=True)
    print(f"\nthe lowest loss is that of: {min(losses, key=losses.__getitem__)}")
    chart(losses, before).savefig(options.out / "losses.png", dpi=100)
    print(f"wrote {options.out / 'losses.png'}")


if __name__ == "__main__":
    main()
