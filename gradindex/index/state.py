"""An index that changes: what is asked of it holds one state from beginning to end, and so do other readers."""

import copy
import functools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from gradindex import relevance
from gradindex.ann import files as index_files
from gradindex.ann.searcher import Searcher
from gradindex.data.source import Ids
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.job import Job
from gradindex.lifecycle import add as adding
from gradindex.lifecycle import compact as compacting
from gradindex.lifecycle import whiten as whitening
from gradindex.lifecycle.summary import BuildSummary
from gradindex.runtime import forking
from gradindex.search.calibration import Calibration
from gradindex.search.lexical import Made
from gradindex.search.prepared import Prepared
from gradindex.search.row_search import LocalRows, RowSearch
from gradindex.search.whitened import Whitened, finished
from gradindex.store import Store, changes
from gradindex.store.location import Location

P = ParamSpec("P")
S = TypeVar("S", bound="Changing")
R = TypeVar("R")


def pinned(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method see the index as it was when it was called, whatever other threads add or remove meanwhile."""

    @functools.wraps(method)
    def run(self: S, *args: P.args, **options: P.kwargs) -> R:
        forking.settle()
        try:
            return method(copy.copy(self), *args, **options)
        except DamagedIndexError as error:
            if self.store.is_last():
                raise
            raise MismatchError(
                f"{self.store.path} was changed or replaced since this index was opened, and what this needs is gone "
                f"({error}) Open it again."
            ) from None

    return cast(Callable[Concatenate[S, P], R], run)


class Opened:
    """The whitened rows of an index, opened when they are first needed; shared by all its states."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Whitened | None = None
        self._there: bool | None = None

    def of(self, store: Store) -> Whitened:
        """Return the whitened rows of a store's state; raises ValueError if it has none."""
        with self._lock:
            if self._found is None:
                self._found = Whitened.open(store)
            elif self._found.parent is not store:  # samples were removed
                self._found = replace(self._found, parent=store)
            return self._found

    def are_there(self, store: Store) -> bool:
        """Whether there are any; on an object store, where looking takes as long as a query, looked for but once."""
        if self._there is None or (not self._there and isinstance(store.path, Path)):
            self._there = finished(store)
        return self._there


def open_same(kind: type[S], path: Location, seal: str, job: Job | None) -> S:
    """Open the last state of the index whose header has this seal; raises MismatchError if another one is at `path`.

    A job is not compared with the index then: it belongs to the one with the seal.
    """
    found = kind.open(path, job)
    if found.store.header.seal != seal:
        raise changes.another(path)
    return found


class Changing:
    """A state of a store with its FAISS index, and the ways to the next one."""

    def __init__(self, store: Store, job: Job | None = None, *, searcher: Searcher | None = None) -> None:
        forking.settle()
        self.store = store
        self.searcher = searcher or index_files.load(store)
        self.summary: BuildSummary | None = None
        self.changed: list[Ids] = []
        """Ids of samples that are seen to be others than those of the build, while an answer is computed."""
        self.opened, self.made = Opened(), Made()
        self.calibrations: dict[tuple[str, int], Calibration | None] = {}
        """Calibrations that were looked for, by kernel and k; shared by all states with the same FAISS index."""
        self._job = job if job is None else job.with_metric(relevance.rows_of(store.header.metric))
        self._at_hand = None if self._job is None else Prepared(store, self._job)
        self.rows: RowSearch = LocalRows(store, self.searcher, self._at_hand)

    def __reduce__(self) -> Any:
        """Pickle the path and the job: what is unpickled is opened there, in the store's last state."""
        return open_same, (type(self), self.store.path, self.store.header.seal, self._job)

    @classmethod
    def open(cls, path: str | Location, job: Job | None = None) -> Self:
        """Open the last state of a store; raises like `Store.open`."""
        store, searcher = index_files.open_last(path)
        return cls(store, job, searcher=searcher)

    def __copy__(self) -> Self:
        """Return an index that shares everything, until one of the two changes."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @property
    def job(self) -> Job:
        """The job; raises ValueError if the index was opened without one, RuntimeError where it cannot be used."""
        if self._job is None:
            raise ValueError("This needs the model and the data: open the index with gradindex.load(path, job).")
        forking.settle(self._job.backend)
        return self._job

    @property
    def at_hand(self) -> Prepared:
        """What queries need; raises ValueError if the index was opened without a job."""
        _ = self.job  # says what is missing
        assert self._at_hand is not None
        return self._at_hand

    def remove(self, ids: ArrayLike) -> int:
        """Remove samples from all answers, of this index and of those opened from now on; see `Store.remove`."""
        store = copy.copy(self.store)
        removed = store.remove(ids)
        self.__dict__.update(store=store, rows=self.rows.over(store))  # at once: other threads see the one or the other
        return removed

    def add(self, dataset: Any, *, columns: Any = None, progress: bool | None = None) -> Ids:
        """Add samples; their ids continue those of the dataset. See `gradindex.add`.

        This index has them when the call returns, and so have those that are opened from now on. Its job has the longer
        dataset then; others open the index with `job.extended(dataset)`, or a dataset that holds all samples.

        Parameters
        ----------
        dataset
            The new samples, in any of the forms that a job's dataset may have.
        columns
            The user's columns of the new samples, if the index has some.
        progress
            Show a progress bar; None: only on a terminal.

        Returns
        -------
        ndarray
            Ids of the new samples, (n,) int64.

        Raises
        ------
        ValueError
            If the index was opened without a job, the dataset is empty, or data, losses or gradients are not finite.
        MismatchError
            If another process added samples since this index was opened.
        """
        first = len(self.job.source)
        self.check_in_place()
        job, summary = adding.add(self.store.path, self.job.extended(dataset, columns), progress=progress)
        whitening.follow(self.store.path, progress=progress)
        longer = self._opened_again(job)
        longer.summary = summary
        self._take(longer)
        return np.arange(first, len(self.job.source), dtype=np.int64)

    def compact(self, *, progress: bool | None = None) -> int:
        """Rewrite the store without removed rows; return how many were left out. See `gradindex.compact`."""
        self.check_in_place()
        left_out = compacting.compact(self.store.path, progress=progress)
        whitening.follow(self.store.path, progress=progress)
        self._take(self._opened_again(self._job))
        return left_out

    def check_in_place(self) -> None:
        """Raise MismatchError if another index was built at this one's path, which is not to be changed for it."""
        with changes.in_place(self.store.path, self.store.header):
            pass

    def _opened_again(self, job: Job | None) -> Self:
        return open_same(type(self), self.store.path, self.store.header.seal, job)

    def _take(self, other: "Changing") -> None:
        """Become another index, all at once: other threads see the one or the other."""
        self.__dict__.update(other.__dict__)
