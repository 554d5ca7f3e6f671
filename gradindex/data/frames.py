"""Data frames and tables as samples: pandas, polars, Arrow, and whatever has Arrow's C stream interface."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradindex.data import hugging_face
from gradindex.data.columns import read_stream
from gradindex.data.layouts import plain_type
from gradindex.data.names import Leaf, Tree
from gradindex.data.samples import column as as_column

SHOWN = 64
"""Numbers of a row of a table that are shown by name; of longer rows the first ones are shown by position."""


@dataclass(frozen=True)
class Samples:
    """What a table holds, for a job.

    Parameters
    ----------
    dataset
        Inputs and labels.
    columns
        What else is known of the samples.
    class_names
        Names of the classes, where the labels are texts or categories.
    """

    dataset: Tree
    columns: pa.Table | None
    class_names: list[str] | None
    named: "NamedRows | None" = None


@dataclass(frozen=True)
class NamedRows:
    """Rows of numbers (n, columns) with the names of their columns: what a sample of a table looks like."""

    names: tuple[str, ...]
    numbers: NDArray[np.generic]

    def __call__(self, i: int) -> dict[str, float]:
        """Return row i by name."""
        return dict(zip(self.names, self.numbers[i].tolist(), strict=True))


def samples(
    table: object, x: str | Sequence[str], y: str | None = None, columns: Sequence[str] | None = None
) -> Samples:
    """Return a table's rows as samples; see `gradindex.Job.from_table`."""
    wanted = [x] if isinstance(x, str) else list(x)
    if not wanted:
        raise ValueError("x must name at least one column.")
    if twice := [name for name in [*wanted, y] if name is not None and [*wanted, y].count(name) > 1]:
        raise ValueError(f"Column {twice[0]!r} is named twice: name each once, as an input or as the label.")
    if hugging_face.is_dataset(table):
        return _of_hugging_face(table, x, y, columns)
    found = as_table(table)
    kept = _others(found.column_names, [*wanted, *([] if y is None else [y])], columns)
    inputs = _input(found, x) if isinstance(x, str) else _matrix(found, wanted)
    named = None
    if not isinstance(x, str) and len(wanted) <= SHOWN:
        named = NamedRows(tuple(wanted), np.asarray(inputs))
    labels, names = (None, None) if y is None else _labels(found.column(y), y)
    return Samples((inputs,) if y is None else (inputs, labels), found.select(kept) if kept else None, names, named)


def as_table(frame: object) -> pa.Table:
    """Return a data frame or table as Arrow's; raises TypeError for anything else."""
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "iloc") and hasattr(frame, "columns"):
        names = [str(name) for name in frame.columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"There are several columns {twice[0]!r}: rename them, or leave some out.")
        try:
            return pa.Table.from_pandas(frame, preserve_index=False)
        except pa.ArrowException as error:
            said = ". ".join(map(str, error.args))
            raise TypeError(f"A column holds values of several kinds, or of none that Arrow has: {said}.") from None
    if hasattr(frame, "__arrow_c_stream__"):
        with contextlib.suppress(TypeError, pa.ArrowException):  # of a column, which has the same interface
            return read_stream(frame)
    raise TypeError(
        f"Expected a table (pandas, polars, Arrow, datasets.Dataset) with a row a sample, got {type(frame).__name__}."
    )


def _others(names: Sequence[str], used: list[str], columns: Sequence[str] | None) -> list[str]:
    """Return the columns that are carried beside; raises ValueError for one that is not there, or twice."""
    if columns is None:
        columns = [name for name in names if name not in used]
    for name in (*used, *columns):
        if list(names).count(name) != 1:
            there = "is no column" if name not in names else "are several columns"
            raise ValueError(f"There {there} {name!r}; the table has {', '.join(map(repr, names))}.")
    return list(columns)


def _of_hugging_face(dataset: Tree, x: str | Sequence[str], y: str | None, columns: Sequence[str] | None) -> Samples:
    """Return a ``datasets.Dataset`` as it is read elsewhere, row by row, and its other columns."""
    names = list(dataset.column_names)
    wanted = [x] if isinstance(x, str) else list(x)
    source = hugging_face.source(dataset, x, y)
    y = hugging_face.label_column(names, y)
    kept = _others(names, [*wanted, y], columns)
    table = dataset.select_columns(kept).with_format("arrow")[:] if kept else None
    return Samples(source, table, getattr(dataset.features[y], "names", None))


def _input(table: pa.Table, name: str) -> Leaf:
    """Return one column as inputs: numbers (n,), lists (n, …) or of several lengths, or texts."""
    values = table.column(name)
    kind = values.type
    if values.null_count:
        raise _gap(name, values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.to_pylist()
    if _is_number(kind):
        return _numbers(values, name)
    kind = plain_type(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _single(as_column([np.array(one) for one in values.to_pylist()], name))
    raise TypeError(f"Column {name!r} holds {kind}: inputs are numbers, lists of numbers, or texts.")


def _matrix(table: pa.Table, names: Sequence[str]) -> Leaf:
    """Return columns of numbers side by side, (n, columns)."""
    for name in names:
        if not _is_number(table.column(name).type):
            raise TypeError(
                f"Column {name!r} holds {table.column(name).type}: several inputs side by side are numbers. Encode it, "
                "or name it in columns."
            )
    return _single(np.stack([_numbers(table.column(name), name) for name in names], axis=1))


def _numbers(values: pa.ChunkedArray, name: str) -> Leaf:
    if values.null_count:
        raise _gap(name, values)
    return _single(values.to_numpy())


def _single(leaf: Leaf) -> Leaf:
    """Return numbers as models take them: floats in single precision, truth values as integers."""
    if isinstance(leaf, list):
        return [_single(one) for one in leaf]
    if leaf.dtype == np.float64:
        return leaf.astype(np.float32)
    return leaf.astype(np.int64) if leaf.dtype.kind == "b" else leaf


def _labels(values: pa.ChunkedArray, name: str) -> tuple[Leaf, list[str] | None]:
    """Return labels, and the names of the classes where they are texts or categories, which become numbers from 0."""
    if values.null_count:
        raise _gap(name, values)
    kind = values.type
    if _is_number(kind):
        numbers = _numbers(values, name)
        return numbers.astype(np.int64) if numbers.dtype.kind in "iu" else numbers, None
    if pa.types.is_dictionary(kind):  # categories have an order of their own
        whole = values.unify_dictionaries().combine_chunks()
        whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
        numbers = whole.indices.to_numpy(zero_copy_only=False)
        return numbers.astype(np.int64), [str(one) for one in whole.dictionary.to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        names, which = np.unique(np.array(values.to_pylist(), object), return_inverse=True)
        return which.astype(np.int64), names.tolist()
    raise TypeError(f"Column {name!r} holds {kind}: labels are numbers, texts or categories.")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _gap(name: str, values: pa.ChunkedArray) -> ValueError:
    gone = np.flatnonzero(values.is_null().to_numpy())[:10].tolist()
    return ValueError(f"Column {name!r} has no value in rows {gone}. Fill it, or leave these rows out.")
