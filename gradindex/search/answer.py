"""Answers: what was found for each query on both sides; how an explanation's data has it, written and read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex._version import __version__
from gradindex.search.options import Measure

if TYPE_CHECKING:
    from gradindex.data.source import Ids
    from gradindex.data.table import Columns

PREFIXES = "", "opponent_"
_INDICES = "ordered_indices", "opponent_indices"
SIDES = {"proponent": (PREFIXES[0], _INDICES[0]), "opponent": (PREFIXES[1], _INDICES[1])}
"""By its name, what an explanation's data has in front of what it says of a side, and what it calls the ids."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What was found on one side of m queries, best first.

    `ids` (m, k), −1 where nothing was found; their `scores` (m, k), NaN there; `exact` (m, k): whether they were
    evaluated exactly. `proved` (m,): whether this is the answer of the exact kernel; `checked` (m,): rows evaluated
    exactly; `scanned` (m,): rows looked at, −1 where that is not known; `bound_left` (m,): where not proved, what the
    values of all rows not evaluated keep to, else NaN. `expected_recall` (m,): the share of the true k that such an
    answer holds on average, NaN where nothing says so (see `gradindex.search.calibration`).
    """

    ids: "Ids"
    scores: NDArray[np.float64]
    exact: NDArray[np.bool_]
    proved: NDArray[np.bool_]
    checked: NDArray[np.int64]
    scanned: NDArray[np.int64]
    bound_left: NDArray[np.float64]
    expected_recall: NDArray[np.float64]

    def without(self, changed: "Ids") -> "Side":
        """Return the side where samples turned out to have `changed`: they are not exact, and nothing is proved."""
        return replace(self, exact=self.exact & ~np.isin(self.ids, changed), proved=np.zeros_like(self.proved))


@dataclass(frozen=True)
class Answer:
    """The samples of the highest kernel values for each of m queries, and those of the lowest."""

    proponents: Side
    opponents: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        """Proponents and opponents."""
        return self.proponents, self.opponents


@dataclass(frozen=True)
class Known:
    """What a store says of the samples found on one side: labels, predictions, the user's own columns, or None."""

    labels: NDArray[Any] | None = None
    predictions: NDArray[Any] | None = None
    columns: "Columns | None" = None


@dataclass(frozen=True)
class Described:
    """Labels and predictions of m queries, as far as they are known, and what is known of the samples found."""

    query_labels: NDArray[Any] | None
    query_predictions: NDArray[Any] | None
    proponents: Known
    opponents: Known


def joined(answers: Sequence[Answer]) -> Answer:
    """Return the answers to some queries after each other as one."""
    both = []
    for sides in zip(*(answer.sides for answer in answers), strict=True):
        both.append(
            Side(**{field.name: np.concatenate([getattr(one, field.name) for one in sides]) for field in fields(Side)})
        )
    return Answer(*both)


Measured = tuple[Mapping[str, NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]
"""Other measures of what was found, by name arrays (m, k), of proponents and of opponents."""


def explanation_data(answer: Answer, described: Described, measured: Measured = ({}, {})) -> dict[str, Any]:
    """Return the `data` of an `Explanation`, under the names that `Index.explain` documents; what is None is left out.

    With `found_sides`, which reads them, this is all that knows these names: proponents' ids are `ordered_indices`,
    opponents' `opponent_indices`, and all else of opponents is called as of proponents with ``opponent_`` in front.
    """
    data: dict[str, Any] = {}
    for prefix, indices, side in zip(PREFIXES, _INDICES, answer.sides, strict=True):
        data[f"{prefix}proved"] = side.proved
        data[f"{prefix}bound_left"] = side.bound_left
        data[f"{prefix}checked"] = side.checked
        data[f"{prefix}scanned"] = side.scanned
        data[f"{prefix}expected_recall"] = np.where(side.proved, 1.0, side.expected_recall)
        data[f"{prefix}scores"] = side.scores
        data[indices] = side.ids
        data[f"{prefix}exact"] = side.exact
    data |= {"query_labels": described.query_labels, "query_predictions": described.query_predictions}
    for prefix, known in zip(PREFIXES, (described.proponents, described.opponents), strict=True):
        data[f"{prefix}labels"] = known.labels
        data[f"{prefix}predictions"] = known.predictions
        data[f"{prefix}columns"] = known.columns
    for prefix, columns in zip(PREFIXES, measured, strict=True):
        data |= {f"{prefix}{name}": values for name, values in columns.items()}
    return {name: value for name, value in data.items() if value is not None}


@dataclass(frozen=True)
class Found:
    """One side as an explanation's data has it: arrays (m, k), and `proved` (m,).

    The data may come from a file or another explainer, so that only ids and scores are always there.
    """

    name: str
    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    exact: NDArray[np.bool_] | None
    labels: NDArray[Any] | None
    predictions: NDArray[Any] | None
    columns: Any
    """`gradindex.data.table.Columns`; of an earlier version, a dict of arrays."""
    proved: NDArray[np.bool_] | None
    measures: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Other measures that were asked for beside the scores."""


def expected_recalls(data: Mapping[str, Any], row: int) -> list[float]:
    """Return what an explanation's `data` says of the expected recall of a query's sides; [] if nothing is known."""
    found = [float(data[f"{prefix}expected_recall"][row]) for prefix in PREFIXES if f"{prefix}expected_recall" in data]
    return [] if np.isnan(found).any() else found


def found_sides(data: Mapping[str, Any]) -> list[Found]:
    """Return the sides that an explanation's `data` has: proponents and, if there are some, opponents."""
    sides = []
    for name, (prefix, indices) in SIDES.items():
        if indices in data:
            names = ("exact", "labels", "predictions", "columns", "proved")
            more: dict[str, Any] = {key: data.get(f"{prefix}{key}") for key in names}
            more["measures"] = {key.value: data[f"{prefix}{key}"] for key in Measure if f"{prefix}{key}" in data}
            sides.append(Found(name, data[indices], data[f"{prefix}scores"], **more))
    return sides


def check_k(k: int, rows: int) -> None:
    """Raise ValueError unless 1 ≤ k ≤ rows."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}.")
    if k > rows:
        raise ValueError(f"k is {k}, but there are only {rows} samples.")


def meta(name: str, params: dict[str, object]) -> dict[str, object]:
    """Return the `meta` of an explanation, in Alibi's form."""
    return {
        "name": name,
        "type": ["whitebox"],
        "explanations": ["local"],
        "params": params,
        "version": __version__,
    }
