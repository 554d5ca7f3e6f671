"""Influence of training samples on classical density estimators, without a gradient and without a refit.

The influence of x_i on z is IF(x_i, z) = ℓ(z; trained without x_i) − ℓ(z; trained), with ℓ the negative log
likelihood: positive for proponents (without them z is less likely), negative for opponents. The forms are those
of Kong & Chaudhuri (2021), "Understanding Instance-based Interpretability of Variational Auto-Encoders",
section 3. Scores are natural logarithms of likelihood ratios; x_i counts itself among its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.data.names import Tree
from gradindex.data.source import Ids
from gradindex.defaults import NEIGHBOURS
from gradindex.errors import missing

Matrix = NDArray[np.float64]

BLOCK_BYTES = 64 << 20  # one block of pairs


class DensityInfluence(ABC):
    """Influence on one estimator fitted to `x`; see the subclasses.

    Parameters
    ----------
    x
        Training samples, (n, d), n ≥ 2; computed with in float64.

    Raises
    ------
    TypeError
        If `x` holds no numbers.
    ValueError
        If `x` is not a matrix of at least 2 rows, or holds NaN or infinity.
    """

    def __init__(self, x: Tree) -> None:
        self.x = _matrix("x", x)
        if len(self) < 2:
            raise ValueError(f"x must have at least 2 rows, so that one can be left out; got {len(self)}.")

    def __len__(self) -> int:
        return len(self.x)

    @abstractmethod
    def loss(self, z: ArrayLike) -> Matrix:
        """Return the negative log likelihood (m,) of test samples z (m, d)."""

    @abstractmethod
    def _influence(self, z: Matrix) -> Matrix:
        """Return the influence (n, c) on a block of test samples (c, d)."""

    @abstractmethod
    def self_influence(self) -> Matrix:
        """Return IF(x_i, x_i) of every training sample, (n,), in bounded memory."""

    def influence(self, z: ArrayLike) -> Matrix:
        """Return the influence (n, m) of every training sample on test samples z (m, d).

        Raises
        ------
        TypeError
            If `z` holds no numbers.
        ValueError
            If `z` is not a matrix of as many columns as the training samples, or holds NaN or infinity.
        """
        z = self._test(z)
        out = np.empty((len(self), len(z)))
        for rows in self._blocks(len(z)):
            out[:, rows] = self._influence(z[rows])
        return out

    def top(self, z: ArrayLike, k: int = NEIGHBOURS) -> tuple[tuple[Matrix, Ids], tuple[Matrix, Ids]]:
        """Return the k strongest proponents and the k strongest opponents of each of z (m, d).

        The matrix of all pairs is never held.

        Returns
        -------
        tuple
            Scores (m, k) descending and positions (m, k) int64 of the proponents; scores ascending and positions
            of the opponents. Equal scores by position.

        Raises
        ------
        TypeError
            If `z` holds no numbers, or `k` is no integer.
        ValueError
            As `influence`, and if k is not between 1 and n.
        """
        k = _count("k", k, len(self), "the number of training samples")
        z = self._test(z)
        sides: tuple[list[Any], list[Any]] = ([], [])
        for rows in self._blocks(len(z)):
            block = np.ascontiguousarray(self._influence(z[rows]).T)
            for side, sign in zip(sides, (-1, 1), strict=True):
                order = np.argsort(sign * block, axis=1, kind="stable")[:, :k]
                side.append((np.take_along_axis(block, order, 1), order.astype(np.int64)))
        empty = [(np.empty((0, k)), np.empty((0, k), np.int64))]
        high, low = (
            (np.concatenate([s for s, _ in side or empty]), np.concatenate([i for _, i in side or empty]))
            for side in sides
        )
        return high, low

    def _test(self, z: ArrayLike) -> Matrix:
        found = _matrix("z", z)
        if found.shape[1] != self.x.shape[1]:
            raise ValueError(f"z has {found.shape[1]} columns, but the training samples have {self.x.shape[1]}.")
        return found

    def _blocks(self, m: int) -> Iterator[slice]:
        size = max(1, BLOCK_BYTES // (8 * len(self)))
        for begin in range(0, m, size):
            yield slice(begin, min(begin + size, m))


class KNNInfluence(DensityInfluence):
    """The k-nearest-neighbour density, p(z) = k / (n V_d R_k(z)^d), with R_k(z) the distance to the k-th neighbour.

    IF(x_i, z) = log((n−1)/n) + d log(R_{k+1}(z) / R_k(z)) for the k nearest neighbours, log((n−1)/n) for all others.

    Parameters
    ----------
    x
        Training samples, (n, d).
    k
        Number of neighbours, from 1 to n − 1. A training sample is its own first neighbour.

    Raises
    ------
    TypeError
        If `x` holds no numbers, or `k` is no integer.
    ValueError
        For bad `x` or `k`; and from every method, where the k nearest neighbours lie at distance 0, since the
        density there is infinite.
    """

    def __init__(self, x: Tree, k: int) -> None:
        super().__init__(x)
        self.k = _count("k", k, len(self) - 1, "one less than the number of training samples")
        self._neighbours: Any = None

    def loss(self, z: ArrayLike) -> Matrix:
        """Return the negative log likelihood (m,) of test samples z (m, d)."""
        from scipy.special import gammaln

        z = self._test(z)
        d = z.shape[1]
        ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)  # log of the unit ball's volume
        _, near, _ = self._nearest(z)
        found: Matrix = np.log(len(self) / self.k) + ball + d * np.log(near)
        return found

    def self_influence(self) -> Matrix:
        """Return IF(x_i, x_i) of every training sample, (n,)."""
        _, near, beyond = self._nearest(self.x)
        found: Matrix = self._score(near, beyond)
        return found

    def _influence(self, z: Matrix) -> Matrix:
        rows, near, beyond = self._nearest(z)
        out = np.full((len(self), len(z)), self._other)
        out[rows.T, np.arange(len(z))] = self._score(near, beyond)
        return out

    @property
    def _other(self) -> float:
        return float(np.log1p(-1 / len(self)))

    def _score(self, near: Matrix, beyond: Matrix) -> Matrix:
        found: Matrix = self._other + self.x.shape[1] * np.log(beyond / near)
        return found

    def _nearest(self, z: Matrix) -> tuple[NDArray[np.int64], Matrix, Matrix]:
        """Return the k neighbours' positions (m, k), and the distances (m,) of the k-th and of the one after it."""
        if self._neighbours is None:
            neighbors = require_sklearn("neighbors")
            self._neighbours = neighbors.NearestNeighbors(n_neighbors=self.k + 1).fit(self.x)
        rows = np.empty((len(z), self.k), np.int64)
        ends = np.empty((2, len(z)))
        size = max(1, BLOCK_BYTES // (8 * (self.k + 1) * self.x.shape[1]))
        for begin in range(0, len(z), size):
            part = slice(begin, begin + size)
            found = self._neighbours.kneighbors(z[part], return_distance=False)
            # The search may have rounded (brute force expands the square), so the distances are taken anew.
            distance = np.linalg.norm(self.x[found] - z[part, None], axis=2)
            order = np.argsort(distance, axis=1, kind="stable")
            rows[part] = np.take_along_axis(found, order, 1)[:, : self.k]
            ends[:, part] = np.take_along_axis(distance, order, 1)[:, self.k - 1 :].T
        if (ends[0] == 0).any():
            raise ValueError(
                f"The {self.k} nearest neighbours of samples {np.flatnonzero(ends[0] == 0)[:10].tolist()} lie at "
                "distance 0, where the density is infinite. Take a larger k, or remove duplicates."
            )
        return rows, ends[0], ends[1]


class KDEInfluence(DensityInfluence):
    """The kernel density p(z) = 1/n Σ_j N(z; x_j, h² I), as scikit-learn's ``KernelDensity`` with its Gaussian kernel.

    IF(x_i, z) = log((n−1)/n) − log(1 − w_i(z)) with w_i(z) = N(z; x_i, h² I) / Σ_j N(z; x_j, h² I).

    Parameters
    ----------
    x
        Training samples, (n, d).
    bandwidth
        h > 0; the same with and without a sample.

    Raises
    ------
    TypeError
        If `x` or `bandwidth` is no number.
    ValueError
        For bad `x`, or a bandwidth that is not positive and finite.
    """

    def __init__(self, x: Tree, bandwidth: float) -> None:
        super().__init__(x)
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float | np.integer | np.floating):
            raise TypeError(
                f"bandwidth must be a number, got {bandwidth!r}. A rule such as 'scott' depends on the number of "
                "samples: give the number it leads to (KernelDensity.bandwidth_)."
            )
        if not 0 < bandwidth < np.inf:
            raise ValueError(f"bandwidth must be positive and finite, got {bandwidth!r}.")
        self.bandwidth = float(bandwidth)

    def loss(self, z: ArrayLike) -> Matrix:
        """Return the negative log likelihood (m,) of test samples z (m, d)."""
        from scipy.special import logsumexp

        z = self._test(z)
        out = np.empty(len(z))
        for rows in self._blocks(len(z)):
            out[rows] = -logsumexp(self._logs(z[rows]), axis=1)
        out += np.log(len(self)) + z.shape[1] * (np.log(2 * np.pi) / 2 + np.log(self.bandwidth))
        return out

    def self_influence(self) -> Matrix:
        """Return IF(x_i, x_i) of every training sample, (n,)."""
        out = np.empty(len(self))
        for rows in self._blocks(len(self)):
            logs = self._logs(self.x[rows])
            out[rows] = self._scores(logs)[np.arange(len(logs)), np.arange(rows.start, rows.stop)]
        return out

    def _influence(self, z: Matrix) -> Matrix:
        scores: Matrix = self._scores(self._logs(z)).T
        return scores

    def _logs(self, z: Matrix) -> Matrix:
        """Return −‖z − x_j‖² / 2h², (c, n)."""
        from scipy.spatial.distance import cdist

        found: Matrix = cdist(z, self.x, "sqeuclidean")
        found *= -0.5 / self.bandwidth**2
        return found

    def _scores(self, logs: Matrix) -> Matrix:
        from scipy.special import logsumexp

        total = logsumexp(logs, axis=1)
        scores: Matrix = -np.log1p(-np.minimum(np.exp(logs - total[:, None]), 0.5))
        # 1 − w cancels where one sample has most of the weight: there the others are added up instead.
        line, column = np.arange(len(logs)), logs.argmax(axis=1)
        heaviest = logs[line, column]
        logs[line, column] = -np.inf
        scores[line, column] = total - logsumexp(logs, axis=1)
        logs[line, column] = heaviest
        scores += np.log1p(-1 / len(self))
        return scores


def require_sklearn(module: str) -> ModuleType:
    """Import a part of scikit-learn; raises ImportError saying what to type."""
    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise missing("scikit-learn", "scikit-learn", "This") from error


def _matrix(name: str, value: object) -> Matrix:
    given = np.asarray(value)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got {given.dtype}.")
    array: Matrix = given.astype(np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be a matrix (samples, features), got shape {array.shape}.")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"{name} holds NaN or infinity in rows {bad[:10].tolist()}.")
    return array


def _count(name: str, value: object, most: int, meaning: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if not 1 <= value <= most:
        raise ValueError(f"{name} must be between 1 and {most} ({meaning}), got {value}.")
    return int(value)
