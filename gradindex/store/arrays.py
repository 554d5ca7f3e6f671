"""Stores of embeddings that were computed elsewhere."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.columns import as_columns
from gradindex.errors import IndexExistsError
from gradindex.store.location import Location, exists, locate
from gradindex.store.publish import Header
from gradindex.store.shard import Rows, normalise
from gradindex.store.store import HEADER, SHARD_BYTES, Store

_END = 1 << 63  # of int64
_NORMS = np.finfo(np.float32)


def write(
    sketch: NDArray[Any],
    ids: NDArray[Any],
    norms: NDArray[Any],
    path: str | Location,
    *,
    columns: Any = None,
    shard_rows: int | None = None,
) -> None:
    """Write a store of embeddings that were computed elsewhere.

    Give it an index with `gradindex.index_store`, and open it with `gradindex.load`: it answers `search`,
    `self_influence` and lookups by id; `explain` needs a job, which it does not have.

    Parameters
    ----------
    sketch
        Embeddings (n, dim), any scale; unit-norm rows are stored, in float16.
    ids
        Distinct integers ≥ 0, (n,).
    norms
        Norms of the unprojected gradients, (n,); where unknown, give those of `sketch`.
    path
        A directory, new or empty.
    columns
        More columns of n entries: a mapping of names to sequences, a DataFrame or an Arrow table.
    shard_rows
        Rows of a shard; None: as many as 128 MiB hold.

    Raises
    ------
    ValueError
        If shapes disagree, ids repeat, are negative or 2**63 and more, or anything holds NaN, infinity or norms beyond
        float32.
    IndexExistsError
        If `path` holds anything.
    """
    sketch, ids, norms = np.asarray(sketch), np.asarray(ids), np.asarray(norms)
    _check_arrays(sketch, ids, norms)
    every = as_columns(columns, len(ids))
    header = Header(
        rows=len(ids),
        shard_rows=shard_rows or max(1, SHARD_BYTES // (2 * sketch.shape[1])),
        dim=sketch.shape[1],
        sketch={"kind": "arrays", "dim": sketch.shape[1]},
        seed=0,
        batch_size=1,
        task="none",
        backend="none",
        parameters=[],
        state=[],
        versions={},
        columns=sorted(every),
    )
    if exists(locate(path) / HEADER):
        raise IndexExistsError(f"{path} already holds a gradindex store; give another directory.")
    store = Store.create(path, header)
    for number in range(header.shards):
        here = slice(*header.span(number))
        rows = normalise(sketch[here]).astype(np.float16)
        some = {name: values[here.start : here.stop] for name, values in every.items()}
        store.write(number, Rows(rows, norms[here].astype(np.float32), ids[here].astype(np.int64), some))


def _check_arrays(sketch: NDArray[Any], ids: NDArray[Any], norms: NDArray[Any]) -> None:
    if sketch.ndim != 2 or not sketch.size or ids.shape != sketch.shape[:1] or norms.shape != ids.shape:
        raise ValueError(
            "Expected sketch (n, dim), ids (n,) and norms (n,) of at least one row, "
            f"got {sketch.shape}, {ids.shape} and {norms.shape}."
        )
    if ids.dtype.kind not in "iu" or (ids < 0).any() or len(np.unique(ids)) < len(ids):
        raise ValueError("ids must be distinct integers ≥ 0.")
    if ids.max() >= _END:
        raise ValueError(f"ids must be less than 2**63, got {ids.max()}: number the rows, and keep yours in a column.")
    if not (np.isfinite(sketch).all() and np.isfinite(norms).all()) or (norms < 0).any():
        raise ValueError("sketch and norms must be finite, and norms not negative.")
    kept = norms[norms > 0]
    if kept.size and not (kept.min() >= _NORMS.tiny and kept.max() <= _NORMS.max):
        raise ValueError(
            f"Expected norms of 0 or from {_NORMS.tiny:.2g} to {_NORMS.max:.2g} (float32), got {kept.min():.2g} to "
            f"{kept.max():.2g}: scale all norms alike. The sketch may have any scale."
        )
