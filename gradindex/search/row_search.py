"""Searching the rows of an index and evaluating them exactly, wherever the rows are."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.operating_point import Point
from gradindex.ann.searcher import Searcher
from gradindex.ann.selection import SCAN_ROWS, Selection
from gradindex.compute import exact
from gradindex.compute.held_queries import Held, compare
from gradindex.data.source import Batch, Ids
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel
from gradindex.search import norm_scan
from gradindex.search.prepared import Prepared
from gradindex.store import Store

Nearest = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Cosines (m, k), descending, their rows (m, k), −1 for missing ones, and rows looked at (m,), −1 if unknown."""


class RowSearch(Protocol):
    """What an index asks of the rows of one state of its store; `LocalRows` are in this process.

    Methods may be called by many threads at once.
    """

    def nearest(
        self, sketches: NDArray[np.float32], k: int, selection: Selection | None, point: Point | None = None
    ) -> Nearest:
        """Return the selected rows whose cosines with unit-norm sketches (m, dim) are the highest.

        FAISS finds them at its operating `point`, or a scan of the store where so few are selected that it is as fast.
        """
        ...

    def scan(
        self,
        sketches: NDArray[np.float32],
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        eps: float = 0.0,
        selection: Selection | None = None,
    ) -> norm_scan.Found:
        """Return the rows of the highest estimated kernel values, as `gradindex.search.norm_scan.scan` does."""
        ...

    def dots(self, asked: Batch | None, gradients: Floats, ids: Ids) -> exact.Evaluated:
        """Return exact inner products (m, c) of queries with samples (m, c); −1 is none.

        `asked` are the m labelled queries (None: vectors of no query) and `gradients` (m, P) theirs. Raises ValueError
        without a job.
        """
        ...

    def evaluate(self, held: Held, ids: Ids) -> tuple[NDArray[np.float64], dict[int, float]]:
        """Return exact inner products (m, r) of held queries with samples (r,), and the samples' losses by id.

        Raises
        ------
        WayDiffers
            If some that were compared are not those of training steps.
        ValueError
            If there is no job.
        """
        ...

    def over(self, store: Store) -> "RowSearch":
        """Return the search of the same rows in a store of another state, which differs in what is removed."""
        ...


@dataclass(frozen=True)
class LocalRows:
    """The rows of a store, mapped into this process, with their FAISS index; `prepared` is what there is of a job."""

    store: Store
    searcher: Searcher
    prepared: Prepared | None = None

    def nearest(
        self, sketches: NDArray[np.float32], k: int, selection: Selection | None, point: Point | None = None
    ) -> Nearest:
        """Return the selected rows whose cosines with unit-norm sketches are the highest; see `RowSearch`."""
        searcher = self.searcher
        if selection is None:
            return *searcher.search(sketches, k, point=point), searcher.scanned(sketches, point)
        if not by_faiss(searcher, selection):
            ones = np.ones(len(sketches))
            scores, rows, scanned = norm_scan.scan(self.store, sketches, ones, Kernel.COS, k, selection=selection)
            return scores.astype(np.float32), rows, scanned
        found, rows = searcher.search(sketches, k, selection, point)
        scanned = np.full(len(sketches), len(selection))
        return found, rows, scanned if selection.everywhere else searcher.scanned(sketches, point)

    def scan(
        self,
        sketches: NDArray[np.float32],
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        eps: float = 0.0,
        selection: Selection | None = None,
    ) -> norm_scan.Found:
        """Return the rows of the highest estimated kernel values; see `RowSearch`."""
        return norm_scan.scan(self.store, sketches, norms, kernel, k, eps, selection)

    def dots(self, asked: Batch | None, gradients: Floats, ids: Ids) -> exact.Evaluated:
        """Return exact inner products of queries with samples; see `RowSearch`."""
        prepared = self._with_job()
        job = prepared.job
        return exact.candidate_dots(job.engine, job.source, asked, gradients, ids, prepared.batch_size)

    def evaluate(self, held: Held, ids: Ids) -> tuple[NDArray[np.float64], dict[int, float]]:
        """Return exact inner products of held queries with samples, and their losses; see `RowSearch`."""
        prepared = self._with_job()
        job, size = prepared.job, prepared.batch_size
        out = np.empty((held.count, len(ids)))
        losses: dict[int, float] = {}
        for begin in range(0, len(ids), size):
            batch = job.source.take(ids[begin : begin + size])
            products, found = held.dots(batch)
            compare(job.engine, held, batch, products)
            out[:, begin : begin + len(batch)] = products
            losses.update(zip(batch.ids.tolist(), found.losses.tolist(), strict=True))
        return out, losses

    def over(self, store: Store) -> "LocalRows":
        """Return the search of the same rows in a store of another state; see `RowSearch`."""
        return replace(self, store=store)

    def _with_job(self) -> Prepared:
        if self.prepared is None:
            raise ValueError("Exact values need the job: open the index with gradindex.load(path, job).")
        return self.prepared


def by_faiss(searcher: "Searcher", selection: Selection | None) -> bool:
    """Whether FAISS finds the nearest of some rows (None: of all), rather than a scan of the store."""
    return selection is None or ((len(selection) > SCAN_ROWS or not selection.everywhere) and searcher.filters)
