"""Which rows have a wanted value: values compared as what their column holds."""

import datetime
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradindex.data.columns import is_missing, to_arrow
from gradindex.data.labels import as_array
from gradindex.data.plain import is_bytes
from gradindex.data.table import as_numpy

_WORDS = {"true": True, "1": True, "false": False, "0": False}


def matches(name: str, column: pa.ChunkedArray, wanted: object) -> NDArray[np.bool_]:
    """Return which rows of a column (n,) hold one of the wanted values.

    Parameters
    ----------
    name
        Of the column, for errors.
    column
        Its values.
    wanted
        A value, or several in any form: a list, a set, a range, an array, a Series, a tensor. None finds the rows
        where a value is missing, NaN those and, among floats, NaN.

    Raises
    ------
    TypeError
        If a value is of another kind than the column's, or columns of this kind cannot be compared.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, values = column.type, listed(wanted)
    if pa.types.is_nested(kind):
        raise TypeError(f"Column {name!r} holds {kind}, by which rows cannot be selected.")
    mask = np.zeros(len(column), bool)
    for value in filter(is_missing, values):
        nan = isinstance(value, float | np.floating) and pa.types.is_floating(kind)
        mask |= np.asarray(column.is_null(nan_is_null=nan))
    found = [_entry(name, value, kind) for value in values if not is_missing(value)]
    there = [value for value in found if value is not None]
    if there and pa.types.is_floating(kind):
        mask |= np.isin(as_numpy(column), np.concatenate(there))
    elif there:
        wanted_set = pa.concat_arrays(there)
        mask |= np.asarray(pc.is_in(column, value_set=wanted_set, skip_nulls=True))
    return mask


def listed(wanted: Any) -> list[Any]:
    """Return wanted values as a list: a value alone, or those of a collection, an array, a Series or a tensor."""
    if isinstance(wanted, pa.Scalar):
        return [wanted.as_py()]
    if isinstance(wanted, pa.Array | pa.ChunkedArray):
        return wanted.to_pylist()  # type: ignore[no-any-return]
    if hasattr(wanted, "detach") or (hasattr(wanted, "numpy") and hasattr(wanted, "shape")):
        wanted = as_array(wanted)
    if isinstance(wanted, np.ndarray):
        return list(np.atleast_1d(wanted))
    several = isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes | bytearray | Mapping)
    return [part for one in wanted for part in _alone(one)] if several else [wanted]


def _alone(value: Any) -> list[Any]:
    """Return a value of a list, in a list; a tensor or an array without axes is the value in it."""
    return listed(value) if hasattr(value, "shape") and value.shape == () and hasattr(value, "ndim") else [value]


def parse_text(name: str, text: str, kind: pa.DataType) -> Any:
    """Return the value that a text from the command line stands for; `matches` reads dates and times itself.

    Raises
    ------
    ValueError
        If it is none of the column's kind.
    """
    try:
        if pa.types.is_boolean(kind):
            return _WORDS[text.lower()]
        if pa.types.is_integer(kind):
            return int(text)
        return float(text) if pa.types.is_floating(kind) else text
    except (ValueError, KeyError):
        what = "truth values (True or False)" if pa.types.is_boolean(kind) else f"{kind} numbers"
        raise ValueError(f"Column {name!r} holds {what}, got {text!r}.") from None


def _entry(name: str, value: object, kind: pa.DataType) -> Any:
    """Return a value as an array of the column's type; None if no such column can hold it."""
    try:
        converted = _as_kind(value, kind)
    except (pa.ArrowException, TypeError, ValueError) as error:
        said = f": {error}" if str(error) else ""
        raise TypeError(
            f"Column {name!r} holds {kind}, with which {value!r} ({type(value).__name__}) cannot be compared{said}."
        ) from None
    if converted is None:
        return None
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            number = np.array([converted]).astype(kind.to_pandas_dtype())
        return number if np.isinf(number[0]) == math.isinf(converted) else None
    try:
        return pa.array([converted], kind) if not isinstance(converted, pa.Array) else converted.cast(kind)
    except (pa.ArrowInvalid, OverflowError):
        return None


def _as_kind(value: object, kind: pa.DataType) -> Any:
    """Return a value in the form in which Arrow takes it for a type; None: equal to none of it.

    Raises
    ------
    TypeError, ValueError, pyarrow.ArrowException
        If it is something else.
    """
    types = pa.types
    if types.is_temporal(kind):
        return _time(value, kind)
    if isinstance(value, np.generic):
        value = value.item()
    if types.is_boolean(kind) and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if types.is_integer(kind) and isinstance(value, Real | Decimal) and not isinstance(value, bool):
        return int(value) if value % 1 == 0 else None  # type: ignore[arg-type]
    if types.is_floating(kind) and isinstance(value, Real | Decimal) and not isinstance(value, bool):
        return float(value)
    if types.is_decimal(kind) and isinstance(value, Integral | float | Decimal | str) and not isinstance(value, bool):
        return _decimal(value)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if texts and isinstance(value, str):
        return value
    if types.is_null(kind):
        return None
    if is_bytes(kind) and isinstance(value, bytes | bytearray):
        return bytes(value)
    raise TypeError


def _decimal(value: Any) -> Decimal:
    try:
        return Decimal(repr(value) if isinstance(value, float) else value)
    except ArithmeticError:
        raise ValueError("it is no decimal number") from None


def _time(value: object, kind: pa.DataType) -> Any:
    """Return a date, time or duration as an Arrow array that can be cast to a type; None: equal to none of it."""
    types = pa.types
    if isinstance(value, str):
        return _read_time(value, kind)
    found = to_arrow(np.array([value]) if isinstance(value, np.generic) else [value])
    same = (
        (types.is_duration(kind) and types.is_duration(found.type))
        or (types.is_time(kind) and types.is_time(found.type))
        or (types.is_date(kind) and types.is_date(found.type))
    )
    if same:
        return found
    zone = getattr(found.type, "tz", None)
    if types.is_timestamp(kind) and kind.tz is None and types.is_date(found.type):
        return found
    if types.is_timestamp(kind) and types.is_timestamp(found.type):
        if (zone is None) != (kind.tz is None):
            raise TypeError("one has a time zone, the other has none")
        return found
    if types.is_date(kind) and types.is_timestamp(found.type) and zone is None:
        day = found.cast(pa.date32(), safe=False)
        return day if day.cast(found.type) == found else None
    raise TypeError


def _read_time(text: str, kind: pa.DataType) -> pa.Array:
    if pa.types.is_time(kind):
        return pa.array([datetime.time.fromisoformat(text)])
    return pa.array([text]).cast(kind)
