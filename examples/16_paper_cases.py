"""Ask which relevance metric to trust, on the data sets and models of Hanawa et al. (2021) that need a network to get.

CIFAR10 (a CNN, logistic regression, MobileNetV2), TREC and AGNews (Bi-LSTM, logistic regression), and besides them 20
newsgroups and the emotions data set: read from the folder ``--root``, or fetched into it. Without them the two models
of texts are asked about one-line descriptions of Debian packages (``--case debian-logreg``, ``debian-bilstm``). Run it
with ``python examples/16_paper_cases.py --case trec-bilstm --root FOLDER``; it prints the tests' table and what each
metric finds for predictions that are right and wrong, writes ``figures.json``, and draws the study's pictures.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paper_data
import paper_figures
import paper_models as models
import torch
from data import parser_of
from rich.console import Console
from texts import print_texts, read
from torch import nn

import gradindex
from gradindex import relevance
from gradindex.evaluation import Experiment, evaluate
from gradindex.evaluation.criteria import merge_classes


@dataclass(frozen=True)
class Case:
    """Data, model, training samples and passes over them; sizes of a vocabulary; passes over all images before."""

    data: str
    kind: str
    train: int
    epochs: int
    words: int = 0
    before: int = 0


# Vocabularies are such that models have as many parameters as the study's.
CASES = {
    "cifar10-cnn": Case("cifar10", "cnn", 5000, 30, before=20),
    "cifar10-logreg": Case("cifar10", "logreg", 5000, 30, before=5),
    "cifar10-mobilenetv2": Case("cifar10", "mobilenetv2", 5000, 10, before=40),
    "trec-bilstm": Case("trec", "bilstm", 2726, 40, words=565),
    "trec-logreg": Case("trec", "logreg", 2726, 100, words=1160),
    "agnews-bilstm": Case("agnews", "bilstm", 6000, 20, words=1000),
    "agnews-logreg": Case("agnews", "logreg", 6000, 60, words=2250),
    "20news-logreg": Case("20news", "logreg", 3000, 60, words=400),
    "20news-bilstm": Case("20news", "bilstm", 3000, 40, words=1000),
    "emotions-logreg": Case("emotions", "logreg", 3000, 60, words=1000),
    "emotions-bilstm": Case("emotions", "bilstm", 3000, 40, words=1000),
    "debian-logreg": Case("debian", "logreg", 1500, 100, words=250),
    "debian-bilstm": Case("debian", "bilstm", 1500, 60, words=600),
}
LONGEST = 32  # words of a text that the Bi-LSTM reads


def samples(case: Case, root: Path, seed: int, quick: bool) -> paper_data.Labelled:
    """Return the data of a case, fewer of them for a short run, and say what they are."""
    if case.data == "debian":
        texts, y, names = read(600 if quick else 2 * case.train, seed)
        print_texts(texts, names)
        half = len(texts) // 2
        return paper_data.Labelled("debian", texts[:half], y[:half], texts[half:], y[half:], tuple(names))
    found = paper_data.load(case.data, root)
    print(f"data: {found.name}, {len(found.y_train)} training and {len(found.y_test)} test samples from {root}")
    return found


def inputs(case: Case, data: paper_data.Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model of a case takes of training and of test samples."""
    if case.data == "cifar10":
        return data.x_train, data.x_test
    words = models.vocabulary(data.x_train, case.words)
    if case.kind == "logreg":
        return models.bags(data.x_train, words), models.bags(data.x_test, words)
    return models.numbers(data.x_train, words, LONGEST), models.numbers(data.x_test, words, LONGEST)


def make(case: Case, x: np.ndarray, classes: int, seed: int) -> nn.Module:
    """Return a model with new weights for samples like x."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if case.kind == "bilstm":
            return models.BiLSTM(case.words, classes)
        if case.kind == "logreg":
            return models.logistic_regression(int(np.prod(x.shape[1:])), classes)
        return models.cnn(x.shape[1], classes) if case.kind == "cnn" else models.mobilenet_v2(classes)


def train(model: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> nn.Module:
    """Train by Adam with a rate of 1e-3, as the study does, in batches of 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        features, labels = torch.as_tensor(x), torch.as_tensor(y)
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(features)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(features[rows]), labels[rows]).backward()
                optimiser.step()
    return model.eval()


