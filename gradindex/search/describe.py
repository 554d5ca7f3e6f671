"""What is known of queries and of the samples that were found for them."""

import numpy as np

from gradindex.compute import queries
from gradindex.data import labels
from gradindex.data.source import Ids
from gradindex.gradients.engine import Engine
from gradindex.runtime.stages import stage
from gradindex.search.answer import Answer, Described, Known
from gradindex.store import Store


@stage("describe")
def describe(store: Store, engine: Engine, asked: queries.Queries, answer: Answer, *, own: bool = True) -> Described:
    """Return labels and predictions of queries, and what the store says of the samples found.

    `own`: the labels of the queries were given, and are not what the model predicts.
    """
    try:
        predictions = asked.predicted_classes(engine)
    except TypeError:
        predictions = None
    given = labels.as_classes(asked.y) if own else None
    return Described(given, predictions, *(known(store, side.ids) for side in answer.sides))


def known(store: Store, ids: Ids) -> Known:
    """Return what a store says of samples (m, k); −1 for none."""
    rows = store.rows_of(np.where(ids < 0, store.ids[0], ids).ravel()).reshape(ids.shape)
    found = {name: store.columns[name][rows] for name in ("label", "prediction") if name in store.columns}
    own = store.columns.take(np.where(ids < 0, -1, rows), store.header.columns) if store.header.columns else None
    return Known(found.get("label"), found.get("prediction"), own)
