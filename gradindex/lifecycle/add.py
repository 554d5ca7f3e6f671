"""Adding samples to an index: embedded as a part of their own, and then there all at once."""

import dataclasses
import time

from gradindex import relevance
from gradindex.ann import build as indexing
from gradindex.ann import files as index_files
from gradindex.compute import landmarks, same_samples
from gradindex.data.fingerprint import fingerprint
from gradindex.errors import MismatchError
from gradindex.job import Job
from gradindex.lifecycle.clean_up import settle
from gradindex.lifecycle.embed_shards import embed_missing
from gradindex.lifecycle.header import begun, check_job, header
from gradindex.lifecycle.options import BuildOptions
from gradindex.lifecycle.summary import BuildSummary, count_paths, peak_bytes
from gradindex.runtime.interrupts import explain_full_disk, stop_on_sigterm
from gradindex.runtime.log import log
from gradindex.sketch import from_json
from gradindex.store import Store, changes
from gradindex.store.changes import Part, State
from gradindex.store.layout import PARTS
from gradindex.store.location import Location, exists
from gradindex.store.store import HEADER


def add(
    path: str | Location,
    job: Job,
    *,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
) -> tuple[Job, BuildSummary | None]:
    """Add the samples of a job that an index does not have yet; see `gradindex.add`.

    Returns the job, with the index's metric, and what was done: None if there was nothing to add.
    """
    store, _ = index_files.open_last(path)
    job = job.with_metric(relevance.rows_of(store.header.metric))
    check_job(store, job, longer=True)
    relevance.check_growth(store.header.metric)
    first = store.state.positions
    if len(job.source) == first:
        settle(store)
        log.info("there is nothing to add: all %d samples of the dataset are in %s", first, store.path)
        return job, None
    projector = landmarks.bound(store, job)
    same_samples.check_rows(job, store, projector)
    part = _part(store, job, first, batch_size, shard_rows)

    def state() -> str:
        return f"{part.header.shards - len(part.missing())} of {part.header.shards} new shards are published"

    with stop_on_sigterm(), explain_full_disk(state):
        began = time.perf_counter()
        embedded = embed_missing(job, part, progress, projector)
        middle = time.perf_counter()
        publish(store, part)
        settle(store)
    store, searcher = index_files.open_last(path)
    summary = BuildSummary(
        rows=len(store),
        embedded=embedded,
        embedding_seconds=middle - began,
        indexing_seconds=time.perf_counter() - middle,
        peak_bytes=peak_bytes(),
        store_bytes=store.bytes,
        index_bytes=searcher.bytes,
        paths=count_paths(job.engine.paths),
    )
    log.info("%s", summary)
    return job, summary


def _part(store: Store, job: Job, first: int, batch_size: int | None, shard_rows: int | None) -> Store:
    """Begin the part of the new samples, or take up one that was begun."""
    saved, rows = store.header, len(job.source) - first
    origin = fingerprint(job.source, first, first + rows)
    name = dataclasses.replace(saved, rows=rows, first=first, origin=origin).part
    path = store.path / PARTS / name
    before = begun(path) if exists(path / HEADER) else None
    options = BuildOptions(
        sketch=from_json(saved.sketch),
        seed=saved.seed,
        batch_size=batch_size or (before or saved).batch_size,
        shard_rows=shard_rows or (before or saved).shard_rows,
        row_type=saved.row_type,
    )
    wanted = header(job, options, before)
    if sorted(saved.columns) != wanted.columns:
        raise MismatchError(f"{store.path} has columns {sorted(saved.columns)}, the job {wanted.columns}.")
    return Store.create(path, dataclasses.replace(wanted, rows=rows, dim=saved.dim, first=first, origin=origin))


def publish(store: Store, part: Store) -> None:
    """Make a finished part visible, behind changes that other processes make meanwhile."""
    new = Part(part.header.part, part.header.seal, part.header.rows)
    change = {"kind": "add", "part": new.name, "header": new.seal, "first": part.header.first, "rows": new.rows}

    def make(state: State) -> dict[str, object] | None:
        if state.positions != part.header.first:
            if any(new in one.parts for one in changes.history(store.path, store.header)):
                return None  # another process was given the same samples
            raise MismatchError(
                f"Another process added {state.positions - part.header.first} samples to {store.path} meanwhile. "
                "Add again, with those behind the samples that were there."
            )
        before = Store(store.path, store.header, state)
        after = Store(store.path, store.header, dataclasses.replace(state, parts=(*state.parts, new)))
        if not index_files.exists(after):
            indexing.extend(before, after)
        return change

    changes.commit(store.path, store.header, make)
