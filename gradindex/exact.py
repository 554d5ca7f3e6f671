"""Exact kernel values from unprojected gradients: all pairs by blocks, or a few candidates a query."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.batches import Batch, Ids, Source, is_ragged, leaves, rectangles
from gradindex.embedding import check_batch, check_finite, default_batch_size
from gradindex.gradients import double_backward
from gradindex.gradients.base import Embedded, Engine, Floats, PerSample, log
from gradindex.gradients.ladder import FACTORED, LOOP, is_out_of_memory
from gradindex.sketch.landmark import WHOLE, Landmark, LandmarkProjector
from gradindex.sketch.recorder import record
from gradindex.timing import stage

FORWARD, BACKWARD, FACTORS, FORMED = "forward mode", "double backward", "factors", "formed gradients"
FORWARD_PAIRS = 1.5
"""Up to so many pairs for a distinct candidate, each of several queries has passes of its own, unless all weight
matrices of the model are kept as factors (`HeldQueries.slim`)."""
_FORWARD_BATCH = 64  # candidates in one forward-mode pass
_UNSPLIT = 15  # samples that no engine computes in parts, which could not be kept
_SMALL = 1 << 16  # parameters; to form fewer costs little beside the pass of a layer with many positions


def gradient_blocks(
    engine: Engine, source: Source, ids: Ids | None = None, batch_size: int | None = None
) -> Iterator[tuple[Batch, PerSample]]:
    """Yield batches of the dataset (or of its samples `ids`) with their per-sample gradients."""
    size = batch_size or default_batch_size(engine)
    if ids is None:
        batches: Iterator[Batch] = source.blocks(size)
    else:
        batches = (source.take(ids[i : i + size]) for i in range(0, len(ids), size))
    for batch in batches:
        check_batch(batch)
        found = engine.gradients(batch.x, batch.y)
        check_finite(batch.ids, "loss", found.losses)
        check_finite(batch.ids, "gradient", found.gradients)
        yield batch, found


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


def scan(
    engine: Engine,
    source: Source,
    queries: Batch,
    gradients: Floats,
    batch_size: int | None = None,
    ids: Iterator[Ids] | None = None,
) -> Iterator[tuple[Batch, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield batches of the dataset with exact inner products (m, b) and norms (b,), in one pass for all queries.

    Where a large model has factored layers, the queries are kept as factors, and the dataset's gradients are neither
    formed nor stored, whatever the number of queries. (A forward-mode pass serves one query, and gives no norms.) In
    double precision, of small models, and where nothing is factored, gradients are formed a batch at a time, and their
    products are summed in double precision.

    Parameters
    ----------
    engine, source
        The model and the dataset.
    queries, gradients
        m labelled samples, and their gradients (m, P).
    batch_size
        Samples at once; None finds a size.
    ids
        Ids of each batch; None: the whole dataset in order.
    """
    size = batch_size or default_batch_size(engine)
    batches = source.blocks(size) if ids is None else (source.take(some) for some in ids)
    if engine.size <= _SMALL or not _has_factors(engine):
        for batch in batches:
            check_batch(batch)
            found = engine.gradients(batch.x, batch.y)
            check_finite(batch.ids, "loss", found.losses)
            check_finite(batch.ids, "gradient", found.gradients)
            yield batch, dots(gradients, found.gradients), norms(found.gradients)
        return
    held = HeldQueries(engine, queries)
    for batch in batches:
        products, embedded = held.dots(batch)
        yield batch, products, embedded.norms


@dataclass(frozen=True)
class Evaluated:
    """Exact inner products of queries with candidates.

    `dots` (m, c) float64, −inf at missing candidates; `losses` of every candidate by its id; `method` says how.
    """

    dots: NDArray[np.float64]
    losses: dict[int, float]
    method: str


