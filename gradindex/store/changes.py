"""The log of what happened to a store after it was built: samples added and removed, parts compacted.

Change number n is the file ``changes/<n>.json``, created once, exclusively, and never touched again: that write is the
change. A state of the store is its header and the first n changes; readers hold one state, writers append to the last.
"""

import contextlib
import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradindex.data.source import Ids
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.store import location, locks
from gradindex.store.location import Location
from gradindex.store.manifest import HEADER, Header, publish, read_json, seal

DIRECTORY, HEAD = "changes", "head.json"
_PART = re.compile(r"[0-9a-f]{16}")
_MOST = 1 << 48  # rows of a part


class InvalidChangeError(DamagedIndexError):
    """A change after the first `before` ones is as it was written, but removes what is no id."""

    def __init__(self, message: str, before: int) -> None:
        super().__init__(message)
        self.before = before


@dataclass(frozen=True)
class Part:
    """Rows that were written together: `name` is "" for the store's own, else that of a directory in ``parts``.

    `seal` is that of the part's header. `at` is the number of changes before which a compaction read its rows.
    """

    name: str
    seal: str
    rows: int
    at: int | None = None


@dataclass(frozen=True)
class State:
    """A store after `number` changes; `last` is the seal of the last one, "" if there is none.

    `parts` in order of their rows; `positions` is one more than the largest id ever given; `removed` lists of ids.
    """

    number: int
    last: str
    parts: tuple[Part, ...]
    positions: int
    removals: tuple[Ids, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all parts, removed ones that are still there included."""
        return sum(part.rows for part in self.parts)

    @property
    def removed(self) -> Ids:
        """All ids ever removed, ascending."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *self.removals]))

    @cached_property
    def rows_seal(self) -> str:
        """What rows there are, in what order: by this a FAISS index names the states that it belongs to."""
        if len(self.parts) == 1 and not self.parts[0].name:
            return self.parts[0].seal
        return seal({"parts": [[part.name, part.seal] for part in self.parts]})

    def apply(self, value: dict[str, Any]) -> "State":
        """Return the state after one more change; raises ValueError, KeyError or OverflowError if it makes no sense."""
        after = dataclasses.replace(self, number=self.number + 1, last=seal(value))
        kind = value["kind"]
        if kind == "remove":
            ids = value["ids"]
            if not isinstance(ids, list) or not all(type(one) is int for one in ids):
                raise ValueError("expected ids")
            if ids and not 0 <= min(ids) <= max(ids) < 2**63:
                raise OverflowError(f"it removes {min(ids)} to {max(ids)}, which are no ids")
            return dataclasses.replace(after, removals=(*self.removals, np.array(ids, np.int64)))
        part = _part(value)
        if part.name in {one.name for one in self.parts}:
            raise ValueError(f"part {part.name} is there already")
        if kind == "add":
            if value["first"] != self.positions:
                raise ValueError(f"expected ids from {self.positions} on, found {value['first']}")
            return dataclasses.replace(after, parts=(*self.parts, part), positions=self.positions + part.rows)
        if kind == "compact":
            replaced = value["replaces"]
            if not replaced or replaced != [one.name for one in self.parts[: len(replaced)]]:
                raise ValueError(f"expected a compaction of the first parts, found {replaced}")
            return dataclasses.replace(after, parts=(part, *self.parts[len(replaced) :]))
        raise ValueError(f"unknown kind {kind!r}")


def _part(value: dict[str, object]) -> Part:
    name, header, rows, at = value["part"], value["header"], value["rows"], value.get("at")
    if not (isinstance(name, str) and _PART.fullmatch(name) and isinstance(header, str)):
        raise ValueError(f"{name!r} is not the name of a part")
    if type(rows) is not int or not 0 < rows < _MOST or not (at is None or (type(at) is int and at >= 0)):
        raise ValueError(f"{rows!r} is not a number of rows")
    return Part(name, header, rows, at)


def file(store: Location, number: int) -> Location:
    """Return where change number 1, 2, ... lies."""
    return store / DIRECTORY / name(number)


def name(number: int) -> str:
    """Return the name of change number 1, 2, ..."""
    return f"{number:06}.json"


def read(store: Location, header: Header) -> State:
    """Return the state of a store now; raises like `history`."""
    return deque(history(store, header), maxlen=1)[0]


def history(store: Location, header: Header) -> Iterator[State]:
    """Yield all states of a store, from that without changes to the last.

    Raises
    ------
    DamagedIndexError
        If a change is damaged, belongs elsewhere or is missing although ``head.json`` counts it.
    InvalidChangeError
        Of these: if a change is as it was written, and removes what is no id.
    """
    known = _known(store, header)  # read first: changes that come later are more than it counts, never fewer
    state = State(0, "", (Part("", header.seal, header.rows),), header.rows)
    while True:
        yield state
        path = file(store, state.number + 1)
        if not location.exists(path):
            if state.number < known:
                raise DamagedIndexError(f"{path} is missing: {known} changes were made.")
            return
        saved = read_json(path)
        if (saved.get("store"), saved.get("number"), saved.get("before")) != (
            header.seal,
            state.number + 1,
            state.last,
        ):
            raise DamagedIndexError(f"{path} is not the next change of this store.")
        try:
            state = state.apply(saved)
            _check_removed(header, state)
        except OverflowError as error:
            raise InvalidChangeError(f"{path} is damaged: {error}.", int(saved["number"]) - 1) from None
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedIndexError(f"{path} is damaged: {error}.") from None


def _check_removed(header: Header, state: State) -> None:
    """Raise ValueError if samples are removed that were never there; ids of arrays are any."""
    if header.backend != "none" and len(state.removed) and state.removed[-1] >= state.positions:
        raise ValueError(f"it removes {state.removed[-1]}, which was never there")


def drop_invalid(store: Location, header: Header) -> list[str]:
    """Delete the last change if it removes what is no id, so that no reader accepts it; return what was deleted.

    Raises like `history` otherwise: a change that is missing or not as it was written says what nothing else does.
    """
    try:
        read(store, header)
        return []
    except InvalidChangeError as error:
        if location.exists(file(store, error.before + 2)):
            raise
        if _known(store, header) > error.before:
            publish(store / DIRECTORY / HEAD, {"store": header.seal, "number": error.before}, replace=True)
        location.unlink(file(store, error.before + 1))
        return [f"{DIRECTORY}/{name(error.before + 1)}"]


def commit(store: Location, header: Header, make: Callable[[State], dict[str, Any] | None]) -> State:
    """Append a change behind those that others append meanwhile; return the state after it.

    `make` gets the state as it is and returns the change (its ``kind`` and what belongs to it), or None if there is
    none to make; it is called again whenever another process was first.

    Raises
    ------
    MismatchError
        If another store took this one's place.
    """
    with in_place(store, header):
        location.make_directory(store / DIRECTORY)
    while True:
        try:
            state = read(store, header)
        except DamagedIndexError:
            with in_place(store, header):  # else these are changes of another store
                raise
        try:
            change = make(state)
        except DamagedIndexError:
            if read(store, header).number == state.number:  # else what it needs was replaced meanwhile
                raise
            continue
        if change is None:
            return state
        value = {"store": header.seal, "number": state.number + 1, "before": state.last, **change}
        after = state.apply(value)  # or no reader would accept it
        _check_removed(header, after)
        try:
            with in_place(store, header):
                publish(file(store, state.number + 1), value)
                count(store, header, after)
            return after
        except FileExistsError:
            continue


@contextlib.contextmanager
def in_place(store: Location, header: Header) -> Iterator[None]:
    """Let no other index take the place of a store while something is written into its directory.

    Raises
    ------
    MismatchError
        If another one has taken it.
    """
    with locks.together(store) if isinstance(store, Path) else contextlib.nullcontext():
        if Header.read(store / HEADER).seal != header.seal:
            raise another(store)
        yield


def another(path: Location) -> MismatchError:
    """Return the error for a path at which there is another index than the one that was opened."""
    return MismatchError(f"Another index was built at {path} since this one was opened: open it again.")


def count(store: Location, header: Header, state: State) -> None:
    """Note that there are so many changes, so that the loss of the last one is noticed."""
    if state.number > _known(store, header):
        publish(store / DIRECTORY / HEAD, {"store": header.seal, "number": state.number}, replace=True)


def _known(store: Location, header: Header) -> int:
    """Return how many changes there are at least, so that a lost last one is noticed."""
    path = store / DIRECTORY / HEAD
    if not location.exists(path):
        return 0
    saved = read_json(path)
    number = saved.get("number")
    if saved.get("store") != header.seal or type(number) is not int:
        raise DamagedIndexError(f"{path} is not of this store.")
    return number
