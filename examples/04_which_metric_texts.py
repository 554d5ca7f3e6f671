"""Ask which relevance metric to trust for a text classifier, and read the neighbours each one finds.

One-line descriptions of Debian packages, the label is the archive section (``debian_sections.tsv.gz`` in the folder
named by ``GRADINDEX_DATA``; without it, sentences made of random words of three topics). Two models: bag of words
with logistic regression, and averaged embeddings. Run it with ``python examples/04_which_metric_texts.py``.
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from data import add_load, parser_of
from rich.console import Console
from saved import trained
from texts import print_texts, read
from torch import nn

import gradindex
from gradindex import relevance
from gradindex.evaluation import Experiment, evaluate


def count_words(texts: list[str], most: int) -> np.ndarray:
    """Return how often each of the most frequent words occurs in each text (n, words), as float32."""
    split = [re.findall(r"[a-z0-9+]+", text.lower()) for text in texts]
    frequent = Counter(word for words in split for word in set(words) if len(word) > 2).most_common(most)
    place = {word: i for i, (word, _) in enumerate(frequent)}
    counts = np.zeros((len(texts), len(place)), np.float32)
    for row, words in enumerate(split):
        for word in words:
            if word in place:
                counts[row, place[word]] += 1
    return counts


class AveragedEmbeddings(nn.Module):
    """The mean of the words' embeddings, then a linear layer."""

    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(words, 16, bias=False)  # of counts: the sum of the embeddings
        self.out = nn.Linear(16, classes)

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of counts (n, words)."""
        return self.out(self.embed(counts) / counts.sum(1, keepdim=True).clamp(min=1))


def fit(x: np.ndarray, y: np.ndarray, classes: int, seed: int, *, kind: str, folder: Path, load: bool) -> nn.Module:
    """Return a model trained from the start; the folder tells apart those that differ in their samples alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Linear(x.shape[1], classes) if kind == "logreg" else AveragedEmbeddings(x.shape[1], classes)
    file = folder / f"{kind}-{classes}-classes-seed-{seed}.pt"
    trained(file, load, model, lambda: train(model, x, y, seed))
    return model


def train(model: nn.Module, x: np.ndarray, y: np.ndarray, seed: int) -> None:
    """Minimise the cross-entropy with Adam."""
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(seed)
    for _ in range(15):
        for rows in torch.randperm(len(inputs), generator=order).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimiser.step()


def print_neighbours(job: gradindex.Job, names: list[str], x: np.ndarray, texts: list, y: np.ndarray, sections) -> None:
    """Print the text that each metric finds for a query, as the study's table 7 does."""
    train_texts, test_text, test_label = texts
    prediction = int(job.engine.outputs(x).argmax())
    print(f"\n{test_text!r}\n  section {sections[test_label]}, predicted {sections[prediction]}")
    for name, metric in relevance.metrics(names, job).items():
        found = int(metric.top(x, k=1)[0][0, 0])
        print(f"  {name:9} {sections[y[found]]:9} {train_texts[found]}")


def main() -> None:
    parser = parser_of(__doc__, "runs/which-metric-texts", "one repeat, fewer texts")
    add_load(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)

    texts, y, sections = read(600 if options.quick else 3000, options.seed)
    print_texts(texts, sections)
    x = count_words(texts, 150 if options.quick else 400)
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in ("logreg", "embeddings"):
        hidden = [] if kind == "logreg" else ["l2-last", "cos-last", "dot-last"]
        names = ["l2-x", "cos-x", "dot-x", *hidden, "GD", "GC", "l2-grad"]
        make = partial(fit, kind=kind, load=options.load)
        evaluated = partial(make, folder=options.out / "evaluated")
        experiment = Experiment(evaluated, nn.functional.cross_entropy, (x, y), queries=300)
        result = evaluate(experiment, names, repeats=1 if options.quick else 3, seed=options.seed)
        print(f"\n{kind}: test accuracy {np.mean(result.accuracy['class']):.3f}")
        Console(width=120).print(result.table())
        print(result.sentence())
        result.to_json(options.out / f"{kind}.json")
        result.chart().savefig(options.out / f"{kind}.png", dpi=100)

        half = len(x) // 2
        model = make(x[:half], y[:half], len(sections), options.seed, folder=options.out / "explained")
        job = gradindex.Job(model, nn.functional.cross_entropy, (x[:half], y[:half]))
        for i in range(half, half + 2):
            print_neighbours(job, names, x[i : i + 1], [texts[:half], texts[i], y[i]], y, sections)
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