def candidate_dots(
    engine: Engine,
    source: Source,
    queries: Batch | None,
    gradients: Floats,
    candidates: Ids,
    batch_size: int | None = None,
) -> Evaluated:
    """Return exact inner products of each query's gradient with its own candidates'.

    A query of its own takes one forward-mode pass over its candidates, or double backward where the model has an
    operation without forward mode. Several are kept as factors, and all candidates pass once, where that is cheap (see
    `HeldQueries.slim`) or they share candidates. What fails falls back to forming gradients, which ends with the loop.

    Parameters
    ----------
    engine, source
        The model and the dataset that `candidates` are positions in.
    queries, gradients
        m labelled samples (None: not at hand, so that nothing is kept as factors) and their gradients, (m, P).
    candidates
        Ids, (m, c); −1 for none.
    batch_size
        Candidates compared at once with queries that are kept as factors; None finds a size.
    """
    wanted = np.unique(candidates[candidates >= 0])
    if not len(wanted):
        return Evaluated(np.full(candidates.shape, -np.inf), {}, "none")
    shared = int((candidates >= 0).sum()) > FORWARD_PAIRS * len(wanted)
    several = queries if len(gradients) > 1 and _has_factors(engine) else None
    # One query tells: keeping all of them may take as many numbers as their gradients.
    slim = several is not None and HeldQueries(engine, several.select(slice(0, 1))).slim
    if not shared and not slim:
        for method, along in ((FORWARD, engine.directional), (BACKWARD, partial(double_backward.directional, engine))):
            try:
                return Evaluated(*_along(along, source, gradients, candidates), method)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                log.warning("no %s for this model, trying the next way: %s", method, error)
    keep = several if slim or engine.size > _SMALL else None
    held = None if keep is None else HeldQueries(engine, keep, together=True)
    return _shared(engine, source, held, gradients, candidates, wanted, batch_size or default_batch_size(engine))


def _has_factors(engine: Engine) -> bool:
    """Whether gradients can be kept as factors, in single precision."""
    return engine.dtype != np.float64 and FACTORED in engine.paths.values()


def _shared(
    engine: Engine,
    source: Source,
    held: "HeldQueries | None",
    gradients: Floats,
    candidates: Ids,
    wanted: Ids,
    size: int,
) -> Evaluated:
    """Compare all queries with all wanted candidates, `size` at a time if they are held, and pick."""
    every = np.empty((len(gradients), len(wanted)))
    losses: dict[int, float] = {}
    method = FACTORS
    if held is not None:
        for begin in range(0, len(wanted), size):
            batch = source.take(wanted[begin : begin + size])
            every[:, begin : begin + len(batch)], found = held.dots(batch)
            losses.update(zip(batch.ids.tolist(), found.losses.tolist(), strict=True))
    else:
        begin = 0
        with stage("exact"):
            for batch, formed in gradient_blocks(engine, source, wanted):
                every[:, begin : begin + len(batch)] = dots(gradients, formed.gradients)
                losses.update(zip(batch.ids.tolist(), formed.losses.tolist(), strict=True))
                begin += len(batch)
        method = LOOP if set(engine.paths.values()) == {LOOP} else FORMED
    place = np.minimum(np.searchsorted(wanted, candidates), len(wanted) - 1)
    out: NDArray[Any] = np.where(candidates >= 0, np.take_along_axis(every, place, 1), -np.inf)
    return Evaluated(out, losses, method)


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

    @stage("exact")
    def __init__(self, engine: Engine, queries: Batch, together: bool = False) -> None:
        self._engine, self.count = engine, len(queries)
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


@stage("exact")
def _along(
    along: Callable[[Any, Any, Floats], tuple[Floats, Floats]], source: Source, queries: Floats, candidates: Ids
) -> tuple[NDArray[np.float64], dict[int, float]]:
    """Return inner products (m, c) and losses by a pass for each query over its candidates."""
    out = np.full(candidates.shape, -np.inf)
    losses: dict[int, float] = {}
    for line, (query, row) in enumerate(zip(queries, candidates, strict=True)):
        present = np.flatnonzero(row >= 0)
        for begin in range(0, len(present), _FORWARD_BATCH):
            columns = present[begin : begin + _FORWARD_BATCH]
            batch = source.take(row[columns])
            objects = any(isinstance(leaf, list) and not is_ragged(leaf) for leaf in leaves(batch.x))
            for rows, x, y in rectangles(batch.x, batch.y, 1 if objects else None):  # models get objects one by one
                found, loss = along(x, y, query)
                check_finite(batch.ids[rows], "gradient", found)
                out[line, columns[rows]] = found
                losses.update(zip(batch.ids[rows].tolist(), loss.tolist(), strict=True))
    return out, losses
