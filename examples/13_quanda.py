"""Run quanda's class and subclass detection on gradindex's metrics, exact and through an index.

Needs quanda (``pip install "gradindex[quanda]"``). The digits that ship with scikit-learn, an MLP. Its scores are
those of ``gradindex.evaluation``'s identical class and subclass tests, printed beside them.
Run it with ``python examples/13_quanda.py``.
"""

import json

import numpy as np
import torch
from data import parser_of
from gradindex.evaluation.quanda_adapter import GradindexExplainer
from quanda.metrics.downstream_eval import ClassDetectionMetric, SubclassDetectionMetric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import gradindex
from gradindex import relevance
from gradindex.evaluation import criteria


def fit(x, y, classes, seed):
    """Train an MLP on digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def explainers(model, train, folder):
    """Yield names and explainers: metrics, and Grad-Cos through an index."""
    for name in ("GC", "GD", "cos-last", "dot-x"):
        yield name, GradindexExplainer(model, train, metric=name)
    index = gradindex.build(gradindex.Job(model, nn.functional.cross_entropy, train), folder, overwrite=True)
    yield "GC (index)", GradindexExplainer(model, train, index=index)


def ours(model, train, x, labels, train_classes, wanted, name):
    """Return gradindex.evaluation's own success rate."""
    metric = relevance.metric(name.split()[0], gradindex.Job(model, nn.functional.cross_entropy, train))
    return criteria.passes(metric.scores(x, labels), train_classes, wanted).mean()


def main() -> None:
    options = parser_of(__doc__, "runs/quanda", "a third of the training images, 50 queries").parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16, dtype=torch.float32), torch.as_tensor(y)
    order = torch.as_tensor(np.random.default_rng(options.seed).permutation(len(x)))
    rows, queries = (order[:300], order[900:950]) if options.quick else (order[:900], order[900:1100])
    print(f"data: scikit-learn's digits, {len(rows)} training and {len(queries)} test images of 8×8")
    figures = {}
    merged, _ = criteria.merge_classes(y.numpy(), options.seed)
    for title, labels in (("class detection", y), ("subclass detection", torch.as_tensor(merged))):
        model = fit(x[rows], labels[rows], int(labels.max()) + 1, options.seed)
        train = TensorDataset(x[rows], labels[rows])
        predicted = model(x[queries]).argmax(1)
        print(f"\n{title} (accuracy {(predicted == labels[queries]).float().mean():.3f}): quanda, gradindex")
        right = predicted == labels[queries] if title.startswith("sub") else torch.ones(len(queries), dtype=torch.bool)
        for name, explainer in explainers(model, train, options.out / "index"):
            found = explainer.explain(x[queries], predicted)
            if title.startswith("sub"):
                metric = SubclassDetectionMetric(model, train, y[rows], filter_by_prediction=True)
                metric.update(
                    explanations=found,
                    test_subclasses=y[queries],
                    test_tensor=x[queries],
                    test_classes=labels[queries],
                )
                classes, wanted = y[rows].numpy(), y[queries][right].numpy()
            else:
                metric = ClassDetectionMetric(model, train)
                metric.update(explanations=found, test_labels=predicted)
                classes, wanted = y[rows].numpy(), predicted.numpy()
            own = ours(model, train, x[queries][right], predicted[right], classes, wanted, name)
            theirs = float(metric.compute()["score"])
            figures.setdefault(title, {})[name] = {"quanda": theirs, "gradindex": float(own)}
            print(f"  {name:12} {theirs:.3f} {own:.3f}")
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    print(f"wrote {options.out / 'figures.json'}")


if __name__ == "__main__":
    main()
