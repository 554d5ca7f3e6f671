"""Experiments whose outcome is known."""

import numpy as np
import torch
from torch import nn

import gradindex
from gradindex.evaluation import Experiment


def blobs(n=240, classes=4, seed=0):
    """Well separated clusters, one a class, in a plane."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    angle = 2 * np.pi * y / classes
    x = 4 * np.c_[np.cos(angle), np.sin(angle)] + rng.standard_normal((n, 2)) * 0.4
    return x.astype(np.float32), y


def fit(x, y, classes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, classes))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(torch.as_tensor(x)), torch.as_tensor(y)).backward()
        optimiser.step()
    return model


def experiment():
    return Experiment(fit, nn.functional.cross_entropy, blobs(), queries=60)


def job():
    x, y = blobs()
    return gradindex.Job(fit(x, y, 4, 0), nn.functional.cross_entropy, (x, y))
