"""Adding rows to inverted lists on many workers: each encodes its shards with a copy of the trained index.

The driver appends the codes in the order of the shards, so that the lists are those that one process would have made.
Finding a row's list takes nearly all the time of adding it, and that is the part that is spread. The lists grow in the
driver's memory, to one and a half times their size at most (`gradindex.lifecycle.plan` says how much that is): FAISS's
lists on disk (`faiss.contrib.ondisk`) are another format, in a second file, so that the index would have other bytes.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.ann.searcher import as_vectors
from gradindex.defaults import BLOCK_ROWS
from gradindex.store import Store
from gradindex.store.layout import SHARDS
from gradindex.store.shard import Shard


def spreads(index: faiss.Index) -> bool:
    """Whether adding to an index is worth spreading: rows of the others are copied as they are, or form a graph."""
    return isinstance(index, faiss.IndexIVF)


def sent(index: faiss.Index) -> NDArray[np.uint8]:
    """Return a trained index as bytes."""
    return faiss.serialize_index(index)


def received(trained: NDArray[np.uint8]) -> faiss.Index:
    """Return the index of `sent`."""
    return faiss.deserialize_index(np.array(trained))


def encode(index: faiss.Index, store: Store, number: int, dim: int) -> NDArray[np.uint8]:
    """Return the list and the code of each row of a shard, (n, bytes), in FAISS's standalone form."""
    shard = Shard(store.path / SHARDS, number, store.header, 0)
    parts = []
    for begin in range(0, len(shard), BLOCK_ROWS):
        rows = shard.read(begin, min(begin + BLOCK_ROWS, len(shard))).astype(np.float32)
        parts.append(index.sa_encode(as_vectors(rows, dim)))
    return np.concatenate(parts)


def append(index: faiss.Index, codes: NDArray[np.uint8]) -> None:
    """Append codes of `encode` to a copy of the same index; rows are numbered on."""
    index.add_sa_codes(np.ascontiguousarray(codes))
