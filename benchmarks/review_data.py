"""Data sets, planted wrong labels and small models of review.py."""

from dataclasses import dataclass
from itertools import pairwise

import counterfactual_data as data
import hanawa_cases
import numpy as np
import torch
from torch import nn

SHARE = 0.1


@dataclass(frozen=True)
class Set:
    """Samples and how a small network is trained on them: hidden units, epochs."""

    x: np.ndarray
    y: np.ndarray
    hidden: tuple[int, ...]
    epochs: int

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


def load(name: str) -> Set:
    """Return a data set: digits, vehicle and mnist are judged on; segment, fashion and texts are tuned on."""
    if name == "digits":
        found = data.digits()
        x, y = np.concatenate([found.x, found.x_queries]), np.concatenate([found.y, found.y_queries])
        return Set(x.reshape(len(x), -1), y, (64,), 40)
    if name in ("vehicle", "segment"):
        x, y = hanawa_cases.table(name, "standard")
        order = np.random.default_rng(0).permutation(len(x))[:1500]
        return Set(x[order].astype(np.float32), y[order].astype(np.int64), (24, 24), 150)
    if name == "texts":
        found = data.bags(2000, 1000)
        return Set(found.x, found.y, (64,), 15)
    found = {"mnist": data.mnist, "fashion": data.fashion}[name]()
    rows = 5000 if name == "mnist" else 2000
    return Set(found.x[:rows].reshape(rows, -1), found.y[:rows], (128,), 20)


def plant(one: Set, kind: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is wrong, and which ones are.

    'symmetric': any other class. 'class': the next class. 'instance': what a logistic regression, trained on so few
    samples that it makes enough mistakes, takes the sample for.
    """
    random = np.random.default_rng(seed)
    count = round(share * len(one.y))
    if kind == "instance":
        guessed = weaker(one, count, random)
        chosen = random.choice(np.flatnonzero(guessed != one.y), count, replace=False)
        other = guessed
    else:
        chosen = random.choice(len(one.y), count, replace=False)
        step = random.integers(1, one.classes, len(one.y)) if kind == "symmetric" else 1
        other = (one.y + step) % one.classes
    wrong = np.zeros(len(one.y), bool)
    wrong[chosen] = True
    return np.where(wrong, other, one.y).astype(np.int64), wrong


def weaker(one: Set, mistakes: int, random: np.random.Generator) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    size = len(one.y) // 2
    while True:
        rows = random.choice(len(one.y), size, replace=False)
        guessed = LogisticRegression(max_iter=200).fit(one.x[rows], one.y[rows]).predict(one.x)
        if (guessed != one.y).sum() >= mistakes:
            return guessed
        size = size * 2 // 3


def fit(x: np.ndarray, y: np.ndarray, one: Set, seed: int) -> nn.Module:
    """Train a multilayer perceptron with Adam."""
    torch.manual_seed(seed)
    widths = (x.shape[1], *one.hidden)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], one.classes))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(one.epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def held_out_probabilities(one: Set, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return each sample's class probabilities by the same network, trained anew without its fold; five folds."""
    from sklearn.model_selection import StratifiedKFold

    found = np.empty((len(labels), one.classes))
    for fold, (kept, held) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(one.x, labels)):
        model = fit(one.x[kept], labels[kept], one, seed * 10 + fold)
        with torch.no_grad():
            found[held] = model(torch.from_numpy(one.x[held])).softmax(dim=1).numpy()
    return found
