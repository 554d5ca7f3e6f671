"""A metric's feature map in the place of gradients, so that all that is built on gradients serves every metric.

Each cosine metric is the cosine, and each dot metric the inner product, of two rows of numbers. With those rows as
"gradients" of one pseudo-parameter, sketches, stores, searches, exact re-ranks, proofs and audits are those of
any other engine.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gradindex import metric_names
from gradindex.data.names import Leaf
from gradindex.data.source import Tree, has_ragged, length, rectangles, take_rows
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded, PerSample, joined
from gradindex.job import Job
from gradindex.relevance.base import Options
from gradindex.relevance.features import Space, forward_rows
from gradindex.relevance.hidden import Hidden

PATH = "feature map"


class FeatureEngine(Engine):
    """The rows of a cosine or dot metric, (b, d) float64; losses and outputs are the model's.

    For IF and FK the rows carry a power of the inverse matrix, which is computed from the training set when the first
    row is asked for, anew in every process.

    Parameters
    ----------
    job
        The job without a metric.
    spec
        What `gradindex.relevance.spec` returned.
    """

    fast_path = "vmap"

    def __init__(self, job: Job, spec: dict[str, object]) -> None:
        super().__init__()
        self.metric = str(spec["name"])
        self.similarity, self._feature = metric_names.parse(self.metric)
        options = Options(**metric_names.options(spec))
        self._job, self._engine = job, job.engine
        self._space = Space(job, options)
        self._hidden = Hidden(job, options.layers)
        self._query, self._alone = False, False
        self.backend, self.class_axis = self._engine.backend, self._engine.class_axis  # type: ignore[misc]
        self.frozen, self.dtype = self._engine.frozen, np.dtype(np.float64)
        self.deterministic = self._engine.deterministic
        self.parameters = (Parameter(name=self.metric, position=0, shape=(self._width(),), dtype="float64"),)
        self._paths = {self.metric: PATH}

    @property
    def of_queries(self) -> "FeatureEngine":
        """The engine of the queries' rows, which for IF are not those of training samples: H may be indefinite."""
        if self.similarity == "cos" or self._feature not in ("IF", "FK"):
            return self
        other = object.__new__(FeatureEngine)
        other.__dict__.update(self.__dict__, _query=True)
        return other

    @property
    def bytes_per_sample(self) -> int:
        """About how many bytes of working memory `embed` takes for a sample."""
        return self._engine.bytes_per_sample + 3 * self.size * self.dtype.itemsize

    def _width(self) -> int:
        if metric_names.of_gradients(self._feature):
            return self._engine.size
        first = self._job.source.take(np.zeros(1, np.int64))
        return int(self._rows(first.x).shape[1])

    def _rows(self, x: Tree) -> Floats:
        """Return the rows (b, d) of metrics that need no gradient."""
        return forward_rows(self._job, self._hidden, x, self._feature)

    def outputs(self, x: Tree) -> Floats:
        """Return the model's outputs (b, …) in inference mode."""
        return self._engine.outputs(x)

    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""
        return self._engine.losses(outputs, y)

    def gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return the rows (b, d), and the model's losses and outputs.

        Raises
        ------
        ValueError
            If samples of different shapes have rows of different widths.
        """
        if length(x) and has_ragged(x, y):
            return joined([(rows, self.gradients(part, labels)) for rows, part, labels in rectangles(x, y)])
        if self._alone and length(x) > 1:
            ones = [slice(i, i + 1) for i in range(length(x))]
            return joined(
                [(np.arange(length(x))[one], self.gradients(take_rows(x, one), take_rows(y, one))) for one in ones]
            )
        if metric_names.of_gradients(self._feature):
            found = self._engine.gradients(x, y)
            return dataclasses.replace(found, gradients=self._transformed(found.gradients.astype(np.float64)))
        rows, outputs = self._rows(x), self._engine.outputs(x)
        if rows.shape[1] != self.size:
            raise ValueError(f"{self.metric} has {self.size} numbers for some samples, {rows.shape[1]} for others.")
        return PerSample(rows, self._engine.losses(outputs, y), outputs)

    def _transformed(self, gradients: Leaf) -> Floats:
        if self._feature == "grad":
            return np.asarray(gradients)
        inverse = self._space.inverse(self._feature)
        return inverse.root(gradients) if self.similarity == "cos" else inverse.halves(gradients, query=self._query)

    def settle(self, x: Tree, y: Tree) -> None:
        """Choose the paths of the model's own gradients, where rows need them; costs no matrix."""
        if metric_names.of_gradients(self._feature):
            self._engine.settle(x, y)
            self.signals = self._engine.signals

    def lower(self) -> bool:
        """Compute gradients one rung lower, and other rows sample by sample; False if that is so already."""
        if metric_names.of_gradients(self._feature):
            return self._engine.lower()
        before, self._alone = self._alone, True
        return not before

    @contextmanager
    def paths_kept(self) -> Iterator[None]:
        """Put back at the end what `lower` changes within it."""
        before = self._alone
        with self._engine.paths_kept():
            try:
                yield
            finally:
                self._alone = before

    @property
    def is_half(self) -> bool:
        """Whether a part of the model computes in half precision."""
        return self._engine.is_half

    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return `gradients`."""
        return self.gradients(x, y)

    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the rows of a batch of ONE sample; those made of gradients, from one training step's."""
        if not metric_names.of_gradients(self._feature):
            return self.gradients(x, y)
        found = self._engine.sample_gradient(x, y)
        return dataclasses.replace(found, gradients=self._transformed(found.gradients.astype(np.float64)))

    def embed(self, x: Tree, y: Tree, projector: Projector) -> Embedded:
        """Return sketches and exact norms of the rows, and the model's losses and outputs."""
        if length(x) and has_ragged(x, y):
            return joined([(rows, self.embed(part, labels, projector)) for rows, part, labels in rectangles(x, y)])
        found = self.gradients(x, y)
        norms = np.linalg.norm(found.gradients, axis=1)
        return Embedded(projector(self.parameters, found.gradients), norms, found.losses, found.outputs)

    def unused(self, x: Tree, y: Tree) -> list[str]:
        """Return nothing: rows do not depend on parameters one by one."""
        return []

    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return ⟨direction, row_i⟩ (b,), and the losses (b,)."""
        found = self.gradients(x, y)
        return found.gradients @ np.asarray(direction, np.float64), found.losses

    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every weight and statistic of the model by name."""
        return self._engine.state_hashes()
