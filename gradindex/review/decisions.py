"""Decisions on samples: read from a file, checked, and carried out."""

import csv
import io
import json
import sys
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradindex.data.source import Ids
from gradindex.words import choose_word

if TYPE_CHECKING:
    from gradindex.store import Store

COLUMNS = "id", "decision", "new_label"
"""Of a file of decisions; others are left alone."""
_END = 1 << 63  # of ids


class Decision(StrEnum):
    """What is to become of a sample."""

    KEEP = "keep"
    RELABEL = "relabel"
    REMOVE = "remove"
    LATER = "later"


@dataclass(frozen=True)
class Decisions:
    """What was decided on samples, by dataset position.

    Parameters
    ----------
    by_id
        The decision on each sample.
    new_labels
        The new label of each sample that is relabelled.
    """

    by_id: dict[int, Decision]
    new_labels: dict[int, int]

    def ids(self, decision: Decision) -> Ids:
        """Return the samples with this decision, (c,) int64 in ascending order."""
        return np.array(sorted(i for i, one in self.by_id.items() if one is decision), np.int64)

    def check(self, store: "Store") -> None:
        """Compare the samples with a store's.

        Raises
        ------
        ValueError
            If the store does not hold one of them.
        """
        every = np.array(sorted(self.by_id), np.int64)
        strangers = every[~store.holds(every)]
        if len(strangers):
            raise ValueError(
                f"The decisions name samples that the index does not hold: {_named(strangers.tolist())}. Were they "
                "made for another index?"
            )

    def relabels(self) -> str:
        """Return what is relabelled as CSV: a line ``id,label`` a sample, in the order of ids."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(("id", "label"))
        writer.writerows((i, self.new_labels[i]) for i in sorted(self.new_labels))
        return sink.getvalue()


def refuse_to_overwrite(path: Path) -> None:
    """Raise ValueError if a file holds decisions, which a review written there would take away."""
    try:
        decided = len(read(path).by_id)
    except (OSError, ValueError):
        return
    if decided:
        raise ValueError(
            f"{path} holds decisions on {decided} samples, which would be lost: write the review into another file, or "
            "delete this one."
        )


def read(path: Path) -> Decisions:
    """Read decisions from a CSV, Parquet or JSON-lines file with the columns id, decision and new_label.

    Lines whose decision is empty are no decisions, so that a saved review may be filled in. Other columns are ignored.
    The same decision may stand there several times.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For another kind of file, an audit log, a missing column, an unknown decision, an id or label that is no whole
        number, a relabelling without a new label or a new label without one, and decisions that contradict each other.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}. Next: gradindex decisions OUT -o {path.stem}.csv for what was decided on the page, "
            f"or gradindex review OUT MODULE:FUNCTION -o {path.stem}.csv for a table to fill in."
        )
    by_id: dict[int, Decision] = {}
    new_labels: dict[int, int] = {}
    conflicts: set[int] = set()
    for number, line in enumerate(_lines(path), 1):
        given = line.get("decision")
        said = "" if given is None else str(given).strip()
        if not said:
            continue
        place = f"{path.name}, entry {number}"
        decision = choose_word(Decision, said, f"decision in {place}:")
        i, label = _whole(line.get("id"), f"id in {place}"), _whole(line.get("new_label"), f"new_label in {place}")
        if i is None:
            raise ValueError(f"{place} decides on no sample: its id is empty.")
        if not 0 <= i < _END:
            raise ValueError(f"The id in {place} is that of no sample: {i}.")
        if (decision is Decision.RELABEL) != (label is not None):
            what = "no new_label" if label is None else f"the new_label {label}"
            raise ValueError(f"{place} says {said!r} of sample {i}, with {what}: relabel takes one, others take none.")
        if by_id.setdefault(i, decision) is not decision or (
            label is not None and new_labels.setdefault(i, label) != label
        ):
            conflicts.add(i)
    if conflicts:
        raise ValueError(
            f"{path.name} holds decisions that contradict each other, on samples {_named(sorted(conflicts))}: leave "
            "one for each."
        )
    return Decisions(by_id, new_labels)


def _lines(path: Path) -> list[dict[str, object]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        _check_columns(path, table.column_names)
        return list(table.select([name for name in COLUMNS if name in table.column_names]).to_pylist())
    if kind == ".csv":
        return _csv_lines(path)
    if kind in (".jsonl", ".ndjson"):
        found = []
        for number, text in enumerate(_text(path).split("\n"), 1):  # a text may hold what splitlines() takes for an end
            if not text.strip():
                continue
            try:
                line = json.loads(text, object_pairs_hook=_named_once)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path.name}, line {number} is no JSON: {error}") from None
            if not isinstance(line, dict):
                raise ValueError(f"{path.name}, line {number} is no JSON object.")
            if {"reviewer", "time", "label"} <= line.keys() and "new_label" not in line:
                raise ValueError(
                    f"{path.name} is an audit log, in which a later line may take a decision back. Next: gradindex "
                    "decisions OUT -o decisions.csv, which writes those that stand."
                )
            _check_columns(path, [*dict.fromkeys([*line, "decision"])])
            found.append(line)
        return found
    raise ValueError(f"Decisions are read from .csv, .parquet or .jsonl files, got {path.name!r}.")


def _csv_lines(path: Path) -> list[dict[str, object]]:
    """Return the lines of a CSV file; raises ValueError where a quotation is not ended, which would swallow lines."""
    limit = csv.field_size_limit(sys.maxsize)  # of all readers: notes may be of any length
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
        _check_columns(path, list(reader.fieldnames or ()))
        return [dict(line) for line in reader]
    except csv.Error as error:
        raise ValueError(f"{path.name} is no CSV file of UTF-8 with commas: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: {error}. Save it as UTF-8.") from None


def _named_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _check_columns(path: Path, names: list[str]) -> None:
    lost = [name for name in COLUMNS[:2] if name not in names]
    if lost:
        raise ValueError(f"{path.name} has no column {' and no column '.join(lost)}; it has {', '.join(names)}.")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise ValueError(f"{path.name} has several columns {twice[0]}: leave one.")


def _whole(value: object, what: str) -> int | None:
    """Return a whole number that may be written as text or float; None for nothing."""
    text = "" if value is None else str(value).strip()
    if not text or text.lower() == "nan":
        return None
    try:
        number = Decimal(text)
        if number != int(number) or isinstance(value, bool):
            raise ValueError
        return int(number)
    except (ArithmeticError, ValueError):
        raise ValueError(f"The {what} is no whole number: {text!r}.") from None


def _named(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
