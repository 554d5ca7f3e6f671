"""What every answer of an index needs: checked arguments, labels and columns of the rows found, meta data."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex._version import __version__
from gradindex.compute import queries
from gradindex.data import labels
from gradindex.gradients.engine import Engine
from gradindex.runtime.stages import stage
from gradindex.store import Store


@stage("describe")
def describe(store: Store, engine: Engine, asked: queries.Queries, data: dict[str, Any]) -> dict[str, Any]:
    """Return labels and predictions of queries and of the found samples."""
    found: dict[str, Any] = {"query_labels": labels.as_classes(asked.y)}
    try:
        found["query_predictions"] = labels.predicted_classes(queries.outputs(engine, asked.x))
    except TypeError:
        found["query_predictions"] = None
    for prefix, indices in (("", "ordered_indices"), ("opponent_", "opponent_indices")):
        ids = data[indices]
        rows = store.rows_of(np.where(ids < 0, store.ids[0], ids).ravel()).reshape(ids.shape)
        for column in ("label", "prediction"):
            if column in store.columns:
                found[f"{prefix}{column}s"] = store.columns[column][rows]
        if store.header.columns:
            found[f"{prefix}columns"] = store.columns.take(np.where(ids < 0, -1, rows), store.header.columns)
    return {name: value for name, value in found.items() if value is not None}


def check_k(k: int, rows: int) -> None:
    """Raise ValueError unless 1 ≤ k ≤ rows."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}.")
    if k > rows:
        raise ValueError(f"k is {k}, but there are only {rows} samples.")


def check_max_checks(certify: bool, max_checks: int | None, k: int) -> None:
    """Raise ValueError unless `max_checks` is None or, with `certify`, an integer of k or more."""
    if max_checks is None:
        return
    if not certify:
        raise ValueError("max_checks limits a proof: give certify=True with it, or rerank instead.")
    if not isinstance(max_checks, int | np.integer) or max_checks < k:
        raise ValueError(f"max_checks must be an integer of k = {k} or more, got {max_checks!r}.")


def distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows (m, c) with repeated entries of a line replaced by −1."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    out = np.empty_like(rows)
    np.put_along_axis(out, order, ordered, 1)
    return out


def meta(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the `meta` of an explanation, in Alibi's form."""
    return {
        "name": name,
        "type": ["whitebox"],
        "explanations": ["local"],
        "params": params,
        "version": __version__,
    }
