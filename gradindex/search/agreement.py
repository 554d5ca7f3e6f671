"""How far two rankings agree, with intervals: what audits are made of."""

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Ids

CONFIDENCE = 0.95
Estimate = tuple[float, float, float]
"""A mean over queries, and the ends of its 95 % interval."""


def leave_out(rows: Ids, own: Ids) -> Ids:
    """Return rows (m, c − 1): each line without its `own` row, or without its last where that is not there."""
    out = np.empty((len(rows), rows.shape[1] - 1), np.int64)
    for line, (found, this) in enumerate(zip(rows, own, strict=True)):
        out[line] = found[found != this][: out.shape[1]] if (found == this).any() else found[:-1]
    return out


def recalls(truth: Ids, found: Ids, k: int) -> NDArray[np.float64]:
    """Return for each query the share of its true first k that the first k found hold; −1 is no row."""
    pairs = zip(truth[:, :k], found[:, :k], strict=True)
    return np.array([len(np.intersect1d(want[want >= 0], got)) / max(1, (want >= 0).sum()) for want, got in pairs])


def ranks(truth: Ids, found: Ids) -> NDArray[np.float64]:
    """Return for each query Spearman's correlation of its places in two lists, of the rows that are in either.

    A row that one list lacks has the place after its last.
    """
    out = []
    for want, got in zip(truth, found, strict=True):
        every = np.union1d(want[want >= 0], got[got >= 0])
        out.append(spearman(_places(want, every), _places(got, every)))
    return np.array(out)


def _places(order: Ids, rows: Ids) -> NDArray[np.float64]:
    places = {int(row): float(place) for place, row in enumerate(order)}
    return np.array([places.get(int(row), float(len(order))) for row in rows])


def share(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of shares in [0, 1] with Wilson's interval, the queries as trials.

    A share in [0, 1] varies at most as much as a coin of the same mean, so this is on the wide side, and it
    stays honest when every query scores 1.
    """
    from scipy import stats

    n = len(values)
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    p = float(values.mean())
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return p, max(0.0, centre - half), min(1.0, centre + half)


def mean(values: NDArray[np.float64]) -> Estimate:
    """Return the mean with Student's interval."""
    middle = float(values.mean())
    if len(values) < 2:
        return middle, -1.0, 1.0
    from scipy import stats

    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * stats.sem(values))
    return middle, middle - half, middle + half


def spearman(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Spearman's correlation; 0 where one side is constant (a gradient of zero), 1 where both are."""
    from scipy import stats

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.ptp(a) == np.ptp(b) and len(a) == 1)
    return float(stats.spearmanr(a, b).statistic)
