"""Filters: which rows a search may find."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def select(store: Store, where: Any) -> Selection | None:
    """Return the rows that `where` asks for and that are not removed; None for all.

    Parameters
    ----------
    store
        The store.
    where
        None; ids of samples, (c,) integers; or a mapping of columns to the value, or the list of values, that a
        sample must have; with several columns, in all of them.

    Raises
    ------
    ValueError
        For an unknown column, or if no row is selected.
    IndexError
        If an id is not in the store.
    TypeError
        If `where` is something else.
    """
    if where is None:
        return None if store.alive is None else Selection(store.alive, everywhere=False)
    mask = np.ones(len(store), bool)
    if isinstance(where, Mapping):
        for name, wanted in where.items():
            mask &= _matches(_column(store, name), wanted)
    else:
        ids = np.asarray(where)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise TypeError(f"Expected where={{column: value}} or a list of ids, got {where!r}.")
        mask[:] = False
        mask[store.rows_of(ids if ids.size else ids.astype(np.int64))] = True
    if store.alive is not None:
        mask &= store.alive
    if not mask.any():
        raise ValueError(f"where={where!r} matches none of the {len(store)} samples.{_hint(store, where)}")
    return Selection(mask)


def parse(store: Store, conditions: Sequence[str]) -> dict[str, list[Any]] | None:
    """Return `where` of conditions written COLUMN=VALUE or COLUMN=VALUE,VALUE; None for none.

    Raises
    ------
    ValueError
        If there is no ``=``, no such column, or a value is not of the column's type.
    """
    found: dict[str, list[Any]] = {}
    for condition in conditions:
        name, equals, values = condition.partition("=")
        if not equals:
            raise ValueError(f"Expected COLUMN=VALUE[,VALUE], got {condition!r}.")
        kind = _column(store, name).dtype
        texts: Any = values.split(",")
        try:
            found[name] = texts if kind.kind in "OUST" else [kind.type(text) for text in texts]
        except ValueError:
            raise ValueError(f"Column {name!r} holds {kind} numbers, got {values!r}.") from None
    return found or None


def _column(store: Store, name: str) -> NDArray[Any]:
    if name not in store.columns:
        raise ValueError(f"There is no column {name!r}; expected one of {', '.join(sorted(store.columns))}.")
    return np.asarray(store.columns[name])


def _matches(column: NDArray[Any], wanted: Any) -> NDArray[np.bool_]:
    several = isinstance(wanted, list | tuple | set | frozenset | range | np.ndarray)
    values = list(wanted) if several else [wanted]
    if column.dtype.kind == "O":
        return np.array([value in values for value in column.tolist()], bool)
    return np.any([column == value for value in values], axis=0) if values else np.zeros(len(column), bool)


def _hint(store: Store, where: Any) -> str:
    """Return what values there are, for the first column that has none of those asked for."""
    for name, wanted in where.items() if isinstance(where, Mapping) else ():
        column = _column(store, name)
        if not _matches(column, wanted).any():
            there = sorted(set(column.tolist()), key=str)
            return f" {name!r} holds {', '.join(map(repr, there[:5]))}{', ...' if len(there) > 5 else ''}."
    return ""
