"""Mending a damaged index: what is disposable is built anew, damaged shards are embedded again, the rest is kept."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from gradindex import relevance
from gradindex.ann import build as indexing
from gradindex.ann import files as index_files
from gradindex.compute import landmarks, watch
from gradindex.data.chain import Picked
from gradindex.data.columns import as_columns
from gradindex.errors import DamagedIndexError
from gradindex.job import Job
from gradindex.lifecycle.clean_up import settle
from gradindex.lifecycle.embed_shards import embed_missing
from gradindex.lifecycle.header import check_job
from gradindex.runtime.log import log
from gradindex.search import calibration
from gradindex.store import Header, Store, changes, side_files
from gradindex.store.changes import Part, State
from gradindex.store.layout import AUDIT, KNOWN, PARTS, SHARDS, WATCH, strangers
from gradindex.store.location import Location, exists, is_directory, listing, locate, remove_tree, unlink
from gradindex.store.manifest import read_json
from gradindex.store.shard import Shard, manifest_path
from gradindex.store.store import HEADER


@dataclass(frozen=True)
class Repair:
    """What `repair` did: shards embedded again, whether the FAISS index was built again, and files removed.

    `whitened`: whether the whitened rows were made again.
    """

    shards: tuple[str, ...]
    index: bool
    removed: tuple[str, ...]
    whitened: bool = False

    def __str__(self) -> str:
        if not (self.shards or self.index or self.removed or self.whitened):
            return "Nothing was damaged."
        parts = [f"embedded shards {', '.join(self.shards)} again"] if self.shards else []
        parts += ["built the FAISS index again"] if self.index else []
        parts += ["whitened the rows again"] if self.whitened else []
        parts += [f"removed {', '.join(self.removed)}"] if self.removed else []
        return "; ".join(parts).capitalize() + "."


def repair(path: str | Location, job: Job | None = None, *, progress: bool | None = None) -> Repair:
    """Mend an index in place; see `gradindex.repair`."""
    path = locate(path)
    if not exists(path / HEADER):
        raise FileNotFoundError(
            f"{path} holds no gradindex index ({HEADER} is missing). Next: gradindex build MODULE:FUNCTION {path}"
        )
    header = Header.read(path / HEADER)
    if others := strangers(path):
        raise ValueError(f"{others[0]} does not belong to the index, and may be yours: move it away.")
    dropped = changes.drop_invalid(path, header)
    store = Store(path, header)
    state = store.state  # nothing else says what was added or removed: if it is damaged, say so
    found = [(part, one, *_inspect(one)) for part, one in zip(state.parts, map(store.part, state.parts), strict=True)]
    said = [why for *_, damaged in found for why in damaged.values()]
    bad = [f"{part.name}/{number}".lstrip("/") for part, _, _, damaged in found for number in damaged]
    if bad and job is None:
        raise ValueError(f"Shards {', '.join(bad)} have to be embedded again, which needs the job. {'; '.join(said)}")
    if job is not None:
        job = job.with_metric(relevance.rows_of(store.header.metric))
        check_job(store, job)
    wanted = index_files.saved_factory(store)
    removed = dropped + _sweep_store(store)
    for part, one, known, damaged in found:
        removed += _sweep(one.path / SHARDS, known)
        removed += _sweep(one.path / WATCH, set(map(watch.name, range(one.header.shards))))
        removed += _drop_unreadable(listing(one.path / WATCH))
        for number in damaged:
            unlink(manifest_path(one.path / SHARDS, number))
        if damaged and job is not None:
            _embed_again(store, part, one, job, progress)
    rebuild = not _sound(store)
    if rebuild:
        remove_tree(path / index_files.DIRECTORY)
        indexing.build(store, wanted, store.header.seed)
    removed += _sweep(path / index_files.DIRECTORY, index_files.names(store)) + _drop_unreadable([path / AUDIT])
    removed += side_files.sweep(path, store.header.seal, calibration.PREFIX)
    done = Repair(tuple(bad), rebuild, tuple(removed))
    log.info("%s", done)
    return done


def _inspect(part: Store) -> tuple[set[str], dict[int, str]]:
    """Return the names of sound shards' files, and what is wrong with the other shards."""
    known: set[str] = set()
    bad: dict[int, str] = {}
    for number in range(part.header.shards):
        try:
            shard = Shard(part.path / SHARDS, number, part.header)
            shard.check()
            _ = shard.table()
            known |= shard.files
        except DamagedIndexError as error:
            bad[number] = str(error)
    return known, bad


def _embed_again(store: Store, part: Part, one: Store, job: Job, progress: bool | None) -> None:
    """Embed the missing shards of a part: those of a compaction hold the samples that were not removed before it."""
    if part.at is None:
        embed_missing(job, one, progress, landmarks.bound(store, job) if part.name else None)
        return
    relevance.check_growth(store.header.metric)
    before = next(state for state in changes.history(store.path, store.header) if state.number == part.at)
    kept = np.setdiff1d(np.arange(before.positions), before.removed)
    columns = {name: values.take(pa.array(kept)) for name, values in as_columns(job.columns, len(job.source)).items()}
    some = replace(job, dataset=Picked(job.source, kept), columns=columns)
    embed_missing(some, one, progress, landmarks.bound(store, job), kept)


def _sweep_store(store: Store) -> list[str]:
    """Delete what no change names: parts that can no longer be added, replaced ones, temporary files."""
    path, state = store.path, store.state
    removed = settle(store)
    for one in listing(path / PARTS):
        if one.name not in {part.name for part in state.parts} and not _may_be_added(one, state):
            remove_tree(one)
            removed.append(f"{PARTS}/{one.name}")
    numbered = {changes.HEAD, *map(changes.name, range(1, state.number + 1))}
    return removed + _sweep(path, KNOWN) + _sweep(path / changes.DIRECTORY, numbered)


def _may_be_added(part: Location, state: State) -> bool:
    """Whether a part that is not there yet is one that the same call of `gradindex.add` would continue."""
    try:
        return Header.read(part / HEADER).first == state.positions
    except DamagedIndexError:
        return False


def _sound(store: Store) -> bool:
    try:
        index_files.check(store)  # what lies there, where `load` would take a copy from the cache
        index_files.load(store)
    except (DamagedIndexError, RuntimeError) as error:
        log.info("the FAISS index is built again: %s", error)
        return False
    return True


def _sweep(directory: Location, known: set[str]) -> list[str]:
    """Remove what is not `known` from a directory of the index; return the names."""
    removed = []
    for path in listing(directory):
        if path.name not in known:
            if is_directory(path):
                raise ValueError(f"{path} is a directory that does not belong to the index; move it away.")
            unlink(path)
            removed.append(path.name)
    return removed


def _drop_unreadable(manifests: Iterable[Location]) -> list[str]:
    """Delete records of measurements that are damaged; return their names."""
    removed = []
    for path in manifests:
        try:
            if exists(path):
                read_json(path)
        except DamagedIndexError:
            unlink(path)
            removed.append(path.name)
    return removed
