"""Models whose retraining is known exactly, and `fit` functions that worker processes can import."""

import os
from functools import partial
from pathlib import Path

import numpy as np

N, M, WIDTH = 40, 12, 3


def data(n=N, m=M, seed=0):
    """Training samples (n, 3) with targets, and queries with theirs."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(WIDTH)
    x, xq = rng.standard_normal((n, WIDTH)), rng.standard_normal((m, WIDTH))
    return (x, x @ weights + rng.standard_normal(n)), (xq, xq @ weights + rng.standard_normal(m))


class Ridge:
    """Ridge regression by its normal equations; its loss of a query is half the squared error."""

    def __init__(self, x, y, shift=0.0):
        self.weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y) + shift

    def loss(self, queries):
        x, y = queries
        return (x @ self.weights - y) ** 2 / 2


def ridge(ids, seed, noise=0.0):
    (x, y), _ = data()
    return Ridge(x[ids], y[ids], noise * np.random.default_rng(seed).standard_normal(WIDTH))


def counted(folder, ids, seed):
    """Leave a file for each call, so that calls of all processes are known."""
    Path(folder, f"{seed}-{os.getpid()}").touch()
    return ridge(ids, seed, 0.01)


def slow(folder, ids, seed):
    import time

    time.sleep(0.2)
    return counted(folder, ids, seed)


class Diverged:
    def loss(self, queries):
        return np.full(len(queries[1]), np.inf)


def failing(bad, ids, seed):
    """Raise for one seed, and return a model of infinite losses for another."""
    if seed == bad[0]:
        raise RuntimeError("no convergence")
    return Diverged() if seed == bad[1] else ridge(ids, seed)


class Raises:
    def loss(self, queries):
        raise FloatingPointError("overflow")


class Short:
    def loss(self, queries):
        return np.zeros(len(queries[1]) - 1)


def dying(ids, seed):
    os._exit(3)


class Direct:
    """Logistic regression of two classes with a prediction; ids of the training samples are all it knows."""

    def __init__(self, x, y):
        self.weights = np.zeros(x.shape[1])
        for _ in range(25):
            p = 1 / (1 + np.exp(-x @ self.weights))
            hessian = x.T @ (x * (p * (1 - p))[:, None]) + np.eye(x.shape[1])
            self.weights -= np.linalg.solve(hessian, x.T @ (p - y) + self.weights)

    def loss(self, queries):
        x, y = queries
        return np.log1p(np.exp(-(2 * y - 1) * (x @ self.weights)))

    def predict(self, queries):
        return (queries[0] @ self.weights > 0).astype(int)


def classes(n=N, m=M):
    (x, y), (xq, yq) = data(n, m)
    return (x, (y > 0).astype(int)), (xq, (yq > 0).astype(int))


def logistic(ids, seed):
    (x, y), _ = classes()
    return Direct(x[ids], y[ids])


def torch_model(ids, seed):
    import torch
    from torch import nn

    (x, y), _ = classes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Linear(WIDTH, 2)
    x, y = torch.tensor(x[ids], dtype=torch.float32), torch.tensor(y[ids])
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def keras_model(ids, seed):
    """One Newton-like step from zero weights: enough for a model that depends on its samples."""
    import keras

    (x, y), _ = classes()
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(2)])
    slope = x[ids].T @ (y[ids] - 0.5) / len(ids)
    model.set_weights([np.c_[-slope, slope].astype(np.float32), np.zeros(2, np.float32)])
    return model


def cross_entropy():
    import torch

    return torch.nn.CrossEntropyLoss()


def float32(pair):
    return pair[0].astype(np.float32), pair[1]


def torch_job():
    import gradindex

    everything = np.arange(N)
    return gradindex.Job(torch_model(everything, 0), cross_entropy(), float32(classes()[0]))


noisy = partial(ridge, noise=0.3)
