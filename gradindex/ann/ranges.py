"""The rows whose inner product with a query may reach a bound, by FAISS's range search over the rows it holds.

What FAISS compares may be rounded (to 8 bits, say). With x̂ the vector that it holds in the place of a stored row x,
⟨q, x⟩ ≤ ⟨q, x̂⟩ + ‖x − x̂‖ for every q of unit norm, so that a search for all ⟨q, x̂⟩ above the bound less the largest
‖x − x̂‖ finds all rows that reach it. That is measured once, over what FAISS holds, and kept in the index's manifest.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.ann import files as index_files
from gradindex.ann.searcher import Searcher, inverted
from gradindex.data.source import Ids
from gradindex.defaults import BLOCK_ROWS
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.store import Store

KEY = "rounding"
_ALL_BUT = 1e-3  # of the rows: those that are rounded worst are always found, and do not widen the search
_SINGLE = 2.0**-24

library: Any = faiss


@dataclass(frozen=True)
class Rounding:
    """`error` bounds ‖x − x̂‖ of all rows but `worse` (r,) int64."""

    error: float
    worse: Ids


def serve(store: Store, searcher: Searcher) -> bool:
    """Whether FAISS can search ranges of what it holds, and tell what that is: flat rows and lists, also of codes."""
    kinds = faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer
    return searcher.dim == store.header.dim and isinstance(searcher.index, kinds)


def within(store: Store, searcher: Searcher, query: NDArray[np.float32], bound: float) -> Ids:
    """Return all rows whose stored sketch has an inner product of at least `bound` with `query` (dim,), of unit norm.

    And some more: those that only may. Ascending.
    """
    found = rounding(store, searcher)
    radius = bound - found.error - len(query) * _SINGLE
    ivf = inverted(searcher.index)
    everywhere = None if ivf is None else library.IVFSearchParameters(nprobe=ivf.nlist)
    _, _, rows = searcher.index.range_search(query[None], np.nextafter(np.float32(radius), -4), params=everywhere)
    return np.union1d(rows, found.worse).astype(np.int64)


def rounding(store: Store, searcher: Searcher) -> Rounding:
    """Return how far what FAISS holds is from the store's rows; measured if the index's manifest does not say.

    The index that is open may not be the one that lies on disk by now: what is kept names the file it is of.
    """
    if KEY not in searcher.found:
        searcher.found[KEY] = _saved(store, searcher.file) or _measured(store, searcher)
    found: Rounding = searcher.found[KEY]
    return found


def _saved(store: Store, file: str) -> Rounding | None:
    try:
        saved = index_files.annotation(store, KEY)
    except DamagedIndexError:  # of other rows by now
        return None
    if not isinstance(saved, dict) or saved.get("file") != file:
        return None
    return Rounding(float(saved["error"]), np.array(saved["worse"], np.int64))


def _measured(store: Store, searcher: Searcher) -> Rounding:
    errors = _errors(store, searcher)
    count = int(_ALL_BUT * len(errors))
    worse = np.sort(np.argpartition(-errors, count)[:count]) if count else np.empty(0, np.int64)
    error = float(np.delete(errors, worse).max(initial=0)) * (1 + 1e-6)
    # A store that may only be read, or has other rows by now, or was replaced.
    with contextlib.suppress(OSError, DamagedIndexError, MismatchError):
        index_files.annotate(store, KEY, {"file": searcher.file, "error": error, "worse": worse.tolist()})
    return Rounding(error, worse.astype(np.int64))


def _errors(store: Store, searcher: Searcher) -> NDArray[np.float64]:
    """Return ‖x − x̂‖ (n,) of all rows; infinite for one that FAISS does not hold."""
    errors = np.full(len(store), np.inf)
    for rows, vectors in _held(searcher.index):
        errors[rows] = np.linalg.norm(store.gather(rows).astype(np.float64) - vectors, axis=1)
    store.release()
    return errors


def _held(index: faiss.Index) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
    """Yield rows and the vectors that an index holds in their place, by blocks."""
    ivf = inverted(index)
    if ivf is None:
        for begin in range(0, index.ntotal, BLOCK_ROWS):
            count = min(BLOCK_ROWS, index.ntotal - begin)
            yield np.arange(begin, begin + count, dtype=np.int64), index.reconstruct_n(begin, count)
        return
    lists, width = ivf.invlists, ivf.code_size
    for number in range(ivf.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        rows = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * width).reshape(size, width)
        prefix = np.frombuffer(number.to_bytes(8, "little"), np.uint8)[: ivf.coarse_code_size()]
        for begin in range(0, size, BLOCK_ROWS):
            some = codes[begin : begin + BLOCK_ROWS]
            whole = np.hstack([np.broadcast_to(prefix, (len(some), len(prefix))), some])
            yield rows[begin : begin + BLOCK_ROWS], ivf.sa_decode(np.ascontiguousarray(whole))
