"""Arrow's values as JSON has them, and back."""

import base64
import math
from collections.abc import Callable
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
    return _nested_type(kind, json_type)


def _nested_type(kind: pa.DataType, of: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a list, struct or map with other types in it; a type that is none of these as it is."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(of(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(of(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(of(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(of(kind.key_type), of(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, of(field.type)) for field in kind])
    return kind


def json_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return values as JSON has them: texts and numbers; bytes in base64; None for what is missing, NaN or infinity."""
    return [_plain(value) for value in array.cast(json_type(array.type)).to_pylist()]


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def from_json_values(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the array of which `json_values` made a list; an order of categories is not kept.

    Raises
    ------
    pyarrow.ArrowException, TypeError, ValueError
        If `values` are not of such a type.
    """
    return pa.array([_given(value, kind) for value in values], _given_type(kind)).cast(kind)


def _given_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of what `_given` makes: that of JSON's values, with bytes as they are and times as counts."""
    if pa.types.is_dictionary(kind):
        return _given_type(kind.value_type)
    if pa.types.is_time(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return json_type(kind) if not pa.types.is_nested(kind) else _nested_type(kind, _given_type)


def _given(value: Any, kind: pa.DataType) -> Any:
    """Return a value of JSON as Arrow takes it for `_given_type`."""
    types = pa.types
    if value is None:
        return None
    if types.is_dictionary(kind):
        return _given(value, kind.value_type)
    if is_bytes(kind):
        return base64.b64decode(value)
    if types.is_time(kind):  # which Arrow does not read from texts
        return _count(value, kind.unit)
    if types.is_map(kind):
        return [(_given(key, kind.key_type), _given(item, kind.item_type)) for key, item in value]
    if types.is_struct(kind):
        return {field.name: _given(value[field.name], field.type) for field in kind}
    return [_given(entry, kind.value_type) for entry in value] if types.is_nested(kind) else value


def _count(text: str, unit: str) -> int:
    """Return a time of day, ``hh:mm:ss`` with any number of decimals, as a count of a unit since midnight."""
    hours, minutes, seconds = text.split(":")
    whole, _, decimals = seconds.partition(".")
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    seconds_of_day = (int(hours) * 60 + int(minutes)) * 60 + int(whole)
    return seconds_of_day * 10**digits + int(decimals.ljust(digits, "0")[:digits] or 0)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    return any(of(kind) for of in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))
