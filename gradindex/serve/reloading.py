"""A served index that is replaced on the disk: the new one is opened beside the old one, which answers until then."""

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from gradindex.ann import files as index_files
from gradindex.errors import MismatchError
from gradindex.index.index import Index
from gradindex.job import Job, load_job
from gradindex.lifecycle.header import check_job
from gradindex.serve.lookup import Lookup
from gradindex.serve.metrics import Metrics
from gradindex.store import changes
from gradindex.store.location import Location, listing
from gradindex.store.manifest import HEADER, Header

log = logging.getLogger(__name__)
T = TypeVar("T")
Stamp = tuple[object, ...]
_LONGEST = 600.0  # seconds between two tries at what failed


class Turn(Protocol):
    """Runs work in the thread that may use the model and the dataset."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what the work returns."""


class Reloading:
    """Opens the served index again when its files are others, in a thread of its own.

    Parameters
    ----------
    lookup
        The index that is served at first.
    interval
        Seconds between two looks at the files; 0: only when asked.
    metrics
        Counts openings.
    turn
        Runs work that uses the model.
    take
        Called with each new index, from when on all new requests are answered by it.
    """

    def __init__(
        self, lookup: Lookup, interval: float, metrics: Metrics, turn: Turn, take: Callable[[Lookup], None]
    ) -> None:
        self._lookup, self._interval, self._metrics, self._turn, self._take = lookup, interval, metrics, turn, take
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._stopping = False
        self._stamp: Stamp | None = None  # none yet, so that the first look compares what is served
        self._header = stamp_of(lookup.store.path)[0]
        self._failures, self._again, self._since = 0, 0.0, ""
        self._thread: threading.Thread | None = None
        metrics.loaded.set_to_current_time()

    @property
    def stale(self) -> str:
        """Why the index on the disk is not the one that answers, in a sentence; empty where it is."""
        if not self._failures:
            return ""
        return f"The index on the disk is another one since {self._since}, and cannot be opened: the log says why."

    def start(self) -> None:
        """Begin to look."""
        if type(self._lookup.index) is not Index:
            log.info("an index whose rows lie on a cluster is not opened again when it is replaced")
            return
        self._thread = threading.Thread(target=self._run, name="gradindex-reload", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Look at once."""
        self._wake.set()

    def close(self) -> None:
        """Look no more."""
        self._stopping = True
        self._wake.set()

    def newer(self, lookup: Lookup) -> Lookup | None:
        """Return the index that takes the place of one whose files are gone; None if there is none."""
        if self._thread is not None and self._interval and self._lookup is lookup:
            self.look()
        return None if self._lookup is lookup else self._lookup

    def _run(self) -> None:
        while True:
            asked = self._wake.wait(self._interval or None)
            self._wake.clear()
            if self._stopping:
                return
            self.look(now=asked)

    def look(self, *, now: bool = False) -> None:
        """Open the index on the disk if it is another one; what failed before is tried again later, or now."""
        with self._lock:
            stamp = stamp_of(self._lookup.store.path)
            if stamp == self._stamp and not (self._failures and (now or time.monotonic() >= self._again)):
                return
            began = time.perf_counter()
            try:
                new = self._open(stamp)
            except Exception as error:  # the job's function is the user's
                if not self._stopping:
                    self._failed(stamp, error)
                return
            self._stamp, self._failures = stamp, 0
            self._metrics.stale.set(0)
            if new is None:
                return
            self._lookup, self._header = new, stamp[0]
            self._take(new)
            self._metrics.reloads.labels("ok").inc()
            self._metrics.loaded.set_to_current_time()
            log.info("opened the index on the disk, %d rows, in %.1f s", len(new.store), time.perf_counter() - began)

    def _failed(self, stamp: Stamp, error: Exception) -> None:
        if not self._failures:
            self._since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._stamp, self._failures = stamp, self._failures + 1
        wait = min(self._interval * 2.0 ** min(self._failures, 20), _LONGEST)
        self._again = time.monotonic() + wait if self._interval else float("inf")
        self._metrics.reloads.labels("failed").inc()
        self._metrics.stale.set(1)
        log.error("the index on the disk could not be opened, the old one goes on: %s: %s", type(error).__name__, error)

    def _open(self, stamp: Stamp) -> Lookup | None:
        """Return what lies on the disk, ready to answer; None if that is what is served."""
        served = self._lookup.index
        new = Index.open(served.store.path, served.job)
        if (stamp[0], _identity(new)) == (self._header, _identity(served)):
            return None
        job = served.job
        try:
            self._turn(lambda: check_job(new.store, job))
        except MismatchError:
            if job.reference is None:
                raise
            return self._with_other_job(new, load_job(job.reference))
        lookup = Lookup(new)
        self._turn(lookup.warm)
        return lookup

    def _with_other_job(self, new: Index, job: Job) -> Lookup:
        """Return the new index with its own model and dataset, which nothing else uses yet."""
        check_job(new.store, job)
        lookup = Lookup(Index(new.store, job, searcher=new.searcher))
        lookup.warm()
        return lookup


def _identity(index: Index) -> tuple[object, ...]:
    """Return what tells states apart: which build, how it was changed since, and the file of the FAISS index."""
    store = index.store
    return store.header.seal, store.state.number, store.state.last, index.searcher.file


def stamp_of(store: Location) -> Stamp:
    """Return what differs after every change of a store's rows, found without reading them; all None if it is gone.

    The first entry is that of the header: a new store may have the same one, in another file.
    """
    if isinstance(store, Path):
        return tuple(_times(store / name) for name in (HEADER, changes.DIRECTORY, index_files.DIRECTORY))
    try:
        return Header.read(store / HEADER).seal, tuple(sorted(one.name for one in listing(store / changes.DIRECTORY)))
    except Exception as error:
        log.info("%s cannot be looked at: %s", store, error)
        return None, None


def _times(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
