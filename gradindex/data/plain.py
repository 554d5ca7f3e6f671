"""Arrow's values as JSON has them, and back."""

import base64
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def json_type(kind: pa.DataType) -> pa.DataType:
    """Return the Arrow type of what JSON holds: times, dates and decimals are texts, durations counts of their unit."""
    if pa.types.is_dictionary(kind):
        return json_type(kind.value_type)
    if pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(json_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(json_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(json_type(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(json_type(kind.key_type), json_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, json_type(field.type)) for field in kind])
    return kind


def json_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return values as JSON has them: texts and numbers; bytes in base64; None for what is missing or NaN.

    Infinities are the texts that `float` reads, "inf" and "-inf".
    """
    return [_plain(value) for value in array.cast(json_type(array.type)).to_pylist()]


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def from_json_values(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the array of which `json_values` made a list; an order of categories is not kept.

    Raises
    ------
    pyarrow.ArrowException, TypeError, ValueError
        If `values` are not of such a type.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return from_json_values(values, kind.value_type).cast(pa.dictionary(kind.index_type, kind.value_type))
    if types.is_struct(kind):
        return _structs(values, kind)
    if types.is_map(kind):
        return _maps(values, kind)
    if types.is_nested(kind):
        return _lists(values, kind)
    if is_bytes(kind):
        return pa.array([None if value is None else base64.b64decode(value) for value in values], kind)
    if types.is_time(kind):  # which Arrow does not read from texts
        counts = [None if value is None else _count(value, kind.unit) for value in values]
        return pa.array(counts, pa.int32() if types.is_time32(kind) else pa.int64()).cast(kind)
    if types.is_floating(kind):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, json_type(kind)).cast(kind)


# Arrow casts, and reads as texts, also what is below a missing list or struct: so each level is made by itself.


def _structs(values: list[dict[str, object] | None], kind: pa.DataType) -> pa.Array:
    if not kind.num_fields:
        return pa.array(values, kind)
    below = [[None if value is None else value[field.name] for value in values] for field in kind]
    parts = [from_json_values(some, field.type) for some, field in zip(below, kind, strict=True)]
    return pa.StructArray.from_arrays(parts, fields=list(kind), mask=_missing(values))


def _maps(values: list[list[tuple[object, object]] | None], kind: pa.DataType) -> pa.Array:
    pairs = [pair for value in values for pair in value or ()]
    keys = from_json_values([key for key, _ in pairs], kind.key_type)
    items = from_json_values([item for _, item in pairs], kind.item_type)
    ends = itertools.accumulate((len(value or ()) for value in values), initial=0)
    return pa.MapArray.from_arrays(pa.array(ends, pa.int32()), keys, items, type=kind, mask=_missing(values))


def _lists(values: list[list[object] | None], kind: pa.DataType) -> pa.Array:
    fixed = pa.types.is_fixed_size_list(kind)
    empty: list[object] = [None] * kind.list_size if fixed else []
    rows = [empty if value is None else value for value in values]
    flat = from_json_values([entry for row in rows for entry in row], kind.value_type)
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=_missing(values))
    made, whole = (pa.LargeListArray, pa.int64()) if pa.types.is_large_list(kind) else (pa.ListArray, pa.int32())
    ends = pa.array(itertools.accumulate(map(len, rows), initial=0), whole)
    return made.from_arrays(ends, flat, type=kind, mask=_missing(values))


def _missing(values: Sequence[object]) -> pa.Array:
    return pa.array([value is None for value in values], pa.bool_())


def _count(text: str, unit: str) -> int:
    """Return a time of day, ``hh:mm:ss`` with any number of decimals, as a count of a unit since midnight."""
    hours, minutes, seconds = text.split(":")
    whole, _, decimals = seconds.partition(".")
    since_midnight = (int(hours) * 60 + int(minutes)) * 60 + int(whole)
    digits = ("s", "ms", "us", "ns").index(unit) * 3
    return int(f"{since_midnight}{decimals[:digits]:0<{digits}}")


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    return any(of(kind) for of in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))
