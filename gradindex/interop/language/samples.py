"""Encoded texts of unequal lengths as a job's dataset: in memory, or in one Arrow file that is mapped, not read."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradindex.data.names import Leaf
from gradindex.data.source import Batch, Ids, Source
from gradindex.store import location

_AT_ONCE = 1024  # samples in a record batch
_X, _Y, _SHAPE, _OWN = "x.", "y", ".shape", "column."
_CUT, _COUNTED = "truncated", "counted"
_KEY, _AXES = b"gradindex.settings", b"gradindex.axes"


@dataclass(frozen=True)
class Sample:
    """One encoded text: inputs `x` by name and labels `y`, without an axis of samples.

    `counted`: how many tokens have a loss; `truncated`: whether tokens were cut off; `columns`: what else is known.
    """

    x: Mapping[str, NDArray[np.generic]]
    y: NDArray[np.generic]
    counted: int = 1
    truncated: bool = False
    columns: Mapping[str, object] = field(default_factory=dict)


class TextSamples(Source):
    """Encoded texts in their order.

    Inputs and labels with an axis of tokens are lists of arrays, also where their lengths agree by chance: queries may
    then have any length.

    Parameters
    ----------
    table
        What `kept` wrote.
    path
        The file that it is mapped from; None in memory.
    """

    def __init__(self, table: pa.Table, path: Path | None = None) -> None:
        self._table, self._path = table, path
        self._axes: dict[str, int] = json.loads(table.schema.metadata[_AXES])

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Pickle the path of a mapped file in the place of what it holds."""
        return (_mapped, (self._path,)) if self._path is not None else (TextSamples, (self._table,))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        self._check(ids)
        x = {name.removeprefix(_X): self._column(name, ids) for name in self._axes if name.startswith(_X)}
        return Batch(ids, x, self._column(_Y, ids))

    @property
    def truncated(self) -> Ids:
        """The ids of samples that were cut."""
        return np.flatnonzero(self._table.column(_CUT).to_numpy()).astype(np.int64)

    @property
    def columns(self) -> dict[str, pa.ChunkedArray]:
        """The users' columns that were read along with the texts."""
        names = [name for name in self._table.column_names if name.startswith(_OWN)]
        return {name.removeprefix(_OWN): self._table.column(name) for name in names}

    @property
    def without_loss(self) -> Ids:
        """The ids of samples that have no token with a loss: their gradients are zero."""
        return np.flatnonzero(self._table.column(_COUNTED).to_numpy() == 0).astype(np.int64)

    def _column(self, name: str, ids: Ids) -> Leaf:
        lists = self._table.column(name).take(pa.array(ids)).combine_chunks()
        values, offsets = _flat(lists)
        flat, bounds = values.to_numpy(zero_copy_only=False).copy(), offsets.to_numpy()  # Arrow's own are read-only
        parts = [flat[bounds[i] : bounds[i + 1]] for i in range(len(ids))]
        axes = self._axes[name]
        if axes == 0:
            return np.concatenate(parts) if parts else flat
        if axes > 1:
            shapes = self._table.column(name + _SHAPE).take(pa.array(ids)).to_pylist()
            parts = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return parts


def _flat(lists: pa.Array) -> tuple[pa.Array, pa.Array]:
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    return lists.values, lists.offsets


def kept(
    samples: Iterable[Sample], cache: str | Path | None = None, settings: Mapping[str, object] | None = None
) -> TextSamples:
    """Return samples as a source, once all of them were read.

    Parameters
    ----------
    samples
        The samples in their order; read once, and not at all if the file is there.
    cache
        A file to keep them in, which is mapped from then on; None: memory.
    settings
        What the samples were made with, to notice a file that was made otherwise.

    Raises
    ------
    ValueError
        If there are no samples, they differ in their parts, or the file was made with other settings.
    """
    path = None if cache is None else location.on_disk(cache, "A cache of texts")
    key = json.dumps(dict(settings or {}), sort_keys=True, default=str).encode()
    if path is not None and path.exists():
        found = _mapped(path)
        if found._table.schema.metadata.get(_KEY) != key:
            raise ValueError(
                f"{path} holds texts that were encoded with other settings: expected {key.decode()}, found "
                f"{found._table.schema.metadata.get(_KEY, b'none').decode()}. Name another file, or delete this one."
            )
        return found
    batches = _batches(samples, key)
    first = next(batches, None)
    if first is None:
        raise ValueError("The dataset is empty: there is nothing to embed.")
    if path is None:
        return TextSamples(pa.Table.from_batches([first, *batches]))
    location.make_directory(path.parent)
    with location.temporary(path.parent) as part:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        location.move(part, path)
    return _mapped(path)


def _mapped(path: Path) -> TextSamples:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return TextSamples(table, path)
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no cache of texts ({error}). Name another file, or delete this one.") from error


def _batches(samples: Iterable[Sample], key: bytes) -> Iterator[pa.RecordBatch]:
    schema: pa.Schema | None = None
    block: list[Sample] = []
    for sample in samples:
        block.append(sample)
        if len(block) == _AT_ONCE:
            batch = _Block(block).batch(schema, key)
            schema, block = batch.schema, []
            yield batch
    if block:
        yield _Block(block).batch(schema, key)


class _Block:
    """Some samples, on the way to Arrow."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        first = samples[0]
        self._samples = samples
        for sample in samples:
            if sample.x.keys() != first.x.keys():
                raise ValueError(
                    f"Some samples have the inputs {sorted(sample.x)}, others {sorted(first.x)}. Give all the same."
                )
        self._leaves = {_X + name: [sample.x[name] for sample in samples] for name in first.x}
        self._leaves[_Y] = [sample.y for sample in samples]

    def batch(self, schema: pa.Schema | None, key: bytes) -> pa.RecordBatch:
        """Return the samples as a record batch of a schema, or of one found from them."""
        arrays: dict[str, pa.Array] = {}
        axes = {name: parts[0].ndim for name, parts in self._leaves.items()}
        for name, parts in self._leaves.items():
            if wrong := next((part.ndim for part in parts if part.ndim != axes[name]), None):
                raise ValueError(f"{name} has {axes[name]} axes in some samples, {wrong} in others.")
            bounds = np.cumsum([0, *(part.size for part in parts)]).astype(np.int32)
            flat = np.concatenate([part.ravel() for part in parts])
            arrays[name] = pa.ListArray.from_arrays(pa.array(bounds), pa.array(flat))
            if axes[name] > 1:
                arrays[name + _SHAPE] = pa.array([list(part.shape) for part in parts], pa.list_(pa.int64()))
        arrays[_CUT] = pa.array([int(sample.truncated) for sample in self._samples], pa.int32())
        arrays[_COUNTED] = pa.array([sample.counted for sample in self._samples], pa.int32())
        for name in self._samples[0].columns:
            kind = None if schema is None else schema.field(_OWN + name).type
            arrays[_OWN + name] = pa.array([sample.columns.get(name) for sample in self._samples], kind)
        metadata = {_AXES: json.dumps(axes).encode(), _KEY: key}
        found = pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))
        if schema is not None and found.schema != schema:
            found = found.cast(schema) if hasattr(found, "cast") else found
        return found.replace_schema_metadata(metadata)
