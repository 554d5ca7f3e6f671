"""The audit log of decisions: one file of JSON lines that only ever grows, each on the disk before it counts.

A line holds ``time`` (UTC), ``reviewer``, ``id``, ``decision``, ``label`` (the new one of ``relabel``, else null),
``before`` (the decision that stood until then, with its label; null for none), and how it came: ``client`` (the name
of the token) and ``request`` (the id of the request), null where that is not known. The last line of an id wins. An
undoing is a line, too: ``undoes`` is the number of the line that it takes back, from 0, and its decision is what stands
then, null for none. No line is ever changed or taken away. A line that a killed process left unfinished counts for
nothing.
"""

import csv
import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gradindex.review.decisions import COLUMNS, Decision
from gradindex.store import locks
from gradindex.store.location import append_line, make_directory

log = logging.getLogger(__name__)
_EXPORTED = *COLUMNS, "reviewer", "time"


@dataclass(frozen=True)
class Origin:
    """How a decision came: the name of its client's token, and the id of its request; None: not known."""

    client: str | None = None
    request: str | None = None


@dataclass(frozen=True)
class Before:
    """What stood on a sample until a decision."""

    decision: Decision | None
    label: int | None = None


@dataclass(frozen=True)
class Entry:
    """A line: what a reviewer decided on a sample.

    Parameters
    ----------
    number
        Of the line in its file, from 0.
    time
        When, in UTC, as ISO 8601.
    reviewer
        Who.
    id
        Dataset position.
    decision
        None where an undoing leaves none.
    label
        The new label of a relabelling.
    undoes
        Of an undoing: the number of the line that is taken back.
    before
        What stood on the sample until then; None for nothing, and in lines of earlier versions, which do not tell.
    client, request
        How it came, see `Origin`.
    """

    number: int
    time: str
    reviewer: str
    id: int
    decision: Decision | None
    label: int | None = None
    undoes: int | None = None
    before: Before | None = None
    client: str | None = None
    request: str | None = None

    def says(self, other: "Entry") -> bool:
        """Whether both decide the same."""
        return (self.decision, self.label) == (other.decision, other.label)