class Fit:
    """Trains a model of a case; those of images are trained on all training images before."""

    def __init__(self, case: Case, x: np.ndarray, y: np.ndarray, quick: bool) -> None:
        self.case, self.x, self.y, self.quick = case, x, y, quick
        self.before: dict[tuple[int, int], nn.Module] = {}

    def __call__(self, x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> nn.Module:
        """Return a model trained on x, with labels y; in double precision where matrices are inverted."""
        epochs, before = self.case.epochs, self.case.before
        if self.quick:
            epochs, before = max(1, epochs // 4), min(before, 1)
        model = make(self.case, x, classes, seed)
        if before:
            if (classes, seed) not in self.before:
                merged = classes < len(np.unique(self.y))  # the subclass test's two classes
                labels = merge_classes(self.y, seed)[0] if merged else self.y
                self.before[classes, seed] = train(model, self.x, labels, before, seed)
            model = copy.deepcopy(self.before[classes, seed])
        model = train(model, x, y, epochs, seed)
        return model if self.case.kind == "mobilenetv2" else model.double()

    def fresh(self, classes: int, seed: int) -> nn.Module:
        """Return a model with new weights."""
        model = make(self.case, self.x, classes, seed).eval()
        return model if self.case.kind == "mobilenetv2" else model.double()


def metrics_of(case: Case, quick: bool) -> list[str]:
    """Return the metrics of a case.

    The words' numbers that a Bi-LSTM takes are no features, so that it has no metrics of the input; logistic regression
    has no hidden layer; IF and FK of MobileNetV2 are not in the study either, and all of its hidden layers are over a
    million numbers a sample.
    """
    names = list(relevance.METRICS)
    ends = {"bilstm": ("-x",), "logreg": ("-last", "-all"), "mobilenetv2": ("IF", "FK", "-all"), "cnn": ()}[case.kind]
    names = [name for name in names if not name.endswith(ends)] if ends else names
    return [name for name in names if name.endswith(("-x", "-last", "GD", "GC", "cos-FK"))] if quick else names


def print_neighbours(
    job: gradindex.Job, names: Sequence[str], x: np.ndarray, row: int, data: paper_data.Labelled
) -> None:
    """Print the text that each metric finds for a test text, as the study's tables 7 and 8 do."""
    predicted = int(job.engine.outputs(x[row : row + 1]).argmax())
    print(f"\n{data.x_test[row]!r}\n  is {data.classes[data.y_test[row]]}, predicted {data.classes[predicted]}")
    for name, metric in relevance.metrics(names, job).items():
        found = int(metric.top(x[row : row + 1], k=1)[0][0, 0])
        print(f"  {name:9} {data.classes[data.y_train[found]]:12} {data.x_train[found][:100]}")


def main() -> None:
    parser = parser_of(__doc__, "runs/paper-cases", "one repeat, fewer metrics and samples, a quarter of the training")
    parser.add_argument("--case", choices=CASES, default="debian-logreg")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder where the data are, or are put")
    parser.add_argument("--repeats", type=int, default=10, help="one with --quick")
    parser.add_argument("--queries", type=int, default=500, help="100 with --quick")
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[options.case]

    data = samples(case, options.root, options.seed, options.quick)
    x, x_test = inputs(case, data)
    fit = Fit(case, x, data.y_train, options.quick)
    size = min(case.train, len(x) - 1)
    experiment = Experiment(
        fit,
        nn.functional.cross_entropy,
        (x, data.y_train),
        test=(x_test, data.y_test),
        train_size=size,
        queries=100 if options.quick else options.queries,
        fresh=fit.fresh,
    )
    names = metrics_of(case, options.quick)
    repeats = 1 if options.quick else options.repeats
    result = evaluate(experiment, names, repeats=repeats, seed=options.seed)
    print(f"{options.case}: {size} training samples, {result.meta['parameters']:,} parameters, ", end="")
    print(f"test accuracy {np.mean(result.accuracy['class']):.3f}")
    Console(width=150).print(result.table())
    print("\n".join(result.notes()))
    print(result.sentence())
    options.out.mkdir(parents=True, exist_ok=True)
    found = result.to_dict()
    figures = {key: found[key] for key in ("summary", "null", "verdict", "accuracy")}
    figures |= {"case": options.case, "data": data.name, "train": size, "meta": result.meta}

    model = fit(x[:size], data.y_train[:size], len(data.classes), options.seed)
    job = gradindex.Job(model, nn.functional.cross_entropy, (x[:size], data.y_train[:size]))
    right = job.engine.outputs(x_test[:500]).argmax(axis=1) == data.y_test[:500]
    rows = [*np.flatnonzero(right)[:2], *np.flatnonzero(~right)[:2]]
    if case.data == "cifar10":
        paper_figures.neighbours(job, names, x_test, rows, data).savefig(options.out / "neighbours.png", dpi=90)
    else:
        for row in rows:
            print_neighbours(job, names, x_test, row, data)
    figures["factors"] = paper_figures.write(job, names, x_test[:200], options.out, options.seed)
    if "l2-all" in metrics_of(case, quick=False):
        paper_figures.subclasses(experiment, options.seed).savefig(options.out / "map.png", dpi=90)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    result.chart().savefig(options.out / "chart.png", dpi=100)
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
