"""Audits: measured agreement of the index with the exact kernel."""

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex import exact, kernels, relevance
from gradindex.batches import Ids
from gradindex.index import mips
from gradindex.kernels import Kernel
from gradindex.queries import Queries, gradient_chunks
from gradindex.store.manifest import publish

if TYPE_CHECKING:
    from gradindex.index.index import Index

AUDIT = "audit.json"
_CONFIDENCE = 0.95
_CORRELATED_ROWS = 10_000  # rank correlation over at most this many rows, drawn by the seed


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Measured agreement of an index with the exact kernel, each with its 95 % interval.

    `recall` is that of the final answer (after exact re-ranking of `rerank` candidates), `search_recall` that of
    the sketch's own order. `rank_correlation` is Spearman's, between sketched and exact kernel values over
    all training samples (10,000 of them if there are more), mean over queries.
    """

    kernel: str
    k: int
    queries: int
    rerank: int
    rows: int
    seed: int
    recall: float
    recall_interval: tuple[float, float]
    search_recall: float
    search_recall_interval: tuple[float, float]
    rank_correlation: float
    rank_correlation_interval: tuple[float, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON-ready values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        def line(name: str, value: float, interval: tuple[float, float]) -> str:
            return f"{name:<34} {value:.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"

        return "\n".join(
            (
                f"{self.queries} training samples as queries against {self.rows} rows, {self.kernel}",
                line(f"recall@{self.k}, {self.rerank} exact checks", self.recall, self.recall_interval),
                line(f"recall@{self.k}, sketch alone", self.search_recall, self.search_recall_interval),
                line("rank correlation, sketch", self.rank_correlation, self.rank_correlation_interval),
            )
        )


def verify(index: "Index", *, queries: int, k: int, kernel: str | None, rerank: int, seed: int) -> Audit:
    """Compare the index's answers with the exact kernel over the whole training set.

    Queries are training samples drawn by `seed`, with their own labels; each one is left out of its own answer
    (a sample's cosine with itself is 1, which would flatter). Costs one pass over the training set. The audit is
    saved beside the index.

    Parameters
    ----------
    index
        An index opened with its job.
    queries
        How many; all rows if there are fewer.
    k, kernel, rerank
        As in `Index.explain`.
    seed
        Draws the queries.

    Raises
    ------
    ValueError
        If k is not between 1 and rows − 1, or `queries` is less than 1.
    """
    began = time.perf_counter()
    parsed = relevance.kernel_of(index.store.header.metric, kernel)
    if queries < 1:
        raise ValueError(f"queries must be 1 or more, got {queries}.")
    alive = np.ones(len(index), bool) if index.store.alive is None else index.store.alive
    rows = np.flatnonzero(alive)
    if not 1 <= k < len(rows):
        raise ValueError(f"k must be between 1 and {len(rows) - 1} (a query is left out of its own answer), got {k}.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(rows, min(queries, len(rows)), replace=False)).astype(np.int64)
    ids = index.store.ids[chosen]
    truth, correlations = _exact_answers(index, ids, k, parsed, rng)
    recalls = [
        _recall(truth, index.explain(ids=ids, k=k + 1, kernel=kernel, rerank=depth).ordered_indices, ids)
        for depth in (rerank, 0)
    ]
    audit = Audit(
        kernel=relevance.title(index.store.header.metric, parsed),
        k=k,
        queries=len(ids),
        rerank=max(rerank, k + 1) if rerank else 0,
        rows=len(rows),
        seed=seed,
        recall=float(recalls[0].mean()),
        recall_interval=_wilson(recalls[0]),
        search_recall=float(recalls[1].mean()),
        search_recall_interval=_wilson(recalls[1]),
        rank_correlation=float(correlations.mean()),
        rank_correlation_interval=_normal(correlations),
        seconds=time.perf_counter() - began,
    )
    publish(index.store.path / AUDIT, audit.to_json(), replace=True)
    return audit


def _exact_answers(
    index: "Index", ids: Ids, k: int, kernel: Kernel, rng: np.random.Generator
) -> tuple[Ids, NDArray[np.float64]]:
    """Return the exact top k ids (m, k) of each query, itself left out, and rank correlations (m,)."""
    job, store = index.job, index.store
    batch = job.source.take(ids)
    size = min(len(store), _CORRELATED_ROWS)
    sample = np.sort(rng.choice(len(store), size, replace=False)).astype(np.int64)
    answers, correlations = [], []
    for rows, gradients, norms in gradient_chunks(job.engine, Queries(batch.x, batch.y)):
        values = np.empty((len(gradients), len(store)), np.float32)
        for part, found in exact.gradient_blocks(job.engine, job.source):
            dots = exact.dots(gradients, found.gradients)
            there = np.isin(part.ids, store.ids)  # a compaction leaves removed samples out
            every = kernels.values(kernel, dots, norms, exact.norms(found.gradients))
            values[:, store.rows_of(part.ids[there])] = every[:, there]
        sketches = index.sketches(gradients, norms)
        cosines = sketches @ store.gather(sample).T
        for line, norm in enumerate(norms):
            estimate = cosines[line] * kernels.weights(kernel, float(norm), store.norms[sample])
            correlations.append(_spearman(estimate, values[line, sample]))
        values[np.arange(len(values)), store.rows_of(ids[rows])] = -np.inf
        if store.alive is not None:
            values[:, ~store.alive] = -np.inf
        everyone = np.broadcast_to(np.arange(len(store)), values.shape)
        answers.append(store.ids[mips.top(values, everyone, k)[1]])
    return np.concatenate(answers), np.array(correlations)


def _recall(truth: Ids, found: Ids, own: Ids) -> NDArray[np.float64]:
    """Return for each query the share of its exact top k that the first k found (itself left out) hold."""
    k = truth.shape[1]
    hits = []
    for want, got, self_id in zip(truth, found, own, strict=True):
        others = got[got != self_id][:k]
        hits.append(len(np.intersect1d(want, others)) / k)
    return np.array(hits)


def _wilson(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Wilson's interval with the queries as trials.

    A share in [0, 1] varies at most as much as a coin of the same mean, so this is on the wide side, and it
    stays honest when every query scores 1.
    """
    from scipy import stats

    n = len(shares)
    z = float(stats.norm.ppf(0.5 + _CONFIDENCE / 2))
    p = float(shares.mean())
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def _normal(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's interval of the mean."""
    if len(values) < 2:
        return -1.0, 1.0
    from scipy import stats

    half = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def _spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's correlation; 0 where one side is constant (a gradient of zero)."""
    from scipy import stats

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)
