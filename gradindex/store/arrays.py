"""Stores of embeddings that were computed elsewhere."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.columns import as_columns
from gradindex.sketch.unit_rows import normalise
from gradindex.store.manifest import Header
from gradindex.store.shard import SHARD_BYTES, Rows

_END = 1 << 63  # of int64
_NORMS = np.finfo(np.float32)


def as_rows(
    sketch: NDArray[np.generic],
    ids: NDArray[np.generic],
    norms: NDArray[np.generic],
    columns: object = None,
    shard_rows: int | None = None,
) -> tuple[Header, Iterator[Rows]]:
    """Return the header of a store and the rows of its shards; see `gradindex.Store.from_arrays`.

    Raises
    ------
    ValueError
        If they are no such arrays.
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

    def shards() -> Iterator[Rows]:
        for number in range(header.shards):
            here = slice(*header.span(number))
            rows = normalise(sketch[here]).astype(np.float16)
            some = {name: values[here.start : here.stop] for name, values in every.items()}
            yield Rows(rows, norms[here].astype(np.float32), ids[here].astype(np.int64), some)

    return header, shards()


def check_signed(ids: NDArray[Any], rows: int) -> None:
    """Raise IndexError for unsigned ids of 2**63 and more, which would turn negative."""
    if ids.dtype == np.uint64 and (ids >> np.uint64(63)).any():
        raise IndexError(f"Ids up to {ids.max()} are out of range for an index of {rows} samples.")


def _check_arrays(sketch: NDArray[Any], ids: NDArray[Any], norms: NDArray[Any]) -> None:
    if sketch.ndim != 2 or not sketch.size or ids.shape != sketch.shape[:1] or norms.shape != ids.shape:
        raise ValueError(
            "Expected sketch (n, dim), ids (n,) and norms (n,) of at least one row, "
            f"got {sketch.shape}, {ids.shape} and {norms.shape}."
        )
    if "c" in sketch.dtype.kind + norms.dtype.kind:
        raise ValueError("sketch and norms are complex: give real numbers, such as the real and imaginary parts.")
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
