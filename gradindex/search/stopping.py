"""When enough candidates of a query and side are checked exactly: a margin says how far their estimates may be off.

A candidate's exact value is taken to reach at most its estimate and a margin. Candidates are checked in the order of
what they reach, and no more once the k-th exact value is above what is left. The margin is one of Fisher's z, the
inverse hyperbolic tangent of the cosine, in which errors of sketched cosines spread alike: by (1 − cos²) / √dim.

`losses` counts what an answer misses that checks its candidates one by one; larger blocks only find more. It never
grows with the margin, as conformal risk control asks for (see `gradindex.search.calibration`): of the cosine, because a
larger margin stops later in the same order; of the other kernels, whose order depends on the margin, because what
counts is the most that this margin or any larger one misses.
"""

import math

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Ids
from gradindex.search.bounds import EVALUATION

_MOST = 1 - 2.0**-11
"""The largest cosine that a row of float16 tells from 1."""
_LEAST_BLOCK = 12  # candidates of a side in a block after the first: a pass over fewer costs hardly less
_FIRST_WIDTH = 64  # candidates that are looked at first when checks are counted
FEW_MORE = 4
"""Candidates of a side that are checked beside the first k before it is known where to stop."""


def to_z(cosines: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return Fisher's z of cosines; those nearer to 1 than stored rows can tell count as that near."""
    out: NDArray[np.float64] = np.arctanh(np.clip(np.asarray(cosines, np.float64), -_MOST, _MOST))
    return out


def reach(
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    margin: NDArray[np.float64] | float,
    bounds: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return what kernel values of candidates may reach, in the shape of `z`.

    Parameters
    ----------
    z
        Fisher's z of estimated cosines, −inf for missing candidates.
    weights
        The kernel's weights, by which a value is a cosine times the weight.
    margin
        How far z may be off, of a shape that `z` has or broadcasts to.
    bounds
        Cosines that no candidate exceeds, by a proof.
    """
    there = np.isfinite(z)
    cosines = np.tanh(np.where(there, z, 0.0) + margin) + EVALUATION
    if bounds is not None:
        cosines = np.minimum(cosines, bounds)
    return np.where(there, weights * cosines, -np.inf)


class Checks:
    """The exact checks of one query and side, a block at a time.

    Parameters
    ----------
    rows
        Candidates (c,), −1 for missing ones.
    reached
        What each may `reach`, (c,).
    k
        How many are wanted.
    first
        Candidates of the first block, at least k.
    """

    def __init__(self, rows: Ids, reached: NDArray[np.float64], k: int, first: int) -> None:
        order = np.argsort(-reached, kind="stable")
        order = order[rows[order] >= 0]
        self._rows, self._left = rows[order], -reached[order]
        self._k, self._first = k, max(first, k)
        self._best = np.empty(0)
        self._checked = 0

    def wanted(self) -> Ids:
        """Return the candidates to check next, none if it is enough."""
        begin = self._checked
        if not begin:
            stop = self._first
        elif len(self._best) < self._k:
            stop = 2 * begin
        else:
            stop = min(int(np.searchsorted(self._left, -self._best[0], "right")), begin + max(begin, _LEAST_BLOCK))
        return self._rows[begin:stop]

    def take(self, values: NDArray[np.float64]) -> None:
        """Learn the exact values of the candidates that were `wanted`, in their order."""
        self._checked += len(values)
        self._best = np.sort(np.concatenate([self._best, values]))[-self._k :]


def least(reached: NDArray[np.float64], kth: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many candidates each query checks at least (m,), if they are checked one by one.

    Parameters
    ----------
    reached
        What candidates may reach, (m, c), in their order: descending.
    kth
        The k-th largest of the exact values so far, (m, c), see `running_kth`.
    """
    after = np.concatenate([reached[:, 1:], np.full((len(reached), 1), -np.inf)], axis=1)
    enough = (after < kth) | (after == -np.inf)  # where there are fewer than k, the k-th value is −inf
    count: NDArray[np.int64] = np.minimum(enough.argmax(axis=1) + 1, np.isfinite(reached).sum(axis=1))
    return count


def running_kth(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the k-th largest of the first 1, 2, … of each line's values, (m, c); −inf where there are fewer."""
    best = np.full((len(values), k), -np.inf)
    out = np.empty(values.shape)
    lines = np.arange(len(values))
    for place in range(values.shape[1]):
        lowest = best.argmin(axis=1)
        best[lines, lowest] = np.maximum(best[lines, lowest], values[:, place])
        out[:, place] = best.min(axis=1)
    return out


def losses(
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    values: NDArray[np.float64],
    true: NDArray[np.bool_],
    margins: NDArray[np.float64],
    k: int,
    bounds: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many of its true k each query misses at most, and how many candidates it checks at least, (m, g).

    Parameters
    ----------
    z, weights, bounds
        Of m queries' candidates, (m, c), see `reach`.
    values
        Exact values of the candidates, (m, c).
    true
        Which candidates are among the true k, (m, c).
    margins
        Margins (g,), ascending.
    k
        How many are wanted.
    """
    uniform = bounds is None and bool((weights == 1).all())
    count = _counts_of_cosines if uniform else _counts
    missed, checks = count(z, weights, values, true, margins, k, bounds)
    return np.maximum.accumulate(missed[:, ::-1], axis=1)[:, ::-1], checks


_Counts = tuple[NDArray[np.int64], NDArray[np.int64]]


def _counts_of_cosines(
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    values: NDArray[np.float64],
    true: NDArray[np.bool_],
    margins: NDArray[np.float64],
    k: int,
    bounds: NDArray[np.float64] | None,
) -> _Counts:
    """Return missed and checked candidates (m, g) of cosines, whose order is the same with every margin."""
    order = np.argsort(-z, axis=1, kind="stable")
    lines = np.arange(len(z))[:, None]
    z, values, true = z[lines, order], values[lines, order], true[lines, order]
    with np.errstate(divide="ignore", invalid="ignore"):
        least_z = np.arctanh(np.clip(running_kth(values, k) - EVALUATION, -1, 1))
        enough = least_z[:, :-1] - z[:, 1:]  # margins below this stop here
    enough = np.where(np.isfinite(z[:, 1:]), enough, np.inf)
    most = np.concatenate([np.maximum.accumulate(enough, axis=1), np.full((len(z), 1), np.inf)], axis=1)
    hits = np.concatenate([np.zeros((len(z), 1), np.int64), true.cumsum(axis=1)], axis=1)
    present = np.isfinite(z).sum(axis=1)
    missed, checks = np.empty((2, len(z), len(margins)), np.int64)
    for place, margin in enumerate(margins):
        count = np.minimum((most <= margin).sum(axis=1) + 1, present) if margin < np.inf else present
        checks[:, place] = count
        missed[:, place] = k - np.minimum(k, np.take_along_axis(hits, count[:, None], 1)[:, 0])
    return missed, checks


def _counts(
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    values: NDArray[np.float64],
    true: NDArray[np.bool_],
    margins: NDArray[np.float64],
    k: int,
    bounds: NDArray[np.float64] | None,
) -> _Counts:
    """Return missed and checked candidates (m, g) of any kernel: those that come first suffice mostly."""
    missed, checks = np.empty((2, len(z), len(margins)), np.int64)
    for place, margin in enumerate(margins):
        reached, left, width = reach(z, weights, margin, bounds), np.arange(len(z)), max(_FIRST_WIDTH, 2 * k)
        while len(left):
            some = reached[left]
            whole = width >= z.shape[1]
            first = None if whole else np.argpartition(-some, width - 1, axis=1)[:, :width]
            first = np.broadcast_to(np.arange(z.shape[1]), some.shape) if first is None else np.sort(first, axis=1)
            near = np.take_along_axis(some, first, 1)
            order = np.take_along_axis(first, np.argsort(-near, axis=1, kind="stable"), 1)
            lines = left[:, None]
            count = least(reached[lines, order], running_kth(values[lines, order], k))
            hits = (true[lines, order] & (np.arange(order.shape[1]) < count[:, None])).sum(axis=1)
            done = np.full(len(left), True) if whole else count < width
            checks[left[done], place], missed[left[done], place] = count[done], k - np.minimum(k, hits[done])
            left, width = left[~done], 4 * width
    return missed, checks


def grid(
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    true: NDArray[np.bool_],
    kth: NDArray[np.float64],
    count: int,
) -> NDArray[np.float64]:
    """Return so many margins, ascending, that tell losses apart: the last one is infinite, and checks everything.

    Parameters
    ----------
    z, weights, true
        Of m queries' candidates, (m, c), see `losses`.
    kth
        The true k-th values, (m,).
    count
        How many margins, 3 or more.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = to_z(np.where(weights > 0, kth[:, None] / weights, -1.0)) - z  # to reach the k-th value
    needed = needed[true & np.isfinite(z)]
    if not len(needed):
        return np.concatenate([np.zeros(count - 1), [math.inf]])
    shares = np.concatenate([[0.0], 1 - np.geomspace(1, 1 / len(needed), count - 3), [1.0]])
    found = np.quantile(needed, shares, method="higher")
    found[-1] += 1e-6 + 1e-6 * abs(found[-1])
    return np.concatenate([found, [math.inf]])
