"""Distances that are unlike those of other samples: near-duplicates and outliers."""

import numpy as np
from numpy.typing import NDArray

from gradindex.review.evidence import Near

Floats = NDArray[np.float64]
NEARER, NEAR, FARTHER = 3.0, 1.5, 1.5  # interquartile ranges: Tukey's outer and inner fence
APART = 5.0  # times as far as the nearest is the second nearest to one that is a copy
_SMALLEST = 1e-7  # of a distance: what float32 tells from none
_COPY = 5e-7  # four roundings: what copies are apart


def log_distances(near: Near) -> Floats:
    """Return log(1 − cosine) of each sample's neighbours, (n, k); NaN where there is none."""
    with np.errstate(invalid="ignore"):
        distances = np.maximum(1 - near.cosines, _SMALLEST)
    return np.where(near.places >= 0, np.log(distances), np.nan)


def pairs(near: Near, usual: Near) -> tuple[NDArray[np.int64], Floats, float]:
    """Return the pairs that are far nearer than samples and their nearest others usually are, see `alike`.

    Returns
    -------
    tuple
        Places (p, 2), smaller first, each pair once; how much nearer they are, (p,), see `nearness`; and the cosine at
        the outer fence.
    """
    scores, fence = nearness(near, usual)
    rows, columns = np.nonzero(alike(near, usual))
    scores = scores[rows, columns]
    found = np.sort(np.stack([rows, near.places[rows, columns]], axis=1), axis=1)
    order = np.argsort(-scores, kind="stable")  # of a pair that is seen from both sides the nearer one
    unique, first = np.unique(found[order], axis=0, return_index=True)
    return unique.astype(np.int64), scores[order][first], fence


def alike(near: Near, usual: Near) -> NDArray[np.bool_]:
    """Return which neighbours (n, k) are so near that one may be a copy of the other.

    Those beyond the outer fence of Tukey (1977, "Exploratory Data Analysis"), where `nearness` is at least 3. And the
    nearest one beyond the inner fence, 1.5, if the second nearest is at least five times as far: the ratio by which
    Lowe (2004, "Distinctive Image Features from Scale-Invariant Keypoints") tells matches.
    """
    scores, _ = nearness(near, usual)
    logs, found = log_distances(near), scores >= NEARER
    if logs.shape[1] > 1:
        with np.errstate(invalid="ignore"):
            found[:, 0] |= (scores[:, 0] >= NEAR) & (logs[:, 1] - logs[:, 0] >= np.log(APART))
    return np.asarray(found)


def nearness(near: Near, usual: Near) -> tuple[Floats, float]:
    """Return how much nearer than usual the k neighbours of each sample are, and the cosine at the outer fence.

    Of the log distances of `usual`'s nearest that is no copy, q₁ and q₃ are the quartiles; of a neighbour with the log
    distance d it is (q₁ − d) / (q₃ − q₁), (n, k), −inf where there is none.
    """
    every = log_distances(usual)
    others = ~(np.isnan(every) | (every <= np.log(_COPY)))  # or a dataset that is there twice would have no copies
    low, spread = _quartiles(np.where(others, every, np.inf).min(axis=1), 25)
    logs = log_distances(near)
    return np.where(np.isnan(logs), -np.inf, (low - logs) / spread), float(1 - np.exp(low - NEARER * spread))


def all_are_copies(near: Near) -> bool:
    """Whether hardly any sample has a neighbour that is no copy, so that nothing tells which distance is usual."""
    logs = log_distances(near)
    copies = logs <= np.log(_COPY)
    return bool((copies | np.isnan(logs)).all(axis=1).mean() > 0.9 and copies.any())


def outliers(near: Near) -> Floats:
    """Return how far each sample's mean distance to its k nearest is above that of others, (n,).

    In interquartile ranges of its logarithm above the third quartile; the mean distance to the nearest is the weight
    of Angiulli and Pizzuti (2002, "Fast Outlier Detection in High Dimensional Spaces").
    """
    there = near.places >= 0
    total = np.exp(log_distances(near)).sum(axis=1, where=there)
    means = np.log(np.maximum(total, _SMALLEST) / np.maximum(there.sum(axis=1), 1))
    high, spread = _quartiles(means, 75)
    return np.asarray((means - high) / spread)


def _quartiles(values: Floats, which: int) -> tuple[float, float]:
    """Return a quartile of values above the smallest that there can be, and the interquartile range."""
    usual = values[np.isfinite(values) & (values > np.log(_SMALLEST) + 1e-9)]
    if len(usual) < 4:
        return 0.0, np.inf
    first, third = np.percentile(usual, [25, 75])
    return float(third if which == 75 else first), max(float(third - first), 1e-3)
