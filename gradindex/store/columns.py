"""A user's own columns, which travel with the rows."""

from typing import Any

import pyarrow as pa

RESERVED = frozenset(
    {"id", "norm", "loss", "label", "prediction", "rounding", "query", "side", "rank", "score", "exact"}
)


def as_columns(columns: Any, rows: int) -> dict[str, pa.Array]:
    """Return columns as Arrow arrays of `rows` entries by name.

    Parameters
    ----------
    columns
        None, a mapping of names to sequences, a pandas DataFrame or an Arrow table.
    rows
        How many entries each must have.

    Raises
    ------
    ValueError
        If a name is reserved, a length differs, or Arrow has no type for the values.
    """
    if columns is None:
        return {}
    if hasattr(columns, "column_names"):
        columns = {name: columns.column(name).combine_chunks() for name in columns.column_names}
    found = {}
    for name in columns:
        if not isinstance(name, str) or name in RESERVED:
            raise ValueError(f"A column may not be called {name!r}; taken are {', '.join(sorted(RESERVED))}.")
        values = columns[name]
        try:
            array = values if isinstance(values, pa.Array) else pa.array(values)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ValueError(f"Column {name!r} cannot be stored: {error}") from None
        if len(array) != rows:
            raise ValueError(f"Column {name!r} has {len(array)} entries, the dataset {rows} samples.")
        found[name] = array
    return found


def extended(columns: Any, rows: int, more: Any, more_rows: int) -> dict[str, pa.Array] | None:
    """Return columns of `rows` and of `more_rows` entries one behind the other; None if there are none.

    Raises
    ------
    ValueError
        If they have other names, or types that do not go together.
    """
    first, second = as_columns(columns, rows), as_columns(more, more_rows)
    if set(first) != set(second):
        raise ValueError(f"Expected columns {sorted(first)} for the new samples, too, got {sorted(second)}.")
    try:
        return {name: pa.concat_arrays([first[name], second[name].cast(first[name].type)]) for name in first} or None
    except pa.ArrowException as error:
        raise ValueError(f"The columns of the new samples do not fit: {error}") from None
