"""Votes of neighbours on a sample's class."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def shares(places: Ints, labels: Ints, classes: int) -> Floats:
    """Return the share of each class among a sample's neighbours, (n, classes); rows without any are zero.

    Parameters
    ----------
    places
        Neighbours (n, k), −1 for none.
    labels
        Classes (n,) from 0.
    classes
        How many.
    """
    found = np.zeros((len(places), classes))
    rows, columns = np.nonzero(places >= 0)
    np.add.at(found, (rows, labels[places[rows, columns]]), 1)
    return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), 1))


def lead(votes: Floats, labels: Ints) -> Floats:
    """Return by how much the best other class is ahead of the sample's own, (n,), of votes (n, classes)."""
    rows = np.arange(len(labels))
    others = votes.copy()
    others[rows, labels] = -np.inf
    return np.asarray(others.max(axis=1) - votes[rows, labels])
