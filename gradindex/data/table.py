"""A table of Arrow columns, seen as NumPy arrays."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradindex.data.plain import from_json_values, json_values


class Columns(Mapping[str, NDArray[Any]]):
    """Columns by name, each an array of one shape, made of Arrow's when it is asked for.

    Numbers, truth values, dates, durations and times without a zone are arrays of NumPy's types where these hold them:
    a float or a time that is missing is NaN or NaT. Everything else is an array of Python objects, None where one is
    missing; a time with nanoseconds, which Python has no object for, is a text unless pandas is installed.

    Parameters
    ----------
    table
        The values; `table` always has them as they are stored.
    shape
        Of each array, row by row; None: (rows,).
    """

    def __init__(self, table: pa.Table, shape: tuple[int, ...] | None = None) -> None:
        self.table = table
        self.shape: tuple[int, ...] = (table.num_rows,) if shape is None else shape
        self._arrays: dict[str, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self.table, self.shape)

    def __repr__(self) -> str:
        return f"Columns({', '.join(self)}: {list(self.shape)})"

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            if name not in self.table.column_names:
                raise KeyError(name)
            self._arrays[name] = as_numpy(self.table.column(name)).reshape(self.shape)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.column_names)

    def __len__(self) -> int:
        return len(self.table.column_names)

    def take(self, rows: NDArray[np.int64], names: Sequence[str]) -> "Columns":
        """Return some columns of some rows, each of the shape of `rows`; a row of −1 has nothing in it."""
        flat = rows.ravel()
        return Columns(self.table.select(list(names)).take(pa.array(flat, mask=flat < 0)), rows.shape)

    def line(self, row: int) -> "Columns":
        """Return the entries of one row of arrays (m, k), each (k,)."""
        size = self.shape[1]
        return Columns(self.table.slice(row * size, size), (size,))

    def to_json(self) -> dict[str, Any]:
        """Return nested lists by name; see `gradindex.data.plain.json_values`."""
        return {name: _nested(json_values(self.table.column(name)), self.shape) for name in self}

    @property
    def types(self) -> str:
        """Shape and types as a text, for `from_json`."""
        schema = base64.b64encode(self.table.schema.remove_metadata().serialize()).decode()
        return f"arrow:{','.join(map(str, self.shape))}:{schema}"

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], types: str) -> "Columns":
        """Return the columns of which `to_json` made lists.

        Raises
        ------
        ValueError
            If they are not of these types.
        """
        try:
            _, sizes, schema = types.split(":")
            shape = tuple(map(int, sizes.split(",")))
            fields = list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))))
            arrays = [from_json_values(_flat(saved[field.name], len(shape)), field.type) for field in fields]
            return cls(pa.table(arrays, [field.name for field in fields]), shape)
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise ValueError(f"columns that are not of their types: {error}") from None


def _nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return a list as lists in lists of a shape."""
    for size in shape[:0:-1]:
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def _flat(values: list[Any], depth: int) -> list[Any]:
    """Return the entries of lists in lists, `depth` deep."""
    for _ in range(depth - 1):
        values = [entry for one in values for entry in one]
    return values


def as_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column as an array (rows,); see `Columns` for its type."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_numpy(column.cast(kind.value_type))
    local = pa.types.is_timestamp(kind) and kind.tz is None
    has_none = pa.types.is_floating(kind) or local or pa.types.is_date(kind) or pa.types.is_duration(kind)
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if has_none or (whole and not column.null_count):
        array: NDArray[Any] = column.to_numpy()
        return array if array.flags.writeable else array.copy()
    out = np.empty(len(column), object)
    for i, value in enumerate(objects(column)):
        out[i] = value
    return out


def objects(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values as Python's; texts where Python has none that holds them."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except ValueError:  # nanoseconds, without pandas
        return json_values(column)
