"""A user's own columns, which travel with the rows: any table to Arrow arrays that Parquet keeps as they are."""

import datetime
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradindex.data import hugging_face
from gradindex.data.layouts import plain, plain_type
from gradindex.data.plain import json_values

RESERVED = frozenset(
    {"id", "norm", "loss", "label", "prediction", "rounding", "query", "side", "rank", "score", "exact"}
)
_NOT_SORTED = (Set, Mapping, str, bytes)  # Arrow would take their elements, in some order, or their letters


def as_columns(columns: Any, rows: int) -> dict[str, pa.Array]:
    """Return columns as Arrow arrays of `rows` entries by name.

    Parameters
    ----------
    columns
        None, a mapping of names to sequences, a pandas or polars DataFrame, an Arrow table or a ``datasets.Dataset``.
    rows
        How many entries each must have.

    Raises
    ------
    ValueError
        If they have no names, a name is reserved or there twice, a length differs, or Arrow or Parquet has no type for
        the values.
    """
    if columns is None:
        return {}
    if isinstance(columns, pa.RecordBatchReader):
        raise ValueError("A RecordBatchReader can be read only once: give the table of its .read_all().")
    if hugging_face.is_dataset(columns):
        columns = columns.with_format("arrow")[:]
    if hasattr(columns, "__arrow_c_stream__") and not hasattr(columns, "iloc"):  # of a pandas one, columns alone
        columns = read_stream(columns)
    if hasattr(columns, "column_names"):
        if twice := sorted({name for name in columns.column_names if columns.column_names.count(name) > 1}):
            raise ValueError(f"There are several columns {twice[0]!r}: rename them, or leave some out.")
        columns = {name: columns.column(name) for name in columns.column_names}
    if not (isinstance(columns, Mapping) or hasattr(columns, "iloc")):
        collected = " Give its .collect()." if hasattr(columns, "collect") else ""
        raise ValueError(
            "Expected columns by name, a mapping such as {'source': [...]} or a data frame, got a "
            f"{type(columns).__name__}.{collected}"
        )
    found = {}
    for name in columns:
        if not isinstance(name, str) or name in RESERVED:
            raise ValueError(f"A column may not be called {name!r}; taken are {', '.join(sorted(RESERVED))}.")
        try:
            array = to_arrow(columns[name])
            _check(name, array)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"Column {name!r} cannot be stored: {error}") from None
        if len(array) != rows:
            raise ValueError(f"Column {name!r} has {len(array)} entries, the dataset {rows} samples.")
        found[name] = array
    return found


def read_stream(frame: object) -> pa.Table:
    """Return what has Arrow's C stream interface as a table.

    Raises
    ------
    ValueError
        If it holds polars' objects, which are addresses in memory to Arrow; names these.
    TypeError, pyarrow.ArrowException
        If it is no table.
    """
    schema = getattr(frame, "schema", None)
    for name, kind in schema.items() if isinstance(schema, Mapping) else ():
        _refuse_addresses(kind, f"Column {name!r}")
    return pa.table(frame)


def _refuse_addresses(kind: object, what: str) -> None:
    """Raise ValueError for polars' type of objects."""
    if str(kind) == "Object":
        raise ValueError(f"{what} holds Python's objects: give texts or numbers, or leave it out.")


def to_arrow(values: Any) -> pa.Array:
    """Return a sequence, an array, a Series or a tensor as an Arrow array.

    Raises
    ------
    TypeError, ValueError, OverflowError, pyarrow.ArrowException
        If Arrow has no type that holds all values as they are.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return plain(one_chunk(values))
    if hasattr(values, "__arrow_c_stream__") and not hasattr(values, "__arrow_array__"):  # polars
        _refuse_addresses(getattr(values, "dtype", None), "it")
        return plain(one_chunk(pa.chunked_array(values)))
    if isinstance(values, Iterator):
        raise TypeError(f"a {type(values).__name__} can be read only once: give a list of it.")
    if isinstance(values, _NOT_SORTED):
        raise TypeError(f"expected a sequence with an entry a sample, got a {type(values).__name__}.")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if hasattr(values, "numpy"):
        values = values.numpy()
    if isinstance(values, np.ndarray):
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.dtype.kind in "mM" and np.datetime_data(values.dtype)[0] in ("h", "m"):
            values = values.astype(f"{values.dtype.kind}8[s]")  # Arrow has no hours and minutes
    array = one_chunk(_inferred(values))
    if str(getattr(values, "dtype", "object")) != "object":
        return array
    _refuse_mixtures(values, array.type)
    return _with_nanoseconds(values, array)


def _inferred(values: object) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(values)
    except OverflowError:  # above 2**63
        return pa.array(values, pa.uint64())
    except (pa.ArrowException, TypeError, ValueError):  # NaN or NaT among texts or times
        return pa.array(values, from_pandas=True)


def _with_nanoseconds(values: Any, array: pa.Array) -> pa.Array:
    """Return times and durations with the nanoseconds that pandas' have, and that Arrow takes off those in a list."""
    kind = array.type
    if pa.types.is_timestamp(kind) and any(getattr(value, "nanosecond", 0) for value in values):
        return pa.array(values, pa.timestamp("ns", kind.tz), from_pandas=True)
    if pa.types.is_duration(kind) and any(getattr(value, "nanoseconds", 0) for value in values):
        return pa.array(values, pa.duration("ns"), from_pandas=True)
    return array


