"""The index as an object: explain, search, verify."""

import warnings
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import exact, kernels, labels, queries
from gradindex.batches import Batch, Ids
from gradindex.embedding import as_ids
from gradindex.explanation import Explanation
from gradindex.gradients.base import Floats, Projector
from gradindex.index import factory, mips
from gradindex.job import Job
from gradindex.kernels import Kernel, Task
from gradindex.sketch import from_json
from gradindex.store import Store
from gradindex.store.shard import normalise
from gradindex.summary import BuildSummary
from gradindex.verify import Audit, verify

_QUERIES = 256  # handled at once, so that candidates' rows take little memory
_SKETCH_TOLERANCE = 1e-3  # far below the error of a sketched cosine


class Index:
    """An index over the gradients of a training set; get one from `gradindex.build` or `gradindex.load`.

    Parameters
    ----------
    store
        A complete store with a FAISS index.
    job
        The model, loss and dataset it was built from; needed for new queries and exact scores.
    """

    def __init__(self, store: Store, job: Job | None = None) -> None:
        self.store = store
        self._job = job
        self.searcher = factory.load(store)
        self.summary: BuildSummary | None = None

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return (
            f"Index({str(self.store.path)!r}: {len(self)} samples, {self.searcher.factory}, {self.store.header.sketch})"
        )

    @property
    def job(self) -> Job:
        """The job; raises ValueError if the index was opened without one."""
        if self._job is None:
            raise ValueError("This needs the model and the data: open the index with gradindex.load(path, job).")
        return self._job

    def explain(
        self,
        x: Any = None,
        y: Any = None,
        *,
        ids: Any = None,
        k: int = 10,
        kernel: str = "grad_cos",
        rerank: int = 100,
        eps: float = 0.0,
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
            ``'grad_cos'``, ``'grad_dot'`` or ``'grad_asym_dot'``.
        rerank
            How many candidates of each side are evaluated with the exact kernel (at least k); 0 leaves the
            sketch's estimates.
        eps
            Added to the kernel's denominator. The default leaves the kernels as they are defined, with 0 where
            a gradient is zero; `GradientSimilarity` uses 1e-7.

        Returns
        -------
        Explanation
            With `scores` (m, k) float64 descending, `ordered_indices` (m, k) int64 ids, `exact` (m, k) bool;
            the same with ``opponent_`` in front (`opponent_indices`), ascending; `labels`, `predictions` of both
            sides where known; `query_predictions` (m,) and, where given, `query_labels`; the user's own `columns` and
            `opponent_columns`, dicts of arrays (m, k). A missing result has id −1 and score NaN.

        Raises
        ------
        ValueError
            For an unknown kernel, k < 1 or larger than the index, a wrong shape, NaN, or missing labels.
        IndexError
            If an id is out of range.
        """
        parsed = kernels.parse(Kernel, kernel, "kernel")
        check_k(k, len(self))
        if rerank < 0:
            raise ValueError(f"rerank must be 0 or more, got {rerank}.")
        asked = self._queries(x, y, ids)
        parts = []
        for _, gradients, norms in queries.gradient_chunks(self.job.engine, asked, _QUERIES):
            parts.append(self._answer(gradients, norms, parsed, k, rerank, eps))
        data: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        data.update(self._describe(asked, data))
        if ids is None and y is None:
            data.pop("query_labels", None)  # they were the predictions
        params = {
            "kernel": parsed.value,
            "k": k,
            "rerank": max(rerank, k) if rerank else 0,
            "rows": len(self),
            "index": self.searcher.factory,
            "sketch": self.store.header.sketch,
        }
        return Explanation(_meta("Index", params), data)

    def search(self, vectors: NDArray[Any], k: int = 10) -> tuple[NDArray[np.float32], Ids]:
        """Search with sketches made elsewhere, (m, dim), by cosine; needs no job.

        Returns
        -------
        tuple
            Estimated cosines (m, k) descending and ids (m, k); missing results have id −1.

        Raises
        ------
        ValueError
            For a wrong width, NaN, or a bad k.
        """
        vectors = np.asarray(vectors, np.float32)
        check_k(k, len(self))
        if vectors.ndim != 2 or vectors.shape[1] != self.store.header.dim:
            raise ValueError(f"Expected vectors of shape (m, {self.store.header.dim}), got {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise ValueError("The vectors hold NaN or infinity.")
        scores, rows = self.searcher.search(vectors, k)
        return scores, self._ids(rows)

    def check(self) -> None:
        """Compare the sha256 of every file of store and index, and look for files that do not belong.

        Raises
        ------
        DamagedIndexError
            Naming the first file that is damaged or belongs to no manifest.
        """
        self.store.check()
        factory.check(self.store)

    def self_influence(self, top: int = 10) -> tuple[NDArray[np.float64], Ids]:
        """Return the largest squared gradient norms (top,), descending, and their ids; reads no gradient.

        Raises
        ------
        ValueError
            If `top` is not between 1 and the number of rows.
        """
        check_k(top, len(self))
        rows = np.argsort(-self.store.norms, kind="stable")[:top].astype(np.int64)
        return self.store.norms[rows].astype(np.float64) ** 2, self.store.ids[rows]

    def verify(
        self, *, queries: int = 200, k: int = 10, kernel: str = "grad_cos", rerank: int = 100, seed: int = 0
    ) -> Audit:
        """Measure how often the index's answers are those of the exact kernel; see `gradindex.verify.verify`."""
        return verify(self, queries=queries, k=k, kernel=kernel, rerank=rerank, seed=seed)

    @cached_property
    def projector(self) -> Projector:
        """The projection that made the stored sketches."""
        return from_json(self.store.header.sketch).bind(self.job.engine.parameters, self.store.header.seed)

    @cached_property
    def example(self) -> Batch:
        """The first samples of the dataset: the form that queries and labels must have."""
        return self.job.source.take(np.arange(min(64, len(self.job.source)), dtype=np.int64))

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
    ) -> dict[str, NDArray[Any]]:
        sketches = normalise(self.projector(self.job.engine.parameters, gradients))
        depth = min(len(self), max(k, rerank)) if rerank else k
        sides = [self._candidates(side * sketches, norms, kernel, k, depth, eps) for side in (1, -1)]
        if rerank:
            ids = self._ids(_distinct(np.hstack([rows for _, rows in sides])))
            scores = self._exact(gradients, norms, ids, kernel, eps)
            found = [mips.top(np.where(ids < 0, -np.inf, side * scores), ids, k) for side in (1, -1)]
        else:
            found = [(scores, self._ids(rows)) for scores, rows in sides]
        answer: dict[str, NDArray[Any]] = {}
        for prefix, side, (scores, ids) in zip(("", "opponent_"), (1, -1), found, strict=True):
            missing = ids < 0
            answer[f"{prefix}scores"] = np.where(missing, np.nan, side * np.where(missing, 0.0, scores))
            answer["opponent_indices" if prefix else "ordered_indices"] = ids
            answer[f"{prefix}exact"] = ~missing & bool(rerank)
        return answer

    def _candidates(
        self,
        sketches: NDArray[np.float32],
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        depth: int,
        eps: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return estimated kernel values and rows (m, depth) of the nearest stored rows, descending.

        Of these the first `k` are wanted.
        """
        if kernel is not Kernel.COS:
            return mips.scan(self.store, sketches, norms, kernel, depth, eps)[:2]
        found, rows = self.searcher.search(sketches, depth)
        scores = found.astype(np.float64)
        if self.searcher.factory != "Flat":  # score the narrow or quantised index's finds by the stored rows
            wide = self.store.gather(np.where(rows < 0, 0, rows).ravel()).reshape(*rows.shape, -1)
            scores = np.where(rows < 0, -np.inf, np.einsum("md,mkd->mk", sketches, wide))
        scores, rows = mips.top(scores, rows, depth)
        if not eps:
            return scores, rows
        last = scores[:, -1].copy()
        for line, norm in enumerate(norms):
            scores[line] *= kernels.weights(kernel, float(norm), self.store.norms[rows[line]], eps)
        scores, rows = mips.top(scores, rows, depth)
        # eps lowers the score of small gradients. A row that was not found scores at most its cosine, so at most
        # the last one found; where the k-th score is below that, the order of cosines is no guide.
        unsure = scores[:, k - 1] < last - _SKETCH_TOLERANCE
        if unsure.any():
            scan = mips.scan(self.store, sketches[unsure], norms[unsure], kernel, depth, eps)
            scores[unsure], rows[unsure] = scan[:2]
        return scores, rows

    def _exact(
        self, gradients: Floats, norms: NDArray[np.float64], ids: Ids, kernel: Kernel, eps: float
    ) -> NDArray[np.float64]:
        dots, losses = exact.candidate_dots(self.job.engine, self.job.source, gradients, ids)
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
                stacklevel=5,
            )

    def _ids(self, rows: NDArray[np.int64]) -> Ids:
        return np.where(rows < 0, -1, self.store.ids[rows])

    def _describe(self, asked: queries.Queries, data: dict[str, Any]) -> dict[str, Any]:
        """Return labels and predictions of queries and of the found samples."""
        found: dict[str, Any] = {"query_labels": labels.as_classes(asked.y)}
        try:
            found["query_predictions"] = labels.predicted_classes(queries.outputs(self.job.engine, asked.x))
        except TypeError:
            found["query_predictions"] = None
        for prefix, indices in (("", "ordered_indices"), ("opponent_", "opponent_indices")):
            ids = data[indices]
            rows = self.store.rows_of(np.where(ids < 0, self.store.ids[0], ids).ravel()).reshape(ids.shape)
            for column in ("label", "prediction"):
                if column in self.store.columns:
                    found[f"{prefix}{column}s"] = self.store.columns[column][rows]
            if self.store.header.columns:
                found[f"{prefix}columns"] = {n: self.store.columns[n][rows] for n in self.store.header.columns}
        return {name: value for name, value in found.items() if value is not None}


def check_k(k: int, rows: int) -> None:
    """Raise ValueError unless 1 ≤ k ≤ rows."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}.")
    if k > rows:
        raise ValueError(f"k is {k}, but there are only {rows} samples.")


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows (m, c) with repeated entries of a line replaced by −1."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    out = np.empty_like(rows)
    np.put_along_axis(out, order, ordered, 1)
    return out


def _meta(name: str, params: dict[str, Any]) -> dict[str, Any]:
    import gradindex

    return {
        "name": name,
        "type": ["whitebox"],
        "explanations": ["local"],
        "params": params,
        "version": gradindex.__version__,
    }
