"""Handing embeddings over: Parquet and FAISS files that vector databases and other programs read.

Vectors are the stored unit-norm sketches: the inner product with a query's (`query_vectors`) estimates the cosine of
the gradients. Removed samples are left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from gradindex.data.names import Tree
from gradindex.defaults import BLOCK_ROWS
from gradindex.errors import IndexExistsError
from gradindex.index.index import Index
from gradindex.store import Store, location
from gradindex.store.location import Location

if TYPE_CHECKING:
    pass

_DTYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class Exported:
    """What was written: rows, Parquet files, bytes of all, and the FAISS file's kind and width."""

    rows: int
    files: tuple[str, ...]
    bytes: int
    factory: str | None = None
    faiss_dim: int | None = None

    def __str__(self) -> str:
        text = f"{self.rows:,} rows in {len(self.files)} file(s), {self.bytes:,} bytes"
        if self.factory is None:
            return text + "."
        return f"{text}; the FAISS file is {self.factory!r} over vectors of {self.faiss_dim} numbers."


def export(
    path: Any, *, parquet: str | Location | None = None, faiss: str | Location | None = None, dtype: str = "float32"
) -> Exported:
    """Write an index's embeddings for other programs.

    Parameters
    ----------
    path
        Directory of the index.
    parquet
        A new or empty directory or a URL, for one Parquet file a shard: ``id`` int64, ``vector`` a list of `dim`
        numbers of unit norm, ``norm`` float32 of the unprojected gradient, and the store's columns, all files with the
        same types. A user's column that is itself called ``vector`` becomes ``user_vector``.
    faiss
        A new file or a URL, for the FAISS index with the samples' ids. Its vectors may be narrower than the stored
        ones: a query's is ``index.searcher``'s folded and scaled to unit norm, see `query_vectors`.
    dtype
        Of the Parquet vectors: ``'float32'``, or ``'float16'``, half as large, which fewer programs read.

    Raises
    ------
    ValueError
        If neither `parquet` nor `faiss` is given, for an unknown `dtype`, or if removed samples cannot be taken out
        of this kind of FAISS index.
    IndexExistsError
        If a target exists.
    """
    if parquet is None and faiss is None:
        raise ValueError("Give a directory for Parquet files, a name for a FAISS file, or both.")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}.")
    index = Index.open(path)
    folder, file = (None if one is None else location.locate(one) for one in (parquet, faiss))
    if (
        folder is not None
        and location.exists(folder)
        and (not location.is_directory(folder) or location.listing(folder))
    ):
        raise IndexExistsError(f"{folder} is there already; give a new or an empty directory.")
    if file is not None and location.exists(file):
        raise IndexExistsError(f"{file} is there already; give a new file.")
    files = []
    if file is not None:  # first, since it may be refused
        _write_faiss(index, file)
        files.append(file)
    if folder is not None:
        location.make_directory(folder)
        files += [_write_shard(index.store, number, folder, dtype) for number in range(len(index.store.shards))]
    bytes_, kind = sum(map(location.size, files)), index.searcher
    alive = len(index.store) if index.store.alive is None else int(index.store.alive.sum())
    about = (None, None) if file is None else (kind.factory, kind.dim)
    return Exported(alive, tuple(map(str, files)), bytes_, *about)


def query_vectors(index: Index, x: Tree = None, y: Tree = None, *, ids: ArrayLike | None = None) -> NDArray[np.float32]:
    """Return the vectors (m, dim), of unit norm, with which to search what was exported.

    Parameters
    ----------
    index
        The index, opened with its job.
    x, y, ids
        Queries as in `Index.explain`.
    """
    return index.sketch(x, y, ids=ids)


