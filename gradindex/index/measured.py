"""What is measured of an index: its operating points, its calibration, its agreement with the exact kernel."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.data.names import Tree
from gradindex.defaults import NEIGHBOURS, QUERIES, RERANK, SEED
from gradindex.index.state import pinned
from gradindex.index.whitened import Whitenable
from gradindex.kernels import Kernel
from gradindex.search import calibrate, calibration, tuning
from gradindex.search.audit import verify
from gradindex.search.audit_result import Audit
from gradindex.search.calibration import Calibration
from gradindex.search.options import SearchOptions

if TYPE_CHECKING:
    from gradindex.index.index import Index


class Measured(Whitenable):
    """An index that measures itself; a part of `gradindex.Index`."""

    @property
    def _whole(self) -> "Index":
        return cast("Index", self)

    def sketch(self, x: Tree = None, y: Tree = None, *, ids: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return unit-norm sketches."""
        raise NotImplementedError

    @pinned
    def tune(
        self,
        x: Tree = None,
        y: Tree = None,
        *,
        queries: int = QUERIES,
        k: int = NEIGHBOURS,
        candidates: int | None = None,
        seed: int = SEED,
    ) -> tuning.Curve:
        """Measure recall against latency at FAISS's settings, for ``explain(recall=…)``; see `gradindex.search.tuning`.

        Parameters
        ----------
        x, y
            Held-out samples as queries, as `explain` takes them. None: `queries` stored rows drawn by `seed`.
        queries, k, candidates, seed
            See `gradindex.search.tuning.tune`.
        """
        return tuning.tune(
            self._whole,
            None if x is None else self.sketch(x, y),
            queries=queries,
            k=k,
            candidates=candidates,
            seed=seed,
        )

    @property
    @pinned
    def curve(self) -> tuning.Curve | None:
        """Recall against latency as `tune` measured it; None before."""
        return tuning.saved(self.store)

    @pinned
    def calibrate(
        self,
        x: Tree,
        y: Tree = None,
        *,
        k: int = NEIGHBOURS,
        kernel: str | None = None,
        candidates: int | None = None,
        progress: bool | None = None,
    ) -> Calibration:
        """Calibrate ``explain(recall=…)`` on held-out queries, so that it is a promise.

        Answers to queries like these then hold a share of `recall` of their true k neighbours on average, on either
        side, whatever FAISS misses and the estimates hide; see `gradindex.search.calibration` for what that rests on.
        It takes 99 queries for ``recall=0.99``, 999 for ``recall=0.999``; more make answers cheaper. Costs a pass over
        the training set for every GiB of the queries' gradients. What is measured is kept beside the index, in the
        place of an earlier calibration for the same kernel and k. It outlives `remove`; after samples were added or
        left out by a compaction, calibrate again.

        Parameters
        ----------
        x
            Inputs of m queries that are not in the training set, as `explain` takes them; two or more.
        y
            Their labels, if queries will come with labels. None: what the model predicts, as for queries without.
        k, kernel
            What will be asked for.
        candidates
            How many rows of each side FAISS is asked for and may be checked; None: 400, at least four times k.
        progress
            Show a progress bar; None: only on a terminal.

        Raises
        ------
        ValueError
            As `explain`; or if there are fewer than 2 queries, half of them are training samples, or the kernel is one
            of whitened rows.
        """
        options = SearchOptions(k=k, kernel=kernel, candidates=candidates)
        asked = self.labelled(x, y)
        found = calibrate.calibrate(self._whole, asked, options, labelled=y is not None, progress=progress)
        self.calibrations[found.about.kernel, found.about.k] = found
        return found

    @pinned
    def calibration(self, k: int = NEIGHBOURS, kernel: str | None = None) -> Calibration | None:
        """Return what `calibrate` measured for a kernel and k results; None if it did not.

        Raises
        ------
        MismatchError
            If rows were added or left out since, or the FAISS index was built anew.
        DamagedIndexError
            If its file is damaged.
        """
        return self.calibrated(calibrate.kernel_of(self._whole, kernel), k)

    @pinned
    def verify(
        self,
        *,
        queries: int = QUERIES,
        k: int = NEIGHBOURS,
        kernel: str | None = None,
        rerank: int = RERANK,
        seed: int = SEED,
        x: Tree = None,
        y: Tree = None,
        max_seconds: float | None = None,
        recall: float | None = None,
    ) -> Audit:
        """Measure how often the index's answers are those of the exact kernel; see `gradindex.search.audit.verify`.

        With `recall`, and held-out samples `x`, also whether the calibration holds: `Audit.coverage`.
        """
        options = SearchOptions(k=k, kernel=kernel, rerank=rerank, recall=recall)
        return verify(self._whole, options, queries=queries, seed=seed, x=x, y=y, max_seconds=max_seconds)

    def calibrated(self, kernel: Kernel, k: int) -> Calibration | None:
        """Return the calibration for a kernel and k that belongs to this state, read once; None: there is none."""
        key = (kernel.value, k)
        if self.calibrations.get(key) is None:
            if key in self.calibrations and not isinstance(self.store.path, Path):
                return None  # on an object store, looking takes as long as a query
            there = calibration.exists(self.store, *key)
            self.calibrations[key] = calibration.load(self.store, *key, self.searcher.file) if there else None
        return self.calibrations[key]
