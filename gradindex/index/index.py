"""The index as an object: explain, search, verify."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import exact, kernels, queries, relevance
from gradindex.batches import Batch, Ids
from gradindex.batches import index as take
from gradindex.embedding import as_ids
from gradindex.explanation import Explanation
from gradindex.gradients.base import Floats, Projector
from gradindex.index import certify as proofs
from gradindex.index import factory, mips
from gradindex.index.answers import check_k, check_max_checks, describe, distinct, meta
from gradindex.index.changing import Changing, pinned
from gradindex.index.selection import SCAN_ROWS, Selection, select
from gradindex.kernels import Kernel, Task
from gradindex.store.shard import normalise
from gradindex.timing import stage
from gradindex.verify import Audit, verify

_QUERIES = 256  # handled at once, so that candidates' rows take little memory
_SKETCH_TOLERANCE = 1e-3  # far below the error of a sketched cosine


class Index(Changing):
    """An index over the gradients of a training set; get one from `gradindex.build` or `gradindex.load`.

    Parameters
    ----------
    store
        A complete store with a FAISS index.
    job
        The model, loss and dataset it was built from; needed for new queries and exact scores.
    """

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return (
            f"Index({str(self.store.path)!r}: {len(self)} samples, {self.searcher.factory}, {self.store.header.sketch})"
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        from gradindex.html import table_html

        facts = {"index": self.store.path, "samples": f"{len(self):,}", "search": self.searcher.factory}
        return table_html(facts | {"rows": self.store.header.sketch})

    @pinned
    def explain(
        self,
        x: Any = None,
        y: Any = None,
        *,
        ids: Any = None,
        k: int = 10,
        kernel: str | None = None,
        rerank: int = 100,
        eps: float = 0.0,
        certify: bool = False,
        max_checks: int | None = None,
        where: Any = None,
    ) -> Explanation:
        """Find the training samples with the highest and the lowest kernel values for each query.

        Parameters
        ----------
        x
            Inputs of m queries, shaped like the training inputs; a single one may lack the first axis.
        y
            Their labels, or one label for all; None: what the model predicts (classification only).
        ids
            Instead of `x` and `y`: dataset positions of samples to use as queries, with their own labels.
        k
            How many proponents and how many opponents, at most the number of indexed samples.
        kernel
            ``'grad_cos'`` (the default), ``'grad_dot'`` or ``'grad_asym_dot'``; in an index built with a metric,
            None or the metric's name.
        rerank
            How many candidates of each side are evaluated with the exact kernel (at least k); 0 leaves the
            sketch's estimates.
        eps
            Added to the kernel's denominator. The default leaves the kernels as they are defined, with 0 where
            a gradient is zero; `GradientSimilarity` uses 1e-7.
        certify
            Check rows exactly until the answer is proved to be that of the exact kernel over all rows; see
            `gradindex.index.certify`. For ``'grad_cos'`` that takes an index of `gradindex.Landmark` rows: with any
            other sketch nothing is proved unless `max_checks` lets every row be checked.
        max_checks
            With `certify`: give up after this many exact checks for a query and side, at least k; None: never.
        where
            Which samples may be found: a mapping of columns to a value or list of values, such as
            ``{"label": 3}`` (also a user's own columns; several must all hold), or ids; None: all. Few are found
            by an exact scan of the store, many by FAISS over all lists.

        Returns
        -------
        Explanation
            With `scores` (m, k) float64 descending, `ordered_indices` (m, k) int64 ids, `exact` (m, k) bool;
            the same with ``opponent_`` in front (`opponent_indices`), ascending; `labels`, `predictions` of both
            sides where known; `query_predictions` (m,) and, where given, `query_labels`; the user's own `columns` and
            `opponent_columns`, dicts of arrays (m, k). A missing result has id −1 and score NaN. For each side
            `proved` (m,) bool: whether this is the answer of the true, unprojected kernel; `checked` (m,) rows
            evaluated exactly (with `certify`, for this side's sake); `scanned` (m,) rows looked at, −1 where FAISS
            does not tell; `bound_left` (m,): where not proved, a bound that the kernel values of all rows not
            evaluated keep to.

        Raises
        ------
        ValueError
            For an unknown kernel or one that has no meaning for the index's metric, k < 1 or larger than the index,
            a wrong shape, NaN, missing labels, a bad `max_checks`, an unknown column, or if nothing matches `where`.
        IndexError
            If an id is out of range.
        """
        parsed = relevance.kernel_of(self.store.header.metric, kernel)
        check_k(k, len(self))
        if rerank < 0:
            raise ValueError(f"rerank must be 0 or more, got {rerank}.")
        check_max_checks(certify, max_checks, k)
        selection = select(self.store, where)
        asked = self._queries(x, y, ids)
        parts = []
        most = min(_QUERIES, proofs.chunk(len(self))) if certify else _QUERIES
        for some, gradients, norms in queries.gradient_chunks(self.job.engine, asked, most):
            if certify:
                batch = Batch(np.arange(some.start, some.stop), take(asked.x, some), take(asked.y, some))
                depth = min(len(self), max(k, rerank))
                parts.append(proofs.answer(self, batch, gradients, norms, parsed, k, eps, max_checks, depth, selection))
            else:
                parts.append(self._answer(gradients, norms, parsed, k, rerank, eps, selection))
        data: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        data.update(describe(self.store, self.job.engine, asked, data))
        if ids is None and y is None:
            data.pop("query_labels", None)  # they were the predictions
        params = {
            "kernel": relevance.title(self.store.header.metric, parsed),
            "k": k,
            "rerank": max(rerank, k) if rerank else 0,
            "certify": certify,
            "max_checks": max_checks,
            "selected": len(self) if selection is None else len(selection),
            "rows": len(self),
            "index": self.searcher.factory,
            "sketch": self.store.header.sketch,
        }
        return Explanation(meta("Index", params), data, view=(self.job, asked.x, ids))

    @pinned
    def search(self, vectors: NDArray[Any], k: int = 10, *, where: Any = None) -> tuple[NDArray[np.float32], Ids]:
        """Search with sketches made elsewhere, (m, dim), by cosine; needs no job. `where` is as in `explain`.

        Returns
        -------
        tuple
            Estimated cosines (m, k) descending and ids (m, k); missing results have id −1.

        Raises
        ------
        ValueError
            For a wrong width, NaN, a bad k, or a `where` that matches nothing.
        """
        vectors = np.asarray(vectors, np.float32)
        check_k(k, len(self))
        if vectors.ndim != 2 or vectors.shape[1] != self.store.header.dim:
            raise ValueError(f"Expected vectors of shape (m, {self.store.header.dim}), got {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise ValueError("The vectors hold NaN or infinity.")
        scores, rows, _ = self._nearest(normalise(vectors), k, select(self.store, where))
        return scores, self._ids(rows)

    @pinned
    def kneighbors(
        self, X: Any, n_neighbors: int = 5, return_distance: bool = True, *, y: Any = None
    ) -> tuple[NDArray[np.float64], Ids] | Ids:
        """Return the nearest training samples as scikit-learn's ``kneighbors`` does.

        Parameters
        ----------
        X
            Inputs of m queries, as `explain` takes them.
        n_neighbors
            How many.
        return_distance
            Whether to return distances, too.
        y
            Labels of the queries; None: what the model predicts.

        Returns
        -------
        tuple or ndarray
            Distances (m, n_neighbors) float64, 1 − cos of the gradients (exact), ascending; and ids, int64.
        """
        found = self.explain(X, y, k=n_neighbors)
        return (1 - found.scores, found.ordered_indices) if return_distance else found.ordered_indices

    @pinned
    def check(self) -> None:
        """Compare the sha256 of every file of store and index, and look for files that do not belong.

        Raises
        ------
        DamagedIndexError
            Naming the first file that is damaged or belongs to no manifest.
        """
        self.store.check()
        factory.check(self.store)
        factory.check_extra(self.store)

    @pinned
    def self_influence(self, top: int = 10) -> tuple[NDArray[np.float64], Ids]:
        """Return the largest squared gradient norms (top,), descending, and their ids; reads no gradient.

        Raises
        ------
        ValueError
            If `top` is not between 1 and the number of rows.
        """
        check_k(top, len(self))
        rows = np.argsort(-self.store.norms, kind="stable").astype(np.int64)
        rows = (rows if self.store.alive is None else rows[self.store.alive[rows]])[:top]
        return self.store.norms[rows].astype(np.float64) ** 2, self.store.ids[rows]

    @pinned
    def verify(
        self, *, queries: int = 200, k: int = 10, kernel: str | None = None, rerank: int = 100, seed: int = 0
    ) -> Audit:
        """Measure how often the index's answers are those of the exact kernel; see `gradindex.verify.verify`."""
        return verify(self, queries=queries, k=k, kernel=kernel, rerank=rerank, seed=seed)

    @property
    def projector(self) -> Projector:
        """The projection that made the stored sketches."""
        return self.at_hand.projector

    def sketches(self, gradients: Floats, norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return unit-norm rows (m, dim) of gradients (m, P) with norms (m,), comparable with the stored ones."""
        projector = self.projector
        return normalise(projector.finish(projector(self.job.engine.parameters, gradients), norms))

    def evaluate(self, held: exact.HeldQueries, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return exact inner products (m, r) of held queries with the samples of some rows."""
        job, ids, size = self.job, self.store.ids[rows], self.at_hand.batch_size
        out = np.empty((held.count, len(ids)))
        losses: dict[int, float] = {}
        for begin in range(0, len(ids), size):
            batch = job.source.take(ids[begin : begin + size])
            out[:, begin : begin + len(batch)], found = held.dots(batch)
            losses.update(zip(batch.ids.tolist(), found.losses.tolist(), strict=True))
        self._compare_losses(losses)
        return out

    @property
    def example(self) -> Batch:
        """The first samples of the dataset: the form that queries and labels must have."""
        return self.at_hand.example

    def _queries(self, x: Any, y: Any, ids: Any) -> queries.Queries:
        if (x is None) == (ids is None):
            raise ValueError("Give either inputs x (and y), or ids of training samples.")
        if ids is not None:
            batch = self.job.source.take(as_ids(ids))
            if len(batch) == 0:
                raise ValueError("There are no queries: ids is empty.")
            return queries.Queries(batch.x, batch.y)
        x, y = queries.match_shapes(x, y, self.example)
        return queries.with_labels(self.job.engine, Task(self.job.task), x, y, self.example.y)

    def _answer(
        self,
        gradients: Floats,
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        rerank: int,
        eps: float,
        selection: Selection | None,
    ) -> dict[str, NDArray[Any]]:
        sketches = self.sketches(gradients, norms)
        depth = min(len(self), max(k, rerank)) if rerank else k
        both = (sketches, self.projector.opposite(sketches))
        sides = [self.candidates(side, norms, kernel, k, depth, eps, selection) for side in both]
        checked = distinct(np.hstack([rows for _, rows, _ in sides])) if rerank else np.empty((len(norms), 0), int)
        if rerank:
            ids = self._ids(checked)
            scores = self._exact(gradients, norms, ids, kernel, eps)
            found = [mips.top(np.where(ids < 0, -np.inf, side * scores), ids, k) for side in (1, -1)]
        else:
            found = [(scores, self._ids(rows)) for scores, rows, _ in sides]
        answer: dict[str, NDArray[Any]] = {}
        for i, (prefix, side, (scores, ids)) in enumerate(zip(("", "opponent_"), (1, -1), found, strict=True)):
            missing = ids < 0
            kth = np.where(missing[:, -1] | (not rerank), -np.inf, scores[:, -1])
            proved, left = proofs.proof(self, kernel, eps, norms, checked, kth, selection)
            answer[f"{prefix}proved"], answer[f"{prefix}bound_left"] = proved, side * left
            answer[f"{prefix}checked"] = (checked >= 0).sum(axis=1)
            answer[f"{prefix}scanned"] = sides[i][2]
            answer[f"{prefix}scores"] = np.where(missing, np.nan, side * np.where(missing, 0.0, scores))
            answer["opponent_indices" if prefix else "ordered_indices"] = ids
            answer[f"{prefix}exact"] = ~missing & bool(rerank)
        return answer

    @stage("search")
    def candidates(
        self,
        sketches: NDArray[np.float32],
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        depth: int,
        eps: float,
        selection: Selection | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return estimated kernel values and rows (m, depth) of the nearest stored rows, descending.

        Of these the first `k` are wanted. Also, how many rows were looked at (m,), −1 where FAISS does not tell.
        """
        if kernel is not Kernel.COS:
            return self._scan(sketches, norms, kernel, depth, eps, selection)
        found, rows, scanned = self._nearest(sketches, depth, selection)
        scores = found.astype(np.float64)
        if self.searcher.factory != "Flat":  # score the narrow or quantised index's finds by the stored rows
            wide = self.store.gather(np.where(rows < 0, 0, rows).ravel()).reshape(*rows.shape, -1)
            scores = np.where(rows < 0, -np.inf, np.einsum("md,mkd->mk", sketches, wide))
        scores, rows = mips.top(scores, rows, depth)
        if not eps:
            return scores, rows, scanned
        last = scores[:, -1].copy()
        for line, norm in enumerate(norms):
            scores[line] *= kernels.weights(kernel, float(norm), self.store.norms[rows[line]], eps)
        scores, rows = mips.top(scores, rows, depth)
        # eps lowers the score of small gradients. A row that was not found scores at most its cosine, so at most
        # the last one found; where the k-th score is below that, the order of cosines is no guide.
        unsure = scores[:, k - 1] < last - _SKETCH_TOLERANCE
        if unsure.any():
            scan = self._scan(sketches[unsure], norms[unsure], kernel, depth, eps, selection)
            scores[unsure], rows[unsure], scanned[unsure] = scan
        return scores, rows, scanned

    def _nearest(
        self, sketches: NDArray[np.float32], k: int, selection: Selection | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Return cosines and rows (m, k) of the nearest selected rows of the index, and rows looked at (m,)."""
        if selection is None:
            return *self.searcher.search(sketches, k), self.searcher.scanned(sketches)
        by_faiss = len(selection) > SCAN_ROWS or not selection.everywhere
        parameters = selection.parameters(self.searcher.index) if by_faiss else None
        if parameters is None:
            ones = np.ones(len(sketches))
            scores, rows, scanned = self._scan(sketches, ones, Kernel.COS, k, selection=selection)
            return scores.astype(np.float32), rows, scanned
        found, rows = self.searcher.search(sketches, k, parameters)
        scanned = np.full(len(sketches), len(selection)) if selection.everywhere else self.searcher.scanned(sketches)
        return found, rows, scanned

    def _scan(self, *asked: Any, **options: Any) -> mips.Found:
        return mips.scan(self.store, *asked, **options)

    def _dots(self, gradients: Floats, ids: Ids) -> tuple[NDArray[np.float64], dict[int, float]]:
        return exact.candidate_dots(self.job.engine, self.job.source, gradients, ids)

    def _exact(
        self, gradients: Floats, norms: NDArray[np.float64], ids: Ids, kernel: Kernel, eps: float
    ) -> NDArray[np.float64]:
        dots, losses = self._dots(gradients, ids)
        rows = np.where(
            ids < 0,
            -1,
            self.store.rows_of(np.where(ids < 0, self.store.ids[0], ids).ravel()).reshape(ids.shape),
        )
        self._compare_losses(losses)
        return kernels.values(kernel, np.where(ids < 0, 0.0, dots), norms, self.store.norms[rows], eps)

    def _compare_losses(self, losses: dict[int, float]) -> None:
        """Warn if candidates' losses are not those stored: another loss function, or changed data."""
        ids = np.fromiter(losses, np.int64, len(losses))
        now = np.fromiter(losses.values(), np.float64, len(losses))
        stored = self.store.columns["loss"][self.store.rows_of(ids)]
        differs = np.abs(now - stored) > 1e-3 * (1 + np.abs(stored))
        if differs.any():
            first = np.flatnonzero(differs)[0]
            warnings.warn(
                f"The loss of {differs.sum()} of {len(ids)} samples is not the stored one (sample {ids[first]}: "
                f"{now[first]:.4g}, stored {stored[first]:.4g}). Is this the loss and the data of the build?",
                UserWarning,
                stacklevel=6,
            )

    def _ids(self, rows: NDArray[np.int64]) -> Ids:
        return np.where(rows < 0, -1, self.store.ids[rows])
