"""Ask which relevance metric to trust for an image classifier, before trusting any explanation.

A small network is trained several times on scikit-learn's digits and every metric takes the three tests of Hanawa et
al. (2021): is the most relevant training image of the query's class, of its subclass, and does the ranking change when
the weights are random? Run it with ``python examples/03_which_metric_digits.py``; it prints a table and draws a chart.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from data import add_load, parser_of
from rich.console import Console
from saved import trained
from sklearn.datasets import load_digits
from torch import nn

from gradindex import relevance
from gradindex.evaluation import Experiment, evaluate


def fit(x: np.ndarray, y: np.ndarray, classes: int, seed: int, *, folder: Path, load: bool) -> nn.Module:
    """Return a network trained from the start; in double precision, for the sake of the inverse Hessian."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes)).double()
    file = folder / f"model-{classes}-classes-seed-{seed}.pt"
    trained(file, load, network, lambda: train(network, x, y, seed))
    return network


def train(network: nn.Module, x: np.ndarray, y: np.ndarray, seed: int) -> None:
    """Minimise the cross-entropy with Adam."""
    inputs, labels = torch.as_tensor(x).double(), torch.as_tensor(y)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(seed)
    for _ in range(20):
        for rows in torch.randperm(len(inputs), generator=order).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimiser.step()


def main() -> None:
    parser = parser_of(__doc__, "runs/which-metric-digits", "one repeat, fewer metrics")
    add_load(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)

    digits = load_digits()
    half = len(digits.target) // 2
    print(
        f"data: scikit-learn's digits, {half} training and {len(digits.target) - half} test images of 8×8, drawn anew"
    )
    fit_or_load = functools.partial(fit, folder=options.out, load=options.load)
    experiment = Experiment(fit_or_load, nn.functional.cross_entropy, (digits.data / 16, digits.target), queries=300)
    names = ["l2-x", "dot-x", "cos-last", "GD", "GC"] if options.quick else list(relevance.METRICS)
    result = evaluate(experiment, names, repeats=1 if options.quick else 5, seed=options.seed)

    Console(width=120).print(result.table())
    print(f"test accuracy: {np.mean(result.accuracy['class']):.3f}")
    best = max(names, key=lambda name: result.mean("class", name) + result.mean("subclass", name))
    print(f"most often right about class and subclass: {best}")
    print("\n".join(result.notes()))
    print(result.sentence())
    options.out.mkdir(parents=True, exist_ok=True)
    result.to_json(options.out / "result.json")
    result.chart().savefig(options.out / "chart.png", dpi=100)
    print(f"wrote {options.out / 'result.json'} and {options.out / 'chart.png'}")


if __name__ == "__main__":
    main()
