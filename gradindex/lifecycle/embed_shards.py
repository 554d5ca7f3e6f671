"""Embedding the shards of a store: what a build, an addition and a repair have in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradindex.compute import landmarks, same_samples, watch
from gradindex.compute.blocks import Block, embed_rows
from gradindex.data.columns import as_columns
from gradindex.data.source import Ids
from gradindex.errors import MismatchError
from gradindex.gradients import in_double
from gradindex.gradients.projector import Projector
from gradindex.job import Job
from gradindex.runtime import threads
from gradindex.runtime.progress import progress_bar
from gradindex.sketch.unit_rows import normalise
from gradindex.store import Header, Rows, Store
from gradindex.store.codes import RowType


def embed_missing(
    job: Job, store: Store, progress: bool | None = None, projector: Projector | None = None, ids: Ids | None = None
) -> int:
    """Embed and publish the shards that a store lacks; return how many samples were embedded.

    Of a store that is to be a part of another one, `projector` is that of the other one. With `ids`, they are those of
    the job's samples; else samples' positions.
    """
    header, missing = store.header, store.missing()
    if not missing:
        return 0
    check_versions(store)
    projector = projector or landmarks.bound(store, job, create=True)
    extra = as_columns(job.columns, len(job.source))
    check_begun(job, store, projector, extra, missing)
    left = sum(header.span(number)[1] - header.span(number)[0] for number in missing)
    embedded = 0
    with (
        progress_bar("Embedding", header.rows, header.rows - left, show=progress) as advance,
        threads.using(header.backend, header.threads),
    ):
        for number in missing:
            start, stop = (header.first + place for place in header.span(number))
            if store.has(number):  # another builder was here in the meantime
                advance(stop - start)
                continue
            embed_shard(job, store, projector, extra, number, advance, ids)
            embedded += stop - start
    return embedded


def check_begun(
    job: Job, store: Store, projector: Projector, extra: Mapping[str, pa.Array], missing: list[int]
) -> None:
    """Raise MismatchError if the shards that are not `missing` were made of other samples or with another loss."""
    there = sorted({*range(store.header.shards)} - {*missing})
    if there:
        with threads.using(store.header.backend, store.header.threads), job.engine.paths_kept():
            same_samples.check_shards(job, store, projector, extra, there)


def embed_shard(
    job: Job,
    store: Store,
    projector: Projector,
    extra: Mapping[str, Any],
    number: int,
    advance: Callable[[int], None] = lambda rows: None,
    ids: Ids | None = None,
) -> int:
    """Embed and publish one shard; return how many samples it holds.

    Parameters
    ----------
    job, store
        What to embed, and where to.
    projector
        The projection of the store's header; see `gradindex.compute.landmarks.bound`.
    extra
        The user's columns of all samples.
    number
        Which shard.
    advance
        Called with the number of samples embedded.
    ids
        Of the job's samples; None: their positions.
    """
    header = store.header
    start, stop = (header.first + place for place in header.span(number))
    some = {name: values[start:stop] for name, values in extra.items()}
    drawn = watch.draw(header.seed, start, stop, header.rows)
    advanced = differed = 0

    def blocks(compared: watch.RowWatch) -> Iterator[Block]:
        nonlocal advanced
        for block in embed_rows(job, projector, header.batch_size, start, stop, compared):
            yield block
            done = int(block.ids[-1]) + 1 - start
            advance(max(0, done - advanced))
            advanced = max(advanced, done)

    with job.engine.paths_kept():  # a shard's rows are the same whoever makes them, whatever happened in others
        while True:
            compared = watch.RowWatch(job.engine, projector, drawn)
            try:
                rows = make_rows(blocks(compared), stop - start, header, some)
                break
            except watch.RowsDiffer as error:
                watch.lower(job.engine, error)
                differed = 1
    watch.save(store.path, number, replace(compared.compared, differed=differed))
    store.write(number, rows if ids is None else replace(rows, ids=ids[start:stop]))
    return stop - start


def check_versions(store: Store) -> None:
    """Raise MismatchError unless the packages that fix the bits of a row are those the build was begun with."""
    differences = [
        f"{name} {saved}, not {now}"
        for name in ("gradindex", "numpy", "torch", "tensorflow")  # FAISS changes no row
        if (saved := store.header.versions.get(name)) and saved != (now := str(import_module(name).__version__))
    ]
    if differences:
        raise MismatchError(
            f"The build in {store.path} was begun with {', '.join(differences)}. "
            "Install those versions to continue it, or begin again (overwrite=True, --overwrite)."
        )


def make_rows(blocks: Iterable[Block], count: int, header: Header, extra: dict[str, Any]) -> Rows:
    """Return `count` consecutive samples as rows of a shard, with the user's columns of the same samples.

    Each block is rounded as it comes: a shard takes the memory of its rows on disk, and the blocks' none. Raises
    ValueError if there are fewer samples.
    """
    kind = RowType(header.row_type)
    sketches = np.empty((count, kind.stored(header.dim)), kind.dtype)
    rows = Rows(sketches, np.empty(count, np.float32), np.empty(count, np.int64), {})
    kept: dict[str, list[Any]] = {"loss": [], "label": [], "prediction": [], in_double.COLUMN: []}
    filled = 0
    for block in blocks:
        here = slice(filled, filled := filled + len(block.ids))
        sketches[here] = kind.quantize(normalise(block.sketches))
        rows.norms[here], rows.ids[here] = block.norms, block.ids
        for name, values in zip(kept, (block.losses, block.labels, block.predictions, block.roundings), strict=True):
            kept[name].append(None if values is None else np.array(values))  # a view would hold the whole batch
    if filled != count:
        raise ValueError(f"The dataset gave {filled} samples of {count}.")
    columns: dict[str, NDArray[Any]] = {
        name: np.concatenate(parts) for name, parts in kept.items() if all(part is not None for part in parts)
    }
    return replace(rows, columns=columns | extra)
