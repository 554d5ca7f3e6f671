"""Norm-weighted search over the stored rows: the kernels that no unit-norm index can answer.

grad_dot and grad_asym_dot are maximum inner product search, for which inverted lists of unit vectors are
wrong. Here rows are scanned in descending order of the Cauchy-Schwarz bound on their kernel value, until no
row that is left can enter the answer; memory holds their order and one block of rows.
"""

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.ann.selection import Selection
from gradindex.data.source import Ids
from gradindex.kernels import Kernel
from gradindex.store import Store

Found = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
_BLOCKS = 1024, 4096  # rows in the first block and at most; blocks double, as most scans stop early
_HELD = 256 << 20  # bytes of mapped pages after which a scan lets go of them, as they count as the process's memory
_SCATTERED = 110 << 10  # bytes that a row maps which has no neighbours: its checksum's block, and what Linux adds
_SLACK = 1.001  # stored rows have norm 1 up to half precision's rounding, 2^-11 relative


def scan(
    store: Store,
    queries: NDArray[np.float32],
    query_norms: NDArray[np.float64],
    kernel: Kernel,
    k: int,
    eps: float = 0.0,
    selection: Selection | None = None,
) -> Found:
    """Return the k largest estimated kernel values, their rows (m, k), descending, and rows scanned (m,).

    The answer is that of a scan of all rows: a query stops where its k-th value exceeds the bound of the rest.

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
    selection
        The rows that may be found; None: all. Where there are fewer than k, the rest are −1 with value −inf.
    """
    rows_in_order = order(store, kernel, eps, selection)
    best = np.full((len(queries), k), -np.inf)
    rows = np.full((len(queries), k), -1, np.int64)
    scanned = np.zeros(len(queries), np.int64)
    active = np.arange(len(queries))
    begin, size, held = 0, _BLOCKS[0], 0
    while begin < len(rows_in_order) and len(active):
        here = np.sort(rows_in_order[begin : begin + size])
        weights = _weights(kernel, query_norms[active], store.norms[here], eps)
        found = (queries[active] @ store.gather(here).T) * weights
        every = np.broadcast_to(here, found.shape)
        best[active], rows[active] = top(np.hstack([best[active], found]), np.hstack([rows[active], every]), k)
        begin, size = begin + len(here), min(2 * size, _BLOCKS[1])
        held += min(len(here) * _SCATTERED, int(here[-1] - here[0] + 1) * store.header.row_bytes)
        if held > _HELD:
            store.release()
            held = 0
        scanned[active] = begin
        if begin < len(rows_in_order):
            left = _weights(kernel, query_norms[active], store.norms[rows_in_order[begin : begin + 1]], eps)[:, 0]
            active = active[best[active, -1] <= _SLACK * left]
    return best, rows, scanned


def order(store: Store, kernel: Kernel, eps: float, selection: Selection | None = None) -> Ids:
    """Return all selected rows by descending bound; kept, since sorting a million takes longer than most scans."""
    key = (kernel, eps)
    if key not in store.orders:
        weights = kernels.weights(kernel, 1.0, store.norms, eps)
        store.orders[key] = np.argsort(-weights, kind="stable").astype(np.int64)
    rows = store.orders[key]
    return rows if selection is None else rows[selection.mask[rows]]


def _weights(
    kernel: Kernel, query_norms: NDArray[np.float64], norms: NDArray[np.float32], eps: float
) -> NDArray[np.float64]:
    return np.stack([kernels.weights(kernel, float(norm), norms, eps) for norm in query_norms])


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
