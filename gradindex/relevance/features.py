"""Features of one job's samples, each computed once and shared by the metrics."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.compute import exact, queries
from gradindex.data.names import Tree
from gradindex.data.source import leaves, length
from gradindex.job import Job
from gradindex.metric_names import feature_map
from gradindex.relevance import curvature
from gradindex.relevance.base import Options, Rows
from gradindex.relevance.hidden import Hidden
from gradindex.relevance.inverse import Inverse
from gradindex.words import Task

_BATCH = 128


class Space:
    """Inputs, hidden representations and gradients of a job's samples, float64, and inverse matrices.

    Holds n × d numbers for every feature that was asked for: meant for models and datasets whose n × P
    gradients fit into memory.
    """

    def __init__(self, job: Job, options: Options) -> None:
        self.job = job
        self.options = options
        self._train: dict[str, Rows] = {}
        self._inverse: dict[str, Inverse] = {}
        self._example = job.source.take(np.arange(min(2, len(job.source)), dtype=np.int64))
        self._last: tuple[Any, Any, dict[str, Rows]] = (None, None, {})
        self._products: dict[str, tuple[Rows, tuple[Rows, Rows, Rows]]] = {}

    def train(self, feature: str) -> Rows:
        """Return a feature of all training samples (n, d)."""
        if feature not in self._train:
            self._train[feature] = self._compute(feature)
        return self._train[feature]

    def train_root(self, matrix: str) -> Rows:
        """Return M^(1/2) g of all training samples (n, P), M the inverse of Hessian or Fisher matrix."""
        key = f"root-{matrix}"
        if key not in self._train:
            self._train[key] = self.inverse(matrix).root(self.train("grad"))
        return self._train[key]

    def of(self, feature: str, X: Tree, y: Tree = None) -> Rows:
        """Return a feature of queries (m, d); `y` None means predicted labels. The last queries are kept."""
        if self._last[0] is not X or self._last[1] is not y:
            self._last = (X, y, {})
        kept = self._last[2]
        if feature not in kept:
            kept[feature] = self._of(feature, X, y)
        return kept[feature]

    def products(self, feature: str, X: Tree, y: Tree = None) -> tuple[Rows, Rows, Rows]:
        """Return inner products (m, n) of queries and training samples, and their norms (m,) and (n,).

        Of IF and FK, those of M^(1/2) g. The last queries' are kept, so that metrics of one feature share them.
        """
        matrix = feature in ("IF", "FK")
        queries = self.of("grad" if matrix else feature, X, y)
        kept = self._products
        if feature not in kept or kept[feature][0] is not queries:
            rows = self.inverse(feature).root(queries) if matrix else queries
            keys = self.train_root(feature) if matrix else self.train(feature)
            kept[feature] = queries, (rows @ keys.T, np.linalg.norm(rows, axis=1), np.linalg.norm(keys, axis=1))
        return kept[feature][1]

    def _of(self, feature: str, X: Tree, y: Tree) -> Rows:
        engine = self.job.engine
        x, labels = queries.match_shapes(X, y, self._example)
        if feature == "grad":
            task = Task(self.job.task)
            asked = queries.with_labels(engine, task, x, labels, self._label_like())
            parts = [rows for _, rows, _ in queries.gradient_chunks(engine, asked)]
            return np.concatenate(parts).astype(np.float64)
        return forward_rows(self.job, Hidden(self.job, self.options.layers), x, feature)

    def inverse(self, matrix: str) -> Inverse:
        """Return the inverse of the Hessian (``"IF"``) or of the Fisher information matrix (``"FK"``)."""
        if matrix not in self._inverse:
            if matrix == "FK":
                self._inverse[matrix] = curvature.fisher(self.job, self.options, lambda: self.train("grad"))
            else:
                self._inverse[matrix] = curvature.hessian(self.job, self.options)
        return self._inverse[matrix]

    def _compute(self, feature: str) -> Rows:
        source = self.job.source
        if feature == "grad":
            parts = [found.gradients for _, found in exact.gradient_blocks(self.job.engine, source)]
        else:
            hidden = Hidden(self.job, self.options.layers)
            parts = [forward_rows(self.job, hidden, batch.x, feature) for batch in source.blocks(_BATCH)]
        return np.concatenate(parts).astype(np.float64, copy=False)

    def _label_like(self) -> Tree:
        source = self.job.source
        return source.take(np.arange(min(len(source), 10_000), dtype=np.int64)).y


def forward_rows(job: Job, hidden: Hidden, x: Tree, feature: str) -> Rows:
    """Return the rows (b, d) float64 of a feature that is no gradient: inputs, hidden layers, or a plugin's.

    Raises
    ------
    ValueError
        If a plugin returns something else than a row of finite numbers for each sample.
    """
    if feature == "x":
        return flatten(x)
    plugin = None if feature in ("last", "all") else feature_map(feature)
    if plugin is None:
        return hidden(x, feature)
    rows = np.asarray(plugin.rows(job, x))
    count = length(x)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "biuf" or not np.isfinite(rows).all():
        raise ValueError(
            f"The plugin of the metric {feature!r} returned {rows.dtype} values of shape {rows.shape} "
            f"for {count} samples; expected finite numbers ({count}, d)."
        )
    return rows.astype(np.float64)


def flatten(x: Tree) -> NDArray[np.float64]:
    """Return the numbers of each sample's input as one row (b, d); parts of a dict or tuple side by side.

    Raises
    ------
    TypeError
        If inputs are objects that are no arrays.
    """
    from gradindex.data.labels import as_array

    parts = []
    for leaf in leaves(x):
        if isinstance(leaf, list):
            raise TypeError("Inputs of different shapes have no rows of numbers: use metrics of hidden layers instead.")
        parts.append(as_array(leaf).reshape(len(leaf), -1).astype(np.float64))
    return np.concatenate(parts, axis=1)