def one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return an array in one piece."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _refuse_mixtures(values: Any, kind: pa.DataType) -> None:
    """Raise ValueError where Arrow makes one type of several: a time's date, bytes of a text, UTC of a local time."""
    temporal = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if not (temporal or pa.types.is_binary(kind)):
        return
    kinds = {_kind(value) for value in values if not is_missing(value)}
    if len(kinds) > 1:
        raise ValueError(f"it mixes {' and '.join(sorted(kinds))}.")


def _kind(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return "times without a zone" if value.tzinfo is None else "times with a zone"
    if isinstance(value, datetime.date):
        return "dates"
    return f"{type(value).__name__}"


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, or what NumPy and pandas have for it."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating | np.datetime64 | np.timedelta64) and bool(value != value)


def _check(name: str, array: pa.Array) -> None:
    """Raise unless Parquet and JSON have a form for such values."""
    if isinstance(array.type, pa.BaseExtensionType):
        raise TypeError(f"Arrow's extension type {array.type} is not kept; give its values as texts or numbers.")
    pq.write_table(pa.table({name: array.slice(0, 1)}), pa.BufferOutputStream())
    json_values(array.slice(0, 1))


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns that all of these have, in types that hold the values of all.

    Raises
    ------
    ValueError
        If there is none for a column; names it.
    """
    names = [name for name in schemas[0].names if all(name in schema.names for schema in schemas)]
    return pa.schema([(name, _common_type(name, {schema.field(name).type for schema in schemas})) for name in names])


def _common_type(name: str, types: set[pa.DataType]) -> pa.DataType:
    types = {plain_type(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind) for kind in types}
    types = {_wide(kind) if pa.types.is_dictionary(kind) else kind for kind in types}
    if len(types) > 1:
        types = {kind.value_type if pa.types.is_dictionary(kind) else kind for kind in types}
    try:
        schemas = [pa.schema([(name, kind)]) for kind in sorted(types, key=str)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        raise ValueError(f"The values of column {name!r} have types that do not go together: {error}") from None


def _wide(kind: pa.DataType) -> pa.DataType:
    """Return a type of categories that holds those of several files together."""
    return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)


def fitted(columns: Mapping[str, pa.Array], stored: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """Return columns with the types that they have in a store, so that all its files have the same.

    Raises
    ------
    ValueError
        If a column's values are not of the stored type; names it.
    """
    found = {}
    for name, array in columns.items():
        kind = stored.get(name, array.type)
        try:
            found[name] = array if pa.types.is_null(kind) else one_chunk(array.cast(kind))
        except pa.ArrowException as error:
            raise ValueError(f"Column {name!r} holds {kind}, the new samples do not fit: {error}") from None
    return found


def extended(columns: object, rows: int, more: object, more_rows: int) -> dict[str, pa.Array] | None:
    """Return columns of `rows` and of `more_rows` entries one behind the other; None if there are none.

    Raises
    ------
    ValueError
        If they have other names, or types that do not go together.
    """
    first, second = as_columns(columns, rows), as_columns(more, more_rows)
    if set(first) != set(second):
        raise ValueError(f"Expected columns {sorted(first)} for the new samples, too, got {sorted(second)}.")
    second = fitted(second, {name: array.type for name, array in first.items()})
    return {name: _joined(first[name], second[name]) for name in first} or None


def _joined(first: pa.Array, second: pa.Array) -> pa.Array:
    kind = _wide(second.type) if pa.types.is_dictionary(second.type) else second.type
    return one_chunk(pa.chunked_array([first.cast(kind), second.cast(kind)]))