class DecisionLog:
    """The decisions in a file, those included that other processes append meanwhile; any thread may use it.

    Parameters
    ----------
    path
        The file; it and its directory are made with the first decision.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        """Lines that cannot be read."""
        self._mutex = threading.Lock()
        self._end = 0
        self._entries: list[Entry | None] = []
        self._standing: dict[int, list[Entry]] = {}
        self._undoable: dict[str, list[Entry]] = {}

    def decide(
        self, reviewer: str, sample: int, decision: Decision, label: int | None = None, origin: Origin | None = None
    ) -> Entry:
        """Append a decision, and return it once it is on the disk.

        Raises
        ------
        ValueError
            If a relabelling has no label, or anything else has one.
        OSError
            If it cannot be written.
        """
        if (decision is Decision.RELABEL) != (label is not None):
            raise ValueError(f"relabel takes a label, others take none; got {decision} and {label}.")
        with self._writing():
            return self._append(Entry(len(self._entries), _now(), reviewer, sample, decision, label), origin)

    def undo(self, reviewer: str, origin: Origin | None = None) -> Entry:
        """Take back a reviewer's last decision that was not taken back yet; return the line that does.

        What stands then is the decision before it, of whomever. Later decisions of others on that sample stay.

        Raises
        ------
        LookupError
            If there is none.
        OSError
            If it cannot be written.
        """
        with self._writing():
            mine = self._undoable.get(reviewer)
            if not mine:
                raise LookupError(f"{reviewer} has decided nothing that could be undone.")
            last = mine[-1]
            rest = [one for one in self._standing[last.id] if one is not last]
            left, label = (rest[-1].decision, rest[-1].label) if rest else (None, None)
            entry = Entry(len(self._entries), _now(), reviewer, last.id, left, label, last.number)
            return self._append(entry, origin)

    def standing(self, sample: int) -> Entry | None:
        """Return the decision that stands on a sample."""
        with self._reading():
            every = self._standing.get(sample)
            return every[-1] if every else None

    def differing(self, sample: int) -> list[Entry]:
        """Return the last decision of each other reviewer that differs from the one that stands."""
        with self._reading():
            every = self._standing.get(sample) or []
            last = {one.reviewer: one for one in every}
            return [one for one in last.values() if not one.says(every[-1])]

    def all_standing(self) -> dict[int, Entry]:
        """Return the decisions that stand, by sample."""
        with self._reading():
            return {sample: every[-1] for sample, every in self._standing.items() if every}

    @property
    def end(self) -> int:
        """The number of the next line."""
        with self._reading():
            return len(self._entries)

    def since(self, number: int, most: int) -> tuple[int, list[Entry]]:
        """Return at most `most` entries from a line's number on, and the number to ask for next."""
        with self._reading():
            some = self._entries[number : number + most]
            return min(number, len(self._entries)) + len(some), [one for one in some if one is not None]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other writers out, of this process and of others, and know what they wrote."""
        make_directory(self.path.parent)
        with self._mutex, locks.alone(self.path.parent, wait=True):
            self._catch_up()
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._mutex:
            self._catch_up()
            yield

    def _append(self, entry: Entry, origin: Origin | None) -> Entry:
        every = self._standing.get(entry.id)
        before = Before(every[-1].decision, every[-1].label) if every else None
        entry = replace(entry, before=before, **asdict(origin or Origin()))
        value = asdict(entry)
        del value["number"]
        if entry.undoes is None:
            del value["undoes"]
        append_line(self.path, json.dumps(value).encode())
        self._catch_up()
        return replace(entry, number=len(self._entries) - 1)

    def _catch_up(self) -> None:
        """Read the lines that were appended; one without an end is being written, or was left by a killed process."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._end:  # somebody put another file there
                    self._end, self.damaged = 0, 0
                    self._entries, self._standing, self._undoable = [], {}, {}
                file.seek(self._end)
                new = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return
        for line in new.split(b"\n")[:-1]:
            self._end += len(line) + 1
            self._take(line)

    def _take(self, line: bytes) -> None:
        entry = _parsed(line, len(self._entries))
        self._entries.append(entry)
        if entry is None:
            self.damaged += 1
            log.warning("%s: line %d is no decision, and counts for nothing", self.path, len(self._entries))
        elif entry.undoes is None:
            self._standing.setdefault(entry.id, []).append(entry)
            self._undoable.setdefault(entry.reviewer, []).append(entry)
        else:
            for lists in (self._standing.get(entry.id), self._undoable.get(entry.reviewer)):
                if lists is not None:
                    lists[:] = [one for one in lists if one.number != entry.undoes]


def as_csv(standing: dict[int, Entry]) -> str:
    """Return decisions by sample as CSV, a line a sample in the order of ids, as `decisions.read` reads them."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(_EXPORTED)
    writer.writerows(line.values() for line in _exported(standing))
    return sink.getvalue()


def as_json_lines(standing: dict[int, Entry]) -> str:
    """Return decisions by sample as JSON lines, in the order of ids, as `decisions.read` reads them."""
    return "".join(f"{json.dumps(line)}\n" for line in _exported(standing))


def _exported(standing: dict[int, Entry]) -> Iterator[dict[str, object]]:
    for i in sorted(standing):
        one = standing[i]
        values = i, str(one.decision), one.label, one.reviewer, one.time
        yield dict(zip(_EXPORTED, values, strict=True))


def _parsed(line: bytes, number: int) -> Entry | None:
    try:
        value = json.loads(line)
        decision, label, undoes = value["decision"], value["label"], value.get("undoes")
        entry = Entry(
            number,
            str(value["time"]),
            str(value["reviewer"]),
            int(value["id"]),
            None if decision is None else Decision(decision),
            None if label is None else int(label),
            None if undoes is None else int(undoes),
            _before(value.get("before")),
            *(None if value.get(name) is None else str(value[name]) for name in ("client", "request")),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    whole = (entry.decision is Decision.RELABEL) == (label is not None)
    return entry if whole and (entry.undoes is not None or decision is not None) else None


def _before(value: dict[str, str | int | None] | None) -> Before | None:
    if value is None:
        return None
    label = value["label"]
    return Before(Decision(str(value["decision"])), None if label is None else int(label))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
