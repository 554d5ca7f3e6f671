"""Arrow's values as JSON has them, and back."""

import base64
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


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
    if is_bytes(kind):
        return pa.array([None if value is None else base64.b64decode(value) for value in values], kind)
    if pa.types.is_dictionary(kind):
        kind = pa.dictionary(kind.index_type, kind.value_type)
    array = pa.array(values, json_type(kind))
    if pa.types.is_time(kind):  # Arrow reads times with their date only
        dated = pc.binary_join_element_wise("1970-01-01", array, " ")
        return dated.cast(pa.timestamp(kind.unit)).cast(kind)
    return array.cast(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    return any(of(kind) for of in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))
