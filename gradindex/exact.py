"""Exact kernel values from unprojected gradients: all pairs by blocks, or a few candidates a query."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.batches import Batch, Ids, Source
from gradindex.embedding import check_batch, check_finite, default_batch_size
from gradindex.gradients.base import Embedded, Engine, Floats, PerSample, log
from gradindex.sketch.landmark import Landmark, LandmarkProjector, record
from gradindex.timing import stage

_FORWARD_BATCH = 64  # candidates in one forward-mode pass


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


def all_dots(
    engine: Engine, source: Source, queries: Floats, batch_size: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return inner products (m, n) of query gradients (m, P) with all of the dataset's, and its norms (n,)."""
    parts = [
        (dots(queries, found.gradients), norms(found.gradients))
        for _, found in gradient_blocks(engine, source, batch_size=batch_size)
    ]
    return np.hstack([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@stage("exact")
def candidate_dots(
    engine: Engine, source: Source, queries: Floats, candidates: Ids
) -> tuple[NDArray[np.float64], dict[int, float]]:
    """Return exact inner products of each query gradient with its own candidates.

    Parameters
    ----------
    engine, source
        The model and the dataset that `candidates` are positions in.
    queries
        Gradients, (m, P).
    candidates
        Ids, (m, c); −1 for none.

    Returns
    -------
    tuple
        Inner products (m, c), −inf at missing candidates; and the loss of every candidate by its id.
    """
    wanted = np.unique(candidates[candidates >= 0])
    pairs = int((candidates >= 0).sum())
    # One forward-mode pass per query needs no (b, P) gradients and costs about two thirds of forming them;
    # forming them once pays as soon as queries share candidates.
    if pairs <= 1.5 * len(wanted):
        try:
            return _forward(engine, source, queries, candidates)
        except Exception as error:
            log.warning("no forward mode for this model, forming gradients instead: %s", error)
    return _formed(engine, source, queries, candidates, wanted)


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
    """

    def __init__(self, engine: Engine, queries: Batch) -> None:
        self._engine, self.count = engine, len(queries)
        options = Landmark(landmarks=len(queries), dims=1, memory=1 << 62)
        self._projector = LandmarkProjector(options, engine.parameters, 0)
        self._norms = self._projector.adopt(record(self._projector, engine.of_queries, lambda: [queries], len(queries)))

    @stage("exact")
    def dots(self, batch: Batch) -> tuple[NDArray[np.float64], Embedded]:
        """Return inner products (m, b) with a batch of samples, to 1e-6 ‖q‖‖t‖, and the samples' losses and norms."""
        check_batch(batch)
        found = self._engine.embed(batch.x, batch.y, self._projector)
        check_finite(batch.ids, "loss", found.losses)
        check_finite(batch.ids, "gradient", found.norms)
        return found.sketches.T.astype(np.float64) * self._norms[:, None], found


def _forward(
    engine: Engine, source: Source, queries: Floats, candidates: Ids
) -> tuple[NDArray[np.float64], dict[int, float]]:
    out = np.full(candidates.shape, -np.inf)
    losses: dict[int, float] = {}
    for line, (query, row) in enumerate(zip(queries, candidates, strict=True)):
        present = np.flatnonzero(row >= 0)
        for begin in range(0, len(present), _FORWARD_BATCH):
            columns = present[begin : begin + _FORWARD_BATCH]
            batch = source.take(row[columns])
            found, loss = engine.directional(batch.x, batch.y, query)
            check_finite(batch.ids, "gradient", found)
            out[line, columns] = found
            losses.update(zip(batch.ids.tolist(), loss.tolist(), strict=True))
    return out, losses


def _formed(
    engine: Engine, source: Source, queries: Floats, candidates: Ids, wanted: Ids
) -> tuple[NDArray[np.float64], dict[int, float]]:
    every = np.empty((len(queries), len(wanted)))
    losses: dict[int, float] = {}
    begin = 0
    for batch, found in gradient_blocks(engine, source, wanted):
        every[:, begin : begin + len(batch)] = dots(queries, found.gradients)
        losses.update(zip(batch.ids.tolist(), found.losses.tolist(), strict=True))
        begin += len(batch)
    place = np.minimum(np.searchsorted(wanted, candidates), max(len(wanted) - 1, 0))
    out: NDArray[Any] = np.where(candidates >= 0, np.take_along_axis(every, place, 1), -np.inf)
    return out, losses
