"""Spearman's correlation over subsets, and how it varies when queries and subsets are drawn anew.

Ranks in a resample need no sorting: the rank of a value is the weight of all smaller ones plus half that of its equals,
one matrix product for all resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.defaults import SEED

Values = NDArray[np.float64]
Scores = NDArray[np.floating[Any]]
"""Of m queries and n samples (m, n), larger says more helpful."""

RESAMPLES = 1000
LEVEL = 0.95  # of every interval
_WORK_BYTES = 64 << 20
_MOST_SPLITS = 10  # of a subset's models into halves


@dataclass(frozen=True)
class Resamples:
    """How often each query (B, m) and each subset (B, S) is drawn in each of B resamples."""

    queries: Values
    subsets: Values

    @classmethod
    def draw(cls, queries: int, subsets: int, count: int = RESAMPLES, seed: int = SEED) -> "Resamples":
        """Return resamples of both, drawn with replacement; the same for the same numbers and seed."""
        rng = np.random.default_rng(seed)
        drawn = [rng.multinomial(size, np.full(size, 1 / size), size=count) for size in (queries, subsets)]
        return cls(*(one.astype(np.float64) for one in drawn))

    def mean(self, correlations: Values) -> Values:
        """Return the mean over queries (B,) of correlations (m, B) in each resample."""
        found: Values = np.einsum("bq,qb->b", self.queries, correlations) / self.queries.shape[1]
        return found


def correlations(actual: Values, predicted: Sequence[Values], weights: Values | None = None) -> list[Values]:
    """Return Spearman's rank correlations (m, B) of each prediction with what happened.

    Parameters
    ----------
    actual
        What happened, (m, S): m queries, S subsets.
    predicted
        Predictions, each (m, S).
    weights
        How often each subset counts in each of B resamples, (B, S); None: once, B = 1.

    Returns
    -------
    list of numpy.ndarray
        Of each prediction (m, B), float64. Where a row is constant, or all subsets drawn are alike, there is no ranking
        and the correlation counts as 0.
    """
    m, count = actual.shape
    weights = np.ones((1, count)) if weights is None else weights
    step = max(1, _WORK_BYTES // (8 * count * max(count, len(weights))))
    found = [np.empty((m, len(weights))) for _ in predicted]
    for begin in range(0, m, step):
        rows = slice(begin, begin + step)
        truth = _centred_ranks(actual[rows], weights)
        squares = np.einsum("qsb,bs,qsb->qb", truth, weights, truth, optimize=True)
        for out, one in zip(found, predicted, strict=True):
            ranks = _centred_ranks(one[rows], weights)
            weighted = ranks * weights.T
            scale = np.sqrt(squares * np.einsum("qsb,qsb->qb", weighted, ranks))
            dots = np.einsum("qsb,qsb->qb", weighted, truth)
            out[rows] = np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0)
    return found


def _centred_ranks(values: Values, weights: Values) -> Values:
    """Return ranks minus their weighted mean (q, S, B); equal values share the middle of their ranks."""
    smaller = (values[:, None, :] < values[:, :, None]) + 0.5 * (values[:, None, :] == values[:, :, None])
    ranks: Values = smaller @ weights.T
    ranks -= np.einsum("qsb,bs->qb", ranks, weights)[:, None, :] / weights.sum(axis=1)
    return ranks


def is_constant(values: Values) -> NDArray[np.bool_]:
    """Return which rows (m,) of values (m, S) hold one value only, and so no ranking."""
    found: NDArray[np.bool_] = (values == values[:, :1]).all(axis=1)
    return found


def interval(value: float, resampled: Values) -> tuple[float, float]:
    """Return the interval of a statistic by its values (B,) in resamples, at `LEVEL`.

    The percentiles (Efron 1979), moved so that the resamples' mean is the value: subsets that are drawn twice lower
    correlations a little.
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + (value - resampled.mean())
    return float(low), float(high)


def ceiling(losses: Values, weights: Values | None = None, seed: int = SEED) -> tuple[Values, float] | None:
    """Return how well halves of the models of a subset agree about the subsets' order, and a factor of lengths.

    Parameters
    ----------
    losses
        Query losses of every model of every subset, (S, M, m), all finite.
    weights
        As in `correlations`.
    seed
        Draws the splits of more than 6 models.

    Returns
    -------
    tuple of (numpy.ndarray, float), or None
        Correlations (m, B) of the mean losses of two halves of M // 2 models each, the mean over all splits (of
        more than 6 models, 10 of them); and M / (M // 2), the factor for `reliability`. None with fewer than two models
        a subset.
    """
    models = losses.shape[1]
    if models < 2:
        return None
    half = models // 2
    total = np.zeros((losses.shape[2], 1 if weights is None else len(weights)))
    splits = _splits(models, half, seed)
    for one, other in splits:
        pair = (np.ascontiguousarray(losses[:, list(rows)].mean(axis=1).T) for rows in (one, other))
        total += correlations(next(pair), [next(pair)], weights)[0]
    return total / len(splits), models / half


def reliability(correlation: Values, factor: float) -> Values:
    """Return the reliability of a mean that is `factor` times as long as the halves whose correlation is given.

    k r / (1 + (k − 1) r): Spearman (1910), Brown (1910). Negative correlations count as 0.
    """
    r = np.maximum(correlation, 0)
    return factor * r / (1 + (factor - 1) * r)


def _splits(models: int, half: int, seed: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return ways to take two disjoint halves of the models: all of them, or some drawn ones."""
    if models <= 6:
        return [
            (one, other)
            for one in combinations(range(models), half)
            for other in combinations(sorted(set(range(models)) - set(one)), half)
            if one < other
        ]
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(models).tolist() for _ in range(_MOST_SPLITS)]
    return [(tuple(order[:half]), tuple(order[half : 2 * half])) for order in orders]
