"""Exact kernel values from unprojected gradients: all pairs by blocks, or a few candidates a query."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.compute.blocks import default_batch_size
from gradindex.compute.held_queries import HeldGradients, HeldQueries, compare, dots, hold, norms
from gradindex.data.checks import check_batch, check_finite
from gradindex.data.source import Batch, Ids, Source, is_ragged, leaves, rectangles
from gradindex.gradients import loop, paths
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.gradients.paths import LOOP, is_out_of_memory
from gradindex.gradients.results import PerSample
from gradindex.gradients.signals import BACKWARD, FACTORED, FACTORS, FORWARD
from gradindex.gradients.ways import FORMED, STEPS, Truth, WayDiffers, pairs
from gradindex.runtime.log import log
from gradindex.runtime.stages import stage

FORWARD_PAIRS = 1.5
"""Up to so many pairs for a distinct candidate, each of several queries has passes of its own, until it is known what
the ways cost; unless all weight matrices of the model are kept as factors (`HeldQueries.slim`)."""
_FORWARD_BATCH = 64  # candidates in one forward-mode pass
Along = Callable[[Any, Any, Floats], tuple[Floats, Floats]]
_SMALL = 1 << 16  # parameters; to form fewer costs little beside the pass of a layer with many positions
_TRIED = 1 << 22  # parameters; of a larger model, to try another way may take long
_KEEP = "queries as factors"  # one of the prices


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
        yield batch, gradients_of(engine, batch)


def gradients_of(engine: Engine, batch: Batch) -> PerSample:
    """Return the gradients (b, P) of a batch, some of which are compared with training steps.

    If they disagree, the engine takes the next rung of its ladder from here on.
    """
    check_batch(batch)
    while True:
        steps = engine.ways.distrusted
        found = loop.gradients(engine, batch.x, batch.y) if steps else engine.gradients(batch.x, batch.y)
        check_finite(batch.ids, "loss", found.losses)
        check_finite(batch.ids, "gradient", found.gradients)
        if steps:
            return found
        try:
            engine.ways.check_rows(batch, found.gradients)
            return found
        except WayDiffers as error:
            if not engine.lower():
                return found  # training steps, of a model that is not the same each time
            log.warning("%s, so the next way is taken: %s", error, sorted(set(engine.paths.values())))


def scan(
    engine: Engine,
    source: Source,
    queries: Batch,
    gradients: Floats,
    batch_size: int | None = None,
    ids: Iterator[Ids] | None = None,
    by_steps: bool = False,
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
    by_steps
        Whether to take a training step for every sample, and trust no faster way.
    """
    _settle(engine, source)
    size = batch_size or default_batch_size(engine)
    batches = source.blocks(size) if ids is None else (source.take(some) for some in ids)
    if not by_steps and (engine.size <= _SMALL or not _has_factors(engine)):
        for batch in batches:
            found = gradients_of(engine, batch)
            yield batch, dots(gradients, found.gradients), norms(found.gradients)
        return
    held = HeldGradients(engine, queries) if by_steps else hold(engine, queries)
    for batch in batches:
        try:
            products, embedded = held.dots(batch)
            compare(engine, held, batch, products)
        except WayDiffers as error:
            log.warning("%s, so training steps are taken", error)
            held = hold(engine, queries)
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

    Each query takes a forward-mode pass over its candidates, or double backward where the model has an operation
    without forward mode; or queries are kept as factors, and all candidates pass once. Both are timed, and the cheaper
    one is taken; until that is known, the second where several queries share candidates. What fails, or disagrees with
    training steps (see `gradindex.gradients.ways`), falls back to forming gradients, which ends with the loop: training
    steps themselves.

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
    _settle(engine, source)
    kept = _kept(engine, queries)
    if not _pays_together(engine, kept, candidates, len(wanted)):
        for method, along in ((FORWARD, engine.directional), (BACKWARD, engine.directional_twice)):
            if not engine.ways.usable(method):
                continue
            try:
                began = time.perf_counter()
                found = Evaluated(*_along(along, source, gradients, candidates), method)
                engine.ways.prices.note(
                    method, time.perf_counter() - began, int((candidates >= 0).sum()), candidates.shape[1]
                )
                _check(engine, source, queries, gradients, candidates, found, along)
                return found
            except WayDiffers as error:
                log.warning("%s, trying the next way", error)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                log.warning("no %s for this model, trying the next way: %s", method, error)
    size = batch_size or default_batch_size(engine)
    if kept is not None:
        try:
            began = time.perf_counter()
            held = HeldQueries(engine, kept, together=True)
            engine.ways.prices.note(_KEEP, time.perf_counter() - began, held.count, held.count)
            began = time.perf_counter()
            found = _shared(engine, source, held, gradients, candidates, wanted, size)
            engine.ways.prices.note(FACTORS, time.perf_counter() - began, len(wanted), len(wanted))
            _check(engine, source, queries, gradients, candidates, found)
            return found
        except WayDiffers as error:
            log.warning("%s, trying the next way", error)
    return _shared(engine, source, None, gradients, candidates, wanted, size)


