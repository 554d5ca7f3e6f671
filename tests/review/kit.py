"""Digits with labels planted wrong, near-duplicates and strangers, and a network that was trained on them."""

import functools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import gradindex
from gradindex.runtime import threads

ROWS, WRONG = 500, 40
COPIES = {10: 450, 20: 451, 30: 452}  # the sample of which another one is almost a copy
STRANGER = 460


@functools.cache
def samples():
    """Inputs (500, 64), labels with the first 40 of a random order wrong, and which ones are."""
    x, y = load_digits(return_X_y=True)
    x, y = (x[:ROWS] / 16).astype(np.float32), y[:ROWS].copy()
    random = np.random.default_rng(0)
    for one, other in COPIES.items():
        x[other], y[other] = x[one] + random.normal(0, 1e-3, 64), y[one]
    x[STRANGER] = random.uniform(0, 1, 64) < 0.5
    left = np.setdiff1d(np.arange(ROWS), [*COPIES, *COPIES.values(), STRANGER])
    chosen = random.choice(left, WRONG, replace=False)
    wrong = np.zeros(ROWS, bool)
    wrong[chosen] = True
    true = y.copy()
    y[chosen] = (y[chosen] + random.integers(1, 10, WRONG)) % 10
    return x, y, wrong, true


@functools.cache
def model():
    x, y, *_ = samples()
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    with torch.random.fork_rng(devices=[]), threads.using("torch", 1):
        torch.manual_seed(0)
        found = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
        for _ in range(250):  # it learns some of the wrong labels
            optimizer.zero_grad()
            nn.functional.cross_entropy(found(x), y).backward()
            optimizer.step()
    return found


def wrong_job(**options):
    x, y, *_ = samples()
    return gradindex.Job(model(), nn.CrossEntropyLoss(), (x, y), **options)


def targets_job():
    """A regression on the same inputs."""
    x, *_ = samples()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1))
    return gradindex.Job(network, nn.MSELoss(), (x, x.sum(axis=1, keepdims=True)), task="regression")
