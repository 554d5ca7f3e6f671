"""Flat search for some queries at once, by one matrix product over FAISS's own vectors.

FAISS compares 8 to 64 queries with 10,000 rows of 1,024 numbers at 1.3 to 2 ms each, as long as one query by itself;
NumPy's product and selection take 0.2 to 0.5 ms (`benchmarks/flat.py`). From 128 queries on FAISS is as fast.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.index.mips import top

QUERIES = range(8, 128)
"""How many at once are searched for faster than by FAISS."""
_ROWS = 16384  # compared at once


def serves(index: Any) -> bool:
    """Whether a FAISS index holds plain vectors compared by inner product."""
    return isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT


def search(index: Any, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return inner products and rows (m, k) of the nearest vectors, descending; missing rows are −1.

    `index` is one that `serves`, `queries` are (m, d) of its width.
    """
    vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    best, rows = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1, np.int64)
    for begin in range(0, len(vectors), _ROWS):
        scores = queries @ vectors[begin : begin + _ROWS].T
        columns = np.flatnonzero((scores > best[:, -1:]).any(axis=0))  # few, after the first rows
        numbers = np.broadcast_to(begin + columns, (len(queries), len(columns)))
        best, rows = top(np.hstack([best, scores[:, columns]]), np.hstack([rows, numbers]), k)
    return best.astype(np.float32), rows
