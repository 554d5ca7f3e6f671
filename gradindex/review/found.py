"""What a review found: lines to look at, as a table, a file, JSON."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tree
from gradindex.data.tabular import Tabular
from gradindex.review.decisions import COLUMNS, refuse_to_overwrite
from gradindex.store.location import Location, locate, save

if TYPE_CHECKING:
    import pyarrow as pa


class Kind(StrEnum):
    """Why a sample is to be looked at."""

    LABEL = "label"
    DUPLICATE = "duplicate"
    OUTLIER = "outlier"
    OPPONENT = "opponent"
    CONFUSION = "confusion"
    LEAK = "leak"


OF_TRAINING = tuple(kind for kind in Kind if kind is not Kind.LEAK)
"""Kinds that are found without held-out samples."""
TITLES = {
    Kind.LABEL: "Labels that are likely wrong",
    Kind.DUPLICATE: "Near-duplicates",
    Kind.OUTLIER: "Outliers",
    Kind.OPPONENT: "Opponents of correct predictions",
    Kind.CONFUSION: "Classes that confuse each other",
    Kind.LEAK: "Held-out samples that are in the training set",
}
"""Headings of the kinds."""
MEANING = {
    Kind.LABEL: "Labels that are likely wrong. The score is a weighted mean of ranks by several signs, from 0 to 1.",
    Kind.DUPLICATE: "Pairs of near-duplicates. The score says how much nearer the pair is than samples and their "
    "nearest are: in interquartile ranges of log distance below the first quartile.",
    Kind.OUTLIER: "Samples far from all others. The score says how much farther their nearest are than those of "
    "others: in interquartile ranges of mean log distance above the third quartile.",
    Kind.OPPONENT: "Samples that oppose correct predictions. The score is the number of correctly predicted samples "
    "that have it among their opponents, by stored gradients.",
    Kind.CONFUSION: "Pairs of classes that oppose each other. The score is the geometric mean of two shares: of the "
    "opponents of one class, those of the other.",
    Kind.LEAK: "Held-out samples with near-duplicates among the training samples. The score is near-duplicates', "
    "with the held-out sample in the place of one of the pair.",
}
"""What the scores of each kind are."""


@dataclass(frozen=True)
class Finding:
    """A line of a review.

    Parameters
    ----------
    kind
        Why it is there.
    id
        Dataset position; None for a pair of classes, and for a held-out sample.
    score
        See `MEANING`; larger is first.
    label, prediction, proposed
        Classes as the store has them; None where there is none. Of a pair of classes, `label` and `prediction` are the
        two; of a held-out sample, `label` is its own.
    neighbours
        Dataset positions of the evidence: nearest samples, the other one of a pair, samples that are opposed, training
        samples that a held-out sample is nearly a copy of.
    neighbour_labels
        Their classes; empty where there are none.
    note
        The evidence in words.
    precision
        Of labels alone: the share of wrong labels to expect among this line and those before it. An estimate.
    held_out
        Of leaks alone: the row of the held-out sample, from 0.
    """

    kind: Kind
    id: int | None
    score: float
    label: int | None
    prediction: int | None
    proposed: int | None
    neighbours: tuple[int, ...]
    neighbour_labels: tuple[int, ...]
    note: str
    precision: float | None = None
    held_out: int | None = None


@dataclass(frozen=True)
class Review(Tabular):
    """What a review found, kind by kind, each with the most striking first.

    Parameters
    ----------
    findings
        The lines.
    left_out
        Sentences on what was not looked at, and why.
    about
        How it was made: samples, neighbours, thresholds, the estimated number of wrong labels.
    label_scores
        Of every sample, (n,) float64 in the order of `ids`: the score by which labels are ranked, see
        `gradindex.review.combine.score`; None without classes.
    ids
        Dataset positions (n,) of all samples that were looked at.
    held_out
        Inputs of the held-out samples (m, …), for pages to show; None where there were none.
    """

    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]
    about: dict[str, object]
    label_scores: NDArray[np.float64] | None
    ids: NDArray[np.int64]
    held_out: Tree = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.findings)

    def of(self, kind: str) -> list[Finding]:
        """Return the lines of a kind."""
        return [one for one in self.findings if one.kind == kind]

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield the lines as dicts, with their rank within the kind, from 1."""
        ranks = dict.fromkeys(Kind, 0)
        for one in self.findings:
            ranks[one.kind] += 1
            line: dict[str, object] = {"kind": one.kind.value, "rank": ranks[one.kind], **vars(one)}
            yield (
                line
                | {"kind": one.kind.value, "neighbours": list(one.neighbours)}
                | {"neighbour_labels": list(one.neighbour_labels)}
            )

    def to_json(self) -> dict[str, object]:
        """Return everything but `label_scores` and the held-out inputs as JSON-ready values."""
        return {"about": self.about, "left_out": list(self.left_out), "findings": list(self.lines())}

    def to_arrow(self) -> "pa.Table":
        """Return a ``pyarrow.Table``, a row a line, with empty columns `decision` and `new_label` to fill in."""
        import pyarrow as pa

        whole, text = pa.int64(), pa.string()
        types = {
            "kind": text, "rank": whole, "id": whole, "score": pa.float64(), "label": whole, "prediction": whole,
            "proposed": whole, "precision": pa.float64(), "note": text, "held_out": whole,
            "neighbours": pa.list_(whole), "neighbour_labels": pa.list_(whole),
        }  # fmt: skip
        decided = {name: text if name == "decision" else whole for name in COLUMNS if name != "id"}
        schema = pa.schema([*types.items(), *decided.items()])
        empty = dict.fromkeys(decided)
        about = {"gradindex.review": json.dumps(self.about), "gradindex.left_out": json.dumps(self.left_out)}
        return pa.Table.from_pylist([line | empty for line in self.lines()], schema).replace_schema_metadata(about)

    def save(self, path: str | Location) -> Location:
        """Write `to_arrow` into a file, on this machine or behind a URL; return where it lies.

        Parameters
        ----------
        path
            Its name ends with ``.csv`` or ``.parquet``. In CSV lists are numbers with spaces between.

        Raises
        ------
        ValueError
            If the name ends otherwise, or the file is there and holds decisions.
        """
        import pyarrow as pa
        import pyarrow.csv as pc
        import pyarrow.parquet as pq

        place, table, sink = locate(path), self.to_arrow(), io.BytesIO()
        if isinstance(place, Path):
            refuse_to_overwrite(place)
        if place.name.endswith(".parquet"):
            pq.write_table(table, sink)
        elif place.name.endswith(".csv"):
            for name in ("neighbours", "neighbour_labels"):
                texts = [" ".join(map(str, one)) for one in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
            pc.write_csv(table, sink)
        else:
            raise ValueError(f"A review is written as .csv, .parquet or .html, got {place.name!r}.")
        save(place, sink.getvalue())
        return place
