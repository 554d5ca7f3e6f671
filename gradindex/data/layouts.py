"""One layout for each kind of value that Arrow has several for."""

from collections.abc import Callable

import pyarrow as pa

_LEAVES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], pa.DataType]], ...] = (
    (pa.types.is_string_view, lambda kind: pa.large_string()),
    (pa.types.is_binary_view, lambda kind: pa.large_binary()),
    (pa.types.is_decimal32, lambda kind: pa.decimal128(kind.precision, kind.scale)),
    (pa.types.is_decimal64, lambda kind: pa.decimal128(kind.precision, kind.scale)),
)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type with the same values that every function of Arrow takes: no views, no short decimals.

    polars has views of texts and bytes, also within lists, structs and categories; nothing takes rows out of those.
    """
    types = pa.types
    if types.is_dictionary(kind):
        value = pa.string() if types.is_string_view(kind.value_type) else plain_type(kind.value_type)
        return kind if value == kind.value_type else pa.dictionary(pa.int32(), value, kind.ordered)
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(_plain_field(kind.value_field))
    if types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field), kind.keys_sorted)
    if types.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    return next((make(kind) for applies, make in _LEAVES if applies(kind)), kind)


def plain(array: pa.Array) -> pa.Array:
    """Return an array in its plain type; raises pyarrow.ArrowException or ValueError if there is no way there."""
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    if "list_view" in str(array.type):  # whose cast leaves out the last offset (Arrow 26)
        return pa.array(array.to_pylist(), kind)
    return array.cast(kind)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))
