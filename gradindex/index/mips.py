"""Norm-weighted search over the stored rows: the kernels that no unit-norm index can answer.

grad_dot and grad_asym_dot are maximum inner product search, for which inverted lists of unit vectors are
wrong. Here every row is scanned block by block; memory does not grow with the number of rows.
"""

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.kernels import Kernel
from gradindex.store import Store


def scan(
    store: Store,
    queries: NDArray[np.float32],
    query_norms: NDArray[np.float64],
    kernel: Kernel,
    k: int,
    eps: float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k largest estimated kernel values and their rows, (m, k) each, descending.

    Parameters
    ----------
    store
        The stored embeddings.
    queries
        Unit-norm sketches, (m, dim). Negate them for opponents.
    query_norms
        Exact norms of the queries' gradients, (m,).
    kernel
        Any of the three.
    k
        How many, at most the number of rows.
    eps
        Added to the kernel's denominator.
    """
    best = np.full((len(queries), k), -np.inf)
    rows = np.full((len(queries), k), -1, np.int64)
    for start, block in store.blocks():
        norms = store.norms[start : start + len(block)]
        weights = np.stack([kernels.weights(kernel, float(norm), norms, eps) for norm in query_norms])
        found = (queries @ block.T) * weights
        here = np.broadcast_to(np.arange(start, start + len(block)), found.shape)
        best, rows = top(np.hstack([best, found]), np.hstack([rows, here]), k)
    return best, rows


def top(scores: NDArray[np.floating], rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k largest of each line of `scores` (m, n) with their rows, descending; ties by smaller row.

    Scores of −inf sort last whatever their row.
    """
    order = np.lexsort((rows, -scores), axis=1)[:, :k] if scores.shape[1] <= 4 * k else _select(scores, rows, k)
    return np.take_along_axis(scores, order, 1).astype(np.float64), np.take_along_axis(rows, order, 1)


def _select(scores: NDArray[np.floating], rows: NDArray[np.int64], k: int) -> NDArray[np.intp]:
    part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.lexsort((np.take_along_axis(rows, part, 1), -np.take_along_axis(scores, part, 1)), axis=1)
    return np.take_along_axis(part, order, 1)
