"""A user's own columns, which travel with the rows."""

from typing import Any

import pyarrow as pa

RESERVED = frozenset({"id", "norm", "loss", "label", "prediction", "query", "side", "rank", "score", "exact"})


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
