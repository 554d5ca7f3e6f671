"""Nearest neighbours among vectors that are at hand, which are no rows of a store."""

import faiss
import numpy as np
from numpy.typing import NDArray

_ALL_PAIRS = 50_000  # vectors; more are searched in the nearest lists of an inverted file
_PROBES = 16


def nearest_others(vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k nearest other vectors of each one by inner product.

    Of up to 50,000 vectors all pairs are compared; of more, those in the 16 nearest of 4 √n lists.

    Parameters
    ----------
    vectors
        (n, d), of unit norm where cosines are meant.
    k
        How many; with fewer others, as many as there are.

    Returns
    -------
    tuple
        Products (n, k) descending, −inf where fewer were found, and places (n, k), −1 there.
    """
    rows = np.ascontiguousarray(vectors, np.float32)
    count = min(k, len(rows) - 1)
    scores, places = _searched(rows, rows, count + 1)
    return without_own(scores, places, np.arange(len(rows))[:, None], count)


def nearest_to(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k nearest vectors (n, d) of each query (m, d), (m, k), as `nearest_others` does of each other."""
    rows = np.ascontiguousarray(vectors, np.float32)
    scores, places = _searched(rows, np.ascontiguousarray(queries, np.float32), min(k, len(rows)))
    return np.where(places < 0, -np.inf, scores).astype(np.float64), places


def _searched(
    rows: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    index: faiss.Index = faiss.IndexFlatIP(rows.shape[1])
    if len(rows) > _ALL_PAIRS:
        lists = int(4 * np.sqrt(len(rows)))
        index = faiss.IndexIVFFlat(index, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = _PROBES
        index.train(rows)
    index.add(rows)
    scores, places = index.search(queries, k)
    return scores, places.astype(np.int64)


def without_own(
    scores: NDArray[np.floating], ids: NDArray[np.int64], own: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the best k of each row's results (n, ·) that are not the row `own` (n, 1) itself; −1 for none left."""
    known = np.where((ids == own) | (ids < 0), -np.inf, scores).astype(np.float64)
    order = np.argsort(-known, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(known, order, 1)
    return best, np.where(np.isfinite(best), np.take_along_axis(ids, order, 1), np.int64(-1))