def faiss_vectors(index: Index, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of `query_vectors` in the width of the exported FAISS file, (m, faiss_dim)."""
    from gradindex.ann.searcher import as_vectors

    return as_vectors(vectors, index.searcher.dim)


def _write_shard(store: Store, number: int, folder: Location, dtype: str) -> Location:
    """Write one shard's rows as a Parquet file, a block at a time."""
    shard = store.shards[number]
    alive = np.ones(len(shard), bool) if store.alive is None else store.alive[shard.start : shard.stop]
    schema, columns = _schema(store, dtype), store.table(shard)
    path = folder / f"{number:06d}.parquet"
    with location.temporary(folder) as part:
        with pq.ParquetWriter(part, schema) as writer:
            for begin in range(0, len(shard), BLOCK_ROWS):
                keep = begin + np.flatnonzero(alive[begin : begin + BLOCK_ROWS])
                block = shard.read(begin, min(begin + BLOCK_ROWS, len(shard)))
                vectors = np.ascontiguousarray(block[keep - begin], _DTYPES[dtype])
                arrays = [
                    pa.array(shard.ids[keep]),
                    pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=schema.field("vector").type),
                    pa.array(shard.norms[keep]),
                    *columns.take(pa.array(keep)).columns,
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        location.move(part, path)
    return path


def _schema(store: Store, dtype: str) -> pa.Schema:
    """Return names and types of what is written: the same in all files, whatever a shard holds."""
    vector = pa.list_(pa.from_numpy_dtype(_DTYPES[dtype]), store.header.dim)
    own = [("id", pa.int64()), ("vector", vector), ("norm", pa.float32())]
    taken = {name for name, _ in own} | set(store.schema.names)
    for name, kind in zip(store.schema.names, store.schema.types, strict=True):
        new = name
        while new in {one for one, _ in own} or (new != name and new in taken):  # a user's own "vector"
            new = f"user_{new}"
        own.append((new, kind))
    return pa.schema(own)


def _write_faiss(index: Index, path: Location) -> None:
    """Write the FAISS index with ids for rows, and without removed rows."""
    import faiss

    from gradindex.ann import files as index_files

    store = index.store
    found = index_files.load(store, mapped=False).index  # a copy of its own: it is changed, and a mapped one cannot be
    alive = store.alive
    lists: Any = faiss.try_extract_index_ivf(found)
    if lists is not None:
        _renumber(lists, np.asarray(store.ids), alive)
        found.ntotal = lists.ntotal
    else:
        if alive is not None and not isinstance(found, faiss.IndexFlatCodes):
            raise ValueError(
                f"Removed samples cannot be taken out of an index {index.searcher.factory!r}. Compact it first, or "
                "export Parquet only."
            )
        if alive is not None:
            found.remove_ids(np.flatnonzero(~alive).astype(np.int64))
        named: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(found.d))  # takes an empty index only
        named.index = found
        faiss.copy_array_to_vector(np.asarray(store.ids if alive is None else store.ids[alive]), named.id_map)
        named.ntotal = found.ntotal
        named.construct_rev_map()
        found = named
    location.make_directory(path.parent)
    with location.temporary(path.parent) as part:
        faiss.write_index(found, str(part))
        location.move(part, path)


def _renumber(lists: Any, ids: NDArray[np.int64], alive: NDArray[np.bool_] | None) -> None:
    """Put ids in the place of rows in inverted lists, and drop removed rows."""
    import faiss

    old, size = lists.invlists, lists.code_size
    new: Any = faiss.ArrayInvertedLists(lists.nlist, size)
    total = 0
    for number in range(lists.nlist):
        count = old.list_size(number)
        if not count:
            continue
        rows = faiss.rev_swig_ptr(old.get_ids(number), count).copy()
        codes = faiss.rev_swig_ptr(old.get_codes(number), count * size).reshape(count, size).copy()
        if alive is not None:
            rows, codes = rows[alive[rows]], np.ascontiguousarray(codes[alive[rows]])
        named = np.ascontiguousarray(ids[rows])
        if len(named):
            new.add_entries(number, len(named), faiss.swig_ptr(named), faiss.swig_ptr(codes))
        total += len(named)
    lists.replace_invlists(new, True)
    new.this.disown()
    lists.ntotal = total
