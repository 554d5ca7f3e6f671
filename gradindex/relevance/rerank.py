"""Scores ⟨q, (G + d)⁻¹ t⟩ of candidates, or of every sample, by EKFAC, K-FAC or conjugate gradients."""

from functools import cached_property
from typing import Any

import numpy as np

from gradindex.compute import exact, queries
from gradindex.data.source import Batch, Ids
from gradindex.gradients.parameter import Floats
from gradindex.job import Job
from gradindex.relevance import curvature
from gradindex.relevance.base import Options, Rows
from gradindex.relevance.inverse import Inverse
from gradindex.words import Task

_FIRST = 10_000  # labels that say what form a predicted one has


class Reranker:
    """Influence scores of candidates that an index found, by a curvature that is made once, when it is first needed.

    Positive scores are of samples whose removal would raise the query's loss. Nothing is held for a training sample.

    Parameters
    ----------
    job
        The model, its loss and the training samples; without metric and checkpoints.
    options
        Those of `gradindex.relevance.base.Options`; `solver` is ``"ekfac"`` unless given. ``"cg"`` takes the vectors of
        ``"ekfac"`` further, at the cost of a pass over the samples for each query and iteration.

    Raises
    ------
    ValueError
        If the job has a metric or checkpoints, or an option makes no sense.
    """

    def __init__(self, job: Job, **options: Any) -> None:
        if job.metric is not None or job.checkpoints is not None:
            raise ValueError(
                "Scores with a curvature are of one model's gradients: give a job without metric and checkpoints."
            )
        self._job, self._options = job, Options(**{"solver": "ekfac", **options})

    @cached_property
    def inverse(self) -> Inverse:
        """(G + d)⁻¹ of the job."""
        return curvature.hessian(self._job, self._options)

    def vectors(self, X: Any, y: Any = None) -> tuple[Batch, Rows]:
        """Return m queries with their labels, and (G + d)⁻¹ q, (m, P) float64; `y` None means predicted labels."""
        source = self._job.source
        example = source.take(np.arange(min(2, len(source)), dtype=np.int64))
        like = source.take(np.arange(min(len(source), _FIRST), dtype=np.int64)).y
        x, labels = queries.match_shapes(X, y, example)
        asked = queries.with_labels(self._job.engine, Task(self._job.task), x, labels, like)
        rows = [found for _, found, _ in queries.gradient_chunks(self._job.engine, asked)]
        gradients: Floats = np.concatenate(rows)
        batch = Batch(np.arange(len(gradients), dtype=np.int64), asked.x, asked.y)
        return batch, self.inverse.apply(gradients.astype(np.float64))

    def scores(self, ids: Ids, X: Any, y: Any = None) -> Rows:
        """Return the scores of each query's own candidates.

        Parameters
        ----------
        ids
            Candidates (m, c), positions in the job's dataset; −1 for none, whose score is −∞.
        X
            Inputs of m queries.
        y
            Their labels; None: the model's own predictions.

        Raises
        ------
        ValueError
            If `ids` are not integers (m, c).
        IndexError
            If an id is out of range.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers of shape (m, c), got shape {ids.shape} of {ids.dtype}.")
        batch, vectors = self.vectors(X, y)
        if len(ids) != len(batch):
            raise ValueError(f"ids are of {len(ids)} queries, X holds {len(batch)}.")
        rows = vectors.astype(self._job.engine.dtype)
        return exact.candidate_dots(self._job.engine, self._job.source, None, rows, ids.astype(np.int64)).dots

    def scan(self, X: Any, y: Any = None) -> Rows:
        """Return the scores (m, n) of all training samples, whose gradients are formed a batch at a time.

        What a re-rank of candidates is compared with: the share of a query's best k that were among its candidates.
        """
        _, vectors = self.vectors(X, y)
        parts = [
            exact.dots(vectors, found.gradients)
            for _, found in exact.gradient_blocks(self._job.engine, self._job.source)
        ]
        return np.concatenate(parts, axis=1)


def recall(scores: Rows, ids: Ids, k: int) -> float:
    """Return the mean share of each query's k best of all samples that are the k best of its candidates.

    Parameters
    ----------
    scores
        Of all samples (m, n).
    ids
        Candidates (m, c), c ≥ k; −1 for none.
    k
        How many.

    Raises
    ------
    ValueError
        If k is not between 1 and the number of candidates.
    """
    if not 1 <= k <= ids.shape[1]:
        raise ValueError(f"k must be between 1 and {ids.shape[1]}, the number of candidates, got {k}.")
    own = np.where(ids >= 0, np.take_along_axis(scores, np.maximum(ids, 0), 1), -np.inf)
    found = np.take_along_axis(ids, np.argsort(-own, axis=1, kind="stable")[:, :k], 1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(best, found, strict=True)]))
