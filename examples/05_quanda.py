"""Run quanda's class-detection and subclass-detection tests on relevance metrics of gradindex.

quanda is a toolkit of tests for data attribution: ``pip install quanda``. Run it with ``python examples/05_quanda.py``.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

TRAIN = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer queries")
    options = parser.parse_args()
    try:
        from quanda.metrics.downstream_eval import ClassDetectionMetric, SubclassDetectionMetric
    except ImportError as error:
        raise SystemExit(f"quanda is not installed ({error}). Type: pip install quanda") from error
    from gradindex.relevance.quanda import GradindexExplainer

    torch.set_num_threads(1)
    digits = load_digits()
    order = np.random.default_rng(options.seed).permutation(len(digits.target))
    x = torch.as_tensor(digits.data[order] / 16, dtype=torch.float32)
    subclass = torch.as_tensor(digits.target[order])
    queries = slice(TRAIN, TRAIN + (50 if options.quick else 300))
    for test, y in (("class", subclass), ("subclass", subclass % 2)):
        torch.manual_seed(options.seed)
        model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, int(y.max()) + 1))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[:TRAIN]), y[:TRAIN]).backward()
            optimiser.step()
        train = torch.utils.data.TensorDataset(x[:TRAIN], y[:TRAIN])
        predicted = model(x[queries]).argmax(1)
        for name in ("GC", "GD", "l2-x", "dot-x"):
            scores = GradindexExplainer(model, train, metric=name).explain(x[queries], predicted)
            if test == "class":
                judge = ClassDetectionMetric(model, train, s=1)
                judge.update(scores, predicted)
            else:
                judge = SubclassDetectionMetric(model, train, subclass[:TRAIN], s=1)
                judge.update(scores, subclass[queries])
            print(f"{test:9} {name:6} {judge.compute()['score']:.3f}")


if __name__ == "__main__":
    main()
