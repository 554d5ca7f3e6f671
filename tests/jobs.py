"""Small trained models on scikit-learn's digits, shared by tests and named by the command line's."""

import functools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import gradindex
from gradindex.runtime import threads

ROWS = 240


@functools.cache
def digits(rows=ROWS):
    x, y = load_digits(return_X_y=True)
    return (x[:rows] / 16).astype(np.float32), y[:rows]


@functools.cache
def trained(seed=0):
    """An MLP trained for a few epochs: gradients neither random nor vanishing.

    On one thread, so that every process that makes it, whatever its threads, makes the same weights.
    """
    x, y = map(torch.from_numpy, digits())
    with torch.random.fork_rng(devices=[]), threads.using("torch", 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def digits_fit(ids, seed):
    """Train on some of the digits, a few steps: for banks."""
    x, y = (torch.from_numpy(part[ids]) for part in digits())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def digits_job(**options):
    return gradindex.Job(trained(), nn.CrossEntropyLoss(), digits(), **options)


def other_model_job():
    return gradindex.Job(trained(seed=1), nn.CrossEntropyLoss(), digits())


def not_a_job():
    return 3


def failing_job():
    raise RuntimeError("the data are on another planet")


def longer_job(rows):
    """The digits job with another number of samples."""
    return gradindex.Job(trained(), nn.CrossEntropyLoss(), digits(rows))


def more_job():
    return longer_job(ROWS + 60)
