"""Query gradients kept at hand, to be compared with whole batches: as factors, or as training steps gave them."""

import numpy as np
from numpy.typing import NDArray

from gradindex.compute.blocks import default_batch_size
from gradindex.data.checks import check_batch, check_finite
from gradindex.data.source import Batch
from gradindex.gradients import loop
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.gradients.results import Embedded
from gradindex.gradients.signals import FACTORS
from gradindex.gradients.ways import STEPS, pairs
from gradindex.runtime.stages import stage
from gradindex.sketch.captured import record
from gradindex.sketch.landmark import WHOLE, LandmarkProjector
from gradindex.sketch.landmark_options import Landmark

_STEP_BYTES = 64 << 20  # of training steps' gradients that are compared at once
_UNSPLIT = 15  # samples that no engine computes in parts, which could not be kept


def norms(gradients: Floats) -> NDArray[np.float64]:
    """Return ‖g‖ of each row (b, P), accumulated in float64."""
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", gradients, gradients, dtype=np.float64)
    return np.sqrt(squares)


def dots(queries: Floats, gradients: Floats) -> NDArray[np.float64]:
    """Return all inner products (m, b) of two sets of gradients (m, P), (b, P), accumulated in float64.

    Single precision would lose the small ones: errors of 1e-6 ‖q‖‖t‖ are large beside a cosine near zero.
    """
    out = np.zeros((len(queries), len(gradients)))
    for begin in range(0, queries.shape[1], 1 << 16):  # bounds the float64 copies
        part = slice(begin, begin + (1 << 16))
        out += queries[:, part].astype(np.float64) @ gradients[:, part].astype(np.float64).T
    return out


def by_steps(
    engine: Engine, gradients: Floats, batch: Batch
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return inner products (m, b) of gradients (m, P) with a batch's training steps, their norms and losses."""
    products, lengths, losses = np.empty((len(gradients), len(batch))), np.empty(len(batch)), np.empty(len(batch))
    size = int(np.clip(_STEP_BYTES // (engine.size * engine.dtype.itemsize), 1, 64))
    for begin in range(0, len(batch), size):
        some = slice(begin, begin + size)
        part = batch.select(some)
        found = loop.gradients(engine, part.x, part.y)
        products[:, some] = dots(gradients, found.gradients)
        lengths[some], losses[some] = norms(found.gradients), found.losses
    return products, lengths, losses


def hold(engine: Engine, queries: Batch) -> "Held":
    """Return queries in a form that compares them with whole batches: as factors, if these are right."""
    return HeldQueries(engine, queries) if engine.ways.usable(FACTORS) else HeldGradients(engine, queries)


class HeldGradients:
    """Query gradients by training steps, which are compared with those of samples, by training steps, too.

    Parameters
    ----------
    engine
        The model.
    queries
        Labelled samples, m of them; or their gradients (m, P), or sums of such, by training steps.
    """

    way = STEPS

    def __init__(self, engine: Engine, queries: Batch | Floats) -> None:
        self._engine, self.count = engine, len(queries)
        self.queries = queries if isinstance(queries, Batch) else None
        if isinstance(queries, Batch):
            self.gradients = loop.gradients(engine.of_queries, queries.x, queries.y).gradients
        else:
            self.gradients = queries

    @stage("exact")
    def dots(self, batch: Batch) -> tuple[NDArray[np.float64], Embedded]:
        """Return inner products (m, b) with a batch of samples, and the samples' losses and norms."""
        check_batch(batch)
        products, lengths, losses = by_steps(self._engine, self.gradients, batch)
        check_finite(batch.ids, "loss", losses)
        check_finite(batch.ids, "gradient", lengths)
        return products, Embedded(np.empty((len(batch), 0), np.float32), lengths, losses, None)


class HeldQueries:
    """Query gradients kept as their layers' factors: one batched pass over candidates compares them with all.

    Costs a forward and a backward pass a candidate, whatever the number of queries, and forms no gradient of a
    layer that is factored.

    Parameters
    ----------
    engine
        The model.
    queries
        Labelled samples, m of them.
    together
        Compute their gradients in one batch, not one by one: faster, but a gradient that is nearly zero may then depend
        on the other queries.
    """

    way = FACTORS

    @stage("exact")
    def __init__(self, engine: Engine, queries: Batch, together: bool = False) -> None:
        self._engine, self.queries, self.count = engine, queries, len(queries)
        options = Landmark(landmarks=len(queries), dims=1, memory=1 << 62)
        self._projector = LandmarkProjector(options, engine.parameters, 0, touches=True)
        own = engine.of_queries
        size = min(default_batch_size(engine), _UNSPLIT)
        parts = [queries.select(slice(begin, begin + size)) for begin in range(0, len(queries), size)]
        recorder = record(self._projector, own, lambda: parts, len(queries), together)
        recorder.scale(own.late_scales)
        self._norms = self._projector.adopt(recorder)

    @property
    def slim(self) -> bool:
        """Whether every weight matrix is kept as two factors, or as the rows of a table that were looked up.

        So it is where layers have one position, as in a multilayer perceptron: a pass then costs about as much as one
        in forward mode, which serves a single query. Other layers' gradients are formed for every candidate.
        """
        whole = {name for name, form in self._projector.forms.items() if form == WHOLE}
        return not any(len(one.shape) > 1 for one in self._engine.parameters if one.name in whole)

    @stage("exact")
    def dots(self, batch: Batch) -> tuple[NDArray[np.float64], Embedded]:
        """Return inner products (m, b) with a batch of samples, to 1e-6 ‖q‖‖t‖, and the samples' losses and norms."""
        check_batch(batch)
        found = self._engine.embed(batch.x, batch.y, self._projector)
        check_finite(batch.ids, "loss", found.losses)
        check_finite(batch.ids, "gradient", found.norms)
        return found.sketches.T.astype(np.float64) * self._norms[:, None], found


Held = HeldQueries | HeldGradients


def compare(engine: Engine, held: "Held", batch: Batch, products: NDArray[np.float64]) -> None:
    """Compare some of the products (m, b) of held queries with a batch with those of training steps, if that is due.

    Raises
    ------
    WayDiffers
        If they disagree.
    """
    ways, queries = engine.ways, held.queries
    if queries is None:  # gradients of training steps: their products are what others are compared with
        return
    some = pairs(np.zeros(products.shape, np.int64), ways.due(held.way), ways.compared)
    ways.check(
        held.way,
        (
            (
                ways.truth(queries.select(slice(line, line + 1)), of_query=True),
                ways.truth(batch.select(slice(column, column + 1))),
                float(products[line, column]),
            )
            for line, column in some
        ),
    )
