"""Filters: which rows a search may find."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradindex.data.conditions import listed, matches, parse_text
from gradindex.data.names import Where
from gradindex.data.table import objects
from gradindex.store import Store

SCAN_ROWS = 50_000
"""Up to so many selected rows the store is scanned: exact, and no slower than FAISS over all lists."""


@dataclass(frozen=True)
class Selection:
    """The rows that may be found: `mask` (n,) bool over all rows of an index, at least one of them true.

    With `everywhere` all of FAISS's lists are probed, as a filter needs; without, as many as in any search, which is
    enough where few rows are removed.
    """

    mask: NDArray[np.bool_]
    everywhere: bool = True

    def __len__(self) -> int:
        return int(self.mask.sum())

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """The mask as FAISS reads it, eight rows a byte."""
        return np.packbits(self.mask, bitorder="little")


def select(store: Store, where: Where | None) -> Selection | None:
    """Return the rows that `where` asks for and that are not removed; None for all.

    Parameters
    ----------
    store
        The store.
    where
        None; ids of samples, c integers in any form; or a mapping of columns to the value, or the values, that a
        sample must have; with several columns, in all of them. See `gradindex.data.conditions.matches`.

    Raises
    ------
    ValueError
        For an unknown column, or if no row is selected.
    IndexError
        If an id is not in the store.
    TypeError
        If `where` is something else, or a value of another kind than its column's.
    """
    if where is None:
        return None if store.alive is None else Selection(store.alive, everywhere=False)
    mask = np.ones(len(store), bool)
    if isinstance(where, Mapping):
        where = {name: listed(wanted) for name, wanted in where.items()}
        for name, wanted in where.items():
            mask &= matches(name, _column(store, name), wanted)
    else:
        mask[:] = False
        mask[store.rows_of(_ids(where))] = True
    if store.alive is not None:
        mask &= store.alive
    if not mask.any():
        raise ValueError(f"where={where!r} matches none of the {len(store)} samples.{_hint(store, where)}")
    return Selection(mask)


def parse(store: Store, conditions: Sequence[str]) -> dict[str, list[Any]] | None:
    """Return `where` of conditions written COLUMN=VALUE or COLUMN=VALUE,VALUE; None for none.

    A value that holds a comma stands in double quotes, as in CSV files.

    Raises
    ------
    ValueError
        If there is no ``=``, no such column, two conditions on one, or a value that is not of the column's type.
    """
    found: dict[str, list[Any]] = {}
    for condition in conditions:
        name, equals, values = condition.partition("=")
        for column in store.columns:  # whose own name may hold "="
            if condition.startswith(f"{column}=") and len(column) > len(name):
                name, values = column, condition[len(column) + 1 :]
        if not equals:
            raise ValueError(f"Expected COLUMN=VALUE[,VALUE], got {condition!r}.")
        if name in found:
            raise ValueError(f"Column {name!r} is given twice: for either of two values type {name}=VALUE,VALUE.")
        kind = _column(store, name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        found[name] = [parse_text(name, text, kind) for text in _split(values)]
    return found or None


def _split(values: str) -> list[str]:
    """Return the values of VALUE,VALUE; only what begins with a double quote is taken as quoted."""
    quoted = values.startswith('"') or ',"' in values
    return next(csv.reader([values])) if quoted else values.split(",")


def _ids(where: Where | None) -> NDArray[Any]:
    ids = np.asarray(where if isinstance(where, np.ndarray) else listed(where) if _is_several(where) else where)
    if ids.dtype.kind == "O":
        ids = np.array(ids.tolist())
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"Expected where={{column: value}} or a list of ids, got {where!r}.")
    return ids if ids.size else ids.astype(np.int64)


def _is_several(where: Where | None) -> bool:
    return hasattr(where, "shape") or (isinstance(where, Iterable) and not isinstance(where, str | bytes))


def _column(store: Store, name: str) -> pa.ChunkedArray:
    if name not in store.columns:
        raise ValueError(f"There is no column {name!r}; expected one of {', '.join(sorted(store.columns))}.")
    return store.columns.table.column(name)


def _hint(store: Store, where: Where | None) -> str:
    """Return what values there are, for the first column that has none of those asked for."""
    for name, wanted in where.items() if isinstance(where, Mapping) else ():
        column = _column(store, name)
        if not matches(name, column, wanted).any():
            there = sorted(objects(pa.chunked_array([pc.unique(column)])), key=str)
            return f" {name!r} holds {', '.join(map(repr, there[:5]))}{', ...' if len(there) > 5 else ''}."
    return ""
