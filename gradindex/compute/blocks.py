"""Dataset to gradient embeddings, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.compute import landmarks, watch
from gradindex.data import labels
from gradindex.data.checks import as_ids, check_batch, check_finite
from gradindex.data.source import Batch, Ids, is_ragged, leaves, rectangles
from gradindex.defaults import SEED
from gradindex.gradients import in_double, loop, paths
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.gradients.paths import is_out_of_memory
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded, joined
from gradindex.job import Job
from gradindex.runtime.log import log
from gradindex.sketch import CountSketch, Sketch

MEMORY_BUDGET = 1 << 30  # bytes for one batch
_MOST = 128  # beyond this most models gain nothing
_MOST_SMALL = 512  # of samples that take little memory
_SMALL_BATCH_BYTES = 128 << 20
_WINDOW, _WINDOW_BYTES = 4096, 64 << 20  # of samples that differ in shape, read at once to find some that do not
_PEEK, _FIRST = 8, 256  # samples that tell whether shapes differ, and those among which the longest is sought


@dataclass(frozen=True)
class Block:
    """Embeddings of b consecutive samples.

    `ids` (b,) int64 dataset positions; `sketches` (b, k) float32, not normalised; `norms` (b,) float64, exact
    ‖g‖ of the unprojected gradients; `losses` (b,); `labels` (b,) and `predictions` (b,) where they are
    scalars or classes, else None; `roundings` (b,) how far rounding may turn them, where that is known and needed
    (`gradindex.gradients.in_double.directions`).
    """

    ids: Ids
    sketches: NDArray[np.float32]
    norms: NDArray[np.float64]
    losses: Floats
    labels: NDArray[Any] | None
    predictions: NDArray[np.int64] | None
    roundings: NDArray[np.float32] | None = None


def embed(
    job: Job, *, sketch: Sketch | None = None, seed: int = SEED, batch_size: int | None = None
) -> Iterator[Block]:
    """Yield the embeddings of a job's dataset in order.

    Parameters
    ----------
    job
        Model, loss and dataset.
    sketch
        The projection; ``CountSketch(1024)`` by default.
    seed
        Seed of the projection, an integer in [0, 2**64).
    batch_size
        Samples at once; None finds a size that takes about 1 GiB, at most 128.

    Raises
    ------
    ValueError
        If data, losses or gradients hold NaN or infinity (the message names the ids), or labels are missing.
    """
    projector = (sketch or CountSketch()).bind(job.engine.parameters, seed)
    landmarks.prepare(projector, job)
    size = batch_size or embedding_batch_size(job)
    question = (type(projector).__name__, projector.dim, seed, size)
    again = question in job.engine.compared  # the same rows by the same path: nothing new to compare
    drawn = np.empty(0, np.int64) if again else watch.draw(seed, 0, len(job.source), len(job.source))
    compared = watch.RowWatch(job.engine, projector, drawn)
    with job.engine.paths_kept():
        paths = job.engine.paths
        for batch in job.source.blocks(_reading_size(job, size)):
            while True:
                try:
                    block = _block(job, projector, size, batch, compared)
                    break
                except watch.RowsDiffer as error:
                    watch.lower(job.engine, error)
                    compared.forget()
            yield block
        if job.engine.paths == paths:
            job.engine.compared.add(question)


def embed_rows(
    job: Job,
    projector: Projector,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    compared: watch.RowWatch | None = None,
) -> Iterator[Block]:
    """Yield the embeddings of samples `start` to `stop`, `batch_size` at a time.

    Samples that differ in shape, such as texts, are read many at a time and embedded with others of their shape.

    Raises
    ------
    RowsDiffer
        If rows that were drawn by `compared` are not those of training steps.
    """
    for batch in job.source.blocks(_reading_size(job, batch_size), start, stop):
        yield _block(job, projector, batch_size, batch, compared)


def _block(job: Job, projector: Projector, batch_size: int, batch: Batch, compared: watch.RowWatch | None) -> Block:
    check_batch(batch)
    parts = rectangles(batch.x, batch.y, batch_size)
    found = joined([(rows, _embed(job.engine, Batch(batch.ids[rows], x, y), projector)) for rows, x, y in parts])
    check_finite(batch.ids, "loss", found.losses)
    check_finite(batch.ids, "gradient", found.norms)
    if compared is not None:
        compared.look(batch, found)
    return Block(
        batch.ids,
        projector.finish(found.sketches, found.norms),
        found.norms,
        found.losses,
        labels.as_classes(batch.y),
        labels.predicted_classes(found.outputs),
        in_double.directions(job.engine, found.outputs, batch.y) if projector.bounds_cosine else None,
    )


def _reading_size(job: Job, batch_size: int) -> int:
    """Return how many samples to read at once: `batch_size`, and more of those that differ in shape."""
    sizes = _sizes(_first(job, _PEEK))
    if not sizes.any():
        return batch_size
    return max(batch_size, min(_WINDOW, _WINDOW_BYTES // (8 * int(sizes.max()))))


def _first(job: Job, count: int) -> Batch:
    return job.source.take(np.arange(min(count, len(job.source)), dtype=np.int64))


def _sizes(batch: Batch) -> NDArray[np.int64]:
    """Return how many numbers each sample has in the parts that differ in shape; zeros where none does."""
    ragged = [leaf for leaf in leaves((batch.x, batch.y)) if is_ragged(leaf)]
    return np.array([sum(int(np.prod(leaf[i].shape)) for leaf in ragged) for i in range(len(batch))], np.int64)


def _embed(engine: Engine, batch: Batch, projector: Projector) -> Embedded:
    """Embed a batch; when memory runs out, its halves."""
    try:
        return engine.embed(batch.x, batch.y, projector)
    except Exception as error:
        if not is_out_of_memory(error) or len(batch) < 2:
            raise
        log.warning("out of memory with %d samples at once, trying half of them", len(batch))
    half = len(batch) // 2
    parts = [_embed(engine, batch.select(rows), projector) for rows in (slice(0, half), slice(half, len(batch)))]
    outputs = [part.outputs for part in parts if part.outputs is not None]
    return Embedded(
        np.concatenate([part.sketches for part in parts]),
        np.concatenate([part.norms for part in parts]),
        np.concatenate([part.losses for part in parts]),
        np.concatenate(outputs) if len(outputs) == len(parts) else None,
    )


def exact_gradients(job: Job, ids: Sequence[int] | NDArray[Any]) -> Floats:
    """Return the gradients of the samples at `ids`, shape (n, P), by the plain one-sample loop: the oracle.

    Raises
    ------
    IndexError
        If an id is out of range.
    """
    batch = job.source.take(as_ids(ids))
    return loop.gradients(job.engine, batch.x, batch.y).gradients


def default_batch_size(engine: Engine, budget: int = MEMORY_BUDGET) -> int:
    """Return how many samples' formed gradients (with two working copies) fit into `budget` bytes, at most 128."""
    return int(np.clip(budget // (3 * engine.size * engine.dtype.itemsize), 1, _MOST))


def embedding_batch_size(job: Job, budget: int = MEMORY_BUDGET) -> int:
    """Return how many samples can be embedded at once in about `budget` bytes, at most 128, or 512 of small ones.

    Small models gain from larger batches (MLP 784-1024-1024-10: 512 at once are 1.4 times as fast as 128; a CNN of
    12 k parameters, 256: 1.3 times), those with large activations lose (a CNN of 3 MiB a sample, 256: 0.94 times, 512:
    0.65), so beyond 128 only what fits 128 MiB is taken at once. Embeds
    a few samples to find out which gradients have to be formed whole: the longest of the first 256, where samples
    differ in length.
    """
    first = _first(job, _PEEK)
    check_batch(first)
    if _sizes(first).any():
        first = _first(job, _FIRST)
        first = first.select(np.argsort(-_sizes(first), kind="stable"))
    first = first.select(slice(0, paths.SAMPLES))
    check_batch(first)
    job.engine.settle(first.x, first.y)
    each = max(1, job.engine.bytes_per_sample)
    most = int(np.clip(_SMALL_BATCH_BYTES // each, _MOST, _MOST_SMALL))
    return int(np.clip(budget // each, 1, most))