def _kept(engine: Engine, queries: Batch | None) -> Batch | None:
    """Return the queries if they may be kept as factors, rather than candidates' gradients be formed; else None."""
    if queries is None or not _has_factors(engine) or not engine.ways.usable(FACTORS):
        return None
    return queries if engine.size > _SMALL or (len(queries) > 1 and _slim(engine, queries)) else None


def _slim(engine: Engine, queries: Batch) -> bool:
    """Whether queries are kept as little more than factors: one tells, and all may take as much as their gradients."""
    return HeldQueries(engine, queries.select(slice(0, 1))).slim


def _pays_together(engine: Engine, kept: Batch | None, candidates: Ids, distinct: int) -> bool:
    """Whether queries had better be compared in one pass of each candidate than have passes of their own.

    Parameters
    ----------
    engine
        The model.
    kept
        The queries, if they may be kept as factors; else candidates' gradients would be formed.
    candidates, distinct
        Candidates of each query (m, c), −1 for none, and how many different ones there are.
    """
    ways, count = engine.ways, int((candidates >= 0).sum())
    share = count > FORWARD_PAIRS * distinct
    if kept is None:
        return share
    # Of a model without forward mode, only the second is known.
    known = (ways.prices.of(way, candidates.shape[1]) for way in (FORWARD, BACKWARD) if ways.usable(way))
    alone = next((price for price in known if price is not None), None)
    keep, once = ways.prices.of(_KEEP, len(kept)), ways.prices.of(FACTORS, distinct)
    if keep is None or once is None:
        few = engine.size <= _SMALL  # so that they are slim, see `_kept`
        tried = alone is not None and engine.size <= _TRIED
        return share or few or tried or (len(kept) > 1 and _slim(engine, kept))
    return share if alone is None else len(kept) * keep + distinct * once < count * alone


def _check(
    engine: Engine,
    source: Source,
    queries: Batch | None,
    gradients: Floats,
    candidates: Ids,
    found: Evaluated,
    along: Along | None = None,
) -> None:
    """Compare some of the products that were found with those of training steps, if that is due.

    At first, where the way is a pass `along` a query's gradient, that of the query with itself, too.
    """
    ways = engine.ways
    counts = (candidates >= 0).sum(axis=1)
    passes = -(-int(counts.max()) // _FORWARD_BATCH)
    some = pairs(candidates, ways.due(found.method, passes, int(counts.sum())), ways.compared)
    if not some:
        return
    with stage("compare"):
        new = ways.is_new(found.method)

        def compared() -> Iterator[tuple[Truth, Truth, float]]:
            for line, column in some:
                sample = source.take(candidates[line, column : column + 1])
                yield Truth(gradients[line], math.inf), ways.truth(sample), float(found.dots[line, column])
            if along is not None and queries is not None and new:
                line = some[0][0]
                one = queries.select(_at(line))
                value, _ = along(one.x, one.y, gradients[line])
                yield Truth(gradients[line], math.inf), ways.truth(one), float(value[0])

        ways.check(found.method, compared())


def _at(place: int) -> slice:
    return slice(place, place + 1)


def _settle(engine: Engine, source: Source) -> None:
    """Let an engine choose its paths by the dataset's first samples, if it has seen none yet."""
    if engine.signals is None and len(source):
        first = source.take(np.arange(min(paths.SAMPLES, len(source)), dtype=np.int64))
        check_batch(first)
        engine.settle(first.x, first.y)


def _has_factors(engine: Engine) -> bool:
    """Whether gradients can be kept as factors, in single precision."""
    return engine.dtype != np.float64 and FACTORED in engine.paths.values()


def _shared(
    engine: Engine,
    source: Source,
    held: HeldQueries | None,
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
        method = STEPS if engine.ways.distrusted or set(engine.paths.values()) == {LOOP} else FORMED
    place = np.minimum(np.searchsorted(wanted, candidates), len(wanted) - 1)
    out: NDArray[Any] = np.where(candidates >= 0, np.take_along_axis(every, place, 1), -np.inf)
    return Evaluated(out, losses, method)


@stage("exact")
def _along(
    along: Along, source: Source, queries: Floats, candidates: Ids
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


__all__ = ["Evaluated", "candidate_dots", "dots", "gradient_blocks", "gradients_of", "norms", "scan"]
