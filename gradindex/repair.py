"""Mending a damaged index: what is disposable is built anew, damaged shards are embedded again, the rest is kept."""

from dataclasses import dataclass

from gradindex.builder import check_job, embed_missing
from gradindex.errors import DamagedIndexError
from gradindex.gradients.base import log
from gradindex.index import factory
from gradindex.job import Job
from gradindex.store import Header, Store, removals
from gradindex.store.location import Location, listing, locate, remove_tree
from gradindex.store.manifest import read_json
from gradindex.store.shard import Shard, manifest_path
from gradindex.store.store import HEADER, PARTS, SHARDS
from gradindex.verify import AUDIT


@dataclass(frozen=True)
class Repair:
    """What `repair` did: shards embedded again, whether the FAISS index was built again, and files removed."""

    shards: tuple[int, ...]
    index: bool
    removed: tuple[str, ...]

    def __str__(self) -> str:
        if not (self.shards or self.index or self.removed):
            return "Nothing was damaged."
        parts = [f"embedded shards {list(self.shards)} again"] if self.shards else []
        parts += ["built the FAISS index again"] if self.index else []
        parts += [f"removed {', '.join(self.removed)}"] if self.removed else []
        return "; ".join(parts).capitalize() + "."


def repair(path: str | Location, job: Job | None = None, *, progress: bool | None = None) -> Repair:
    """Mend an index in place.

    Contents of all files are compared with their manifests. Damaged or missing shards are embedded again (their
    rows are the same bits where the header says that the device is deterministic), a damaged or missing FAISS index is
    built from the store, and files that belong to nothing, such as those of killed builds, are removed. Do not
    run it beside a build of the same index.

    Parameters
    ----------
    path
        Directory of the index.
    job
        The job it was built from; needed only where shards are damaged.
    progress
        Show a progress bar; None: only on a terminal.

    Raises
    ------
    FileNotFoundError
        If there is no index.
    DamagedIndexError
        If the header or the list of removed samples is damaged: then only a new build helps.
    ValueError
        If shards are damaged and no job is given; names them.
    MismatchError
        If the job is not that of the index.
    """
    path = locate(path)
    if not (path / HEADER).exists():
        raise FileNotFoundError(f"{path} holds no gradindex index ({HEADER} is missing).")
    store = Store(path, Header.read(path / HEADER))
    known, bad = _inspect(store)
    if bad and job is None:
        names = "; ".join(bad.values())
        raise ValueError(f"Shards {sorted(bad)} have to be embedded again, which needs the job. {names}")
    if job is not None:
        check_job(store, job)
    lists = removals.read(path, store.header.seal)[1]  # nothing else says what was removed: if damaged, say so
    wanted = factory.saved_factory(store)
    removed = _sweep(path / SHARDS, known) + _sweep(path, PARTS)
    numbered = {removals.file(path, number + 1).name for number in range(lists)}
    removed += _sweep(path / removals.DIRECTORY, numbered)
    for number in bad:
        manifest_path(path / SHARDS, number).unlink(missing_ok=True)
    if bad and job is not None:
        embed_missing(job, store, progress)
    _ = store.alive  # raises if a removed sample is none of this store
    rebuild = not _sound(store)
    if rebuild:
        remove_tree(path / factory.DIRECTORY)
        factory.build(store, wanted, store.header.seed)
    entry = factory.saved_entry(store)
    removed += _sweep(path / factory.DIRECTORY, {factory.MANIFEST, entry.name if entry else ""})
    removed += _bad_audit(path / AUDIT)
    done = Repair(tuple(sorted(bad)), rebuild, tuple(removed))
    log.info("%s", done)
    return done


def _inspect(store: Store) -> tuple[set[str], dict[int, str]]:
    """Return the names of sound shards' files, and what is wrong with the other shards."""
    known: set[str] = set()
    bad: dict[int, str] = {}
    for number in range(store.header.shards):
        try:
            shard = Shard(store.path / SHARDS, number, store.header)
            shard.check()
            known |= shard.files
        except DamagedIndexError as error:
            bad[number] = str(error)
    return known, bad


def _sound(store: Store) -> bool:
    try:
        factory.check(store)  # what lies there, where `load` would take a copy from the cache
        factory.load(store)
    except (DamagedIndexError, RuntimeError) as error:
        log.info("the FAISS index is built again: %s", error)
        return False
    return True


def _sweep(directory: Location, known: set[str]) -> list[str]:
    """Remove what is not `known` from a directory of the index; return the names."""
    removed = []
    for path in listing(directory):
        if path.name not in known:
            if path.is_dir():
                raise ValueError(f"{path} is a directory that does not belong to the index; move it away.")
            path.unlink()
            removed.append(path.name)
    return removed


def _bad_audit(path: Location) -> list[str]:
    try:
        if path.exists():
            read_json(path)
    except DamagedIndexError:
        path.unlink()
        return [path.name]
    return []
