"""Audits of whitened rows: answers against the kernel as it is defined, from the stored rows without a second rounding.

The truth is qᵀ (R + λ)⁻¹ s with all eigenvectors of R, for every stored row s; what is measured is what the
rounding to bits, the coordinates that were left out, and FAISS change in an answer.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.selection import select
from gradindex.compute.queries import Queries
from gradindex.data.source import Ids
from gradindex.defaults import BLOCK_ROWS
from gradindex.kernels import Kernel, WhiteKernel
from gradindex.search import agreement, norm_scan
from gradindex.search.agreement import Estimate
from gradindex.search.audit_result import DEPTHS, FINAL, INDEX, SKETCH, Audit
from gradindex.search.options import SearchOptions

if TYPE_CHECKING:
    from gradindex.index.index import Index

_CORRELATED_ROWS = 10_000
_DRAWN = 2000


def verify(
    index: "Index",
    kernel: WhiteKernel,
    asked: Queries,
    own: Ids,
    drawn: str,
    k: int,
    seed: int,
    end: float | None = None,
) -> Audit:
    """Compare answers by whitened rows with the kernel's definition over all samples.

    Parameters
    ----------
    index
        An index with whitened rows.
    kernel
        Which kernel.
    asked
        The m queries.
    own
        Rows of the queries in the store, (m,), to be left out of their own answers; −1 for held-out samples.
    drawn
        What the queries are.
    k
        Depth of the recall.
    seed
        Draws the samples over which ranks are correlated.
    end
        Stop comparing at this time of `time.perf_counter`, after one block at least; samples then come in an order
        drawn by `seed`. None: never.
    """
    began = time.perf_counter()
    white, store = index.white, index.store
    white.refuse_missing()
    alive = np.arange(len(store)) if store.alive is None else np.flatnonzero(store.alive)
    most = min(max(max(DEPTHS), k), len(alive) - 1)
    sketches, norms = index.embedded(asked)
    exact = white.spectrum.whitener(white.dampings)
    queries, lengths = exact(sketches, norms)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(alive, min(len(alive), _CORRELATED_ROWS), replace=False))
    true = np.full((len(asked), most), -np.inf), np.full((len(asked), most), -1, np.int64)
    of_sample = np.empty((len(asked), len(sample)))
    order, compared = alive if end is None else rng.permutation(alive), 0
    while compared < len(alive) and (end is None or not compared or time.perf_counter() < end):
        here = np.sort(order[compared : compared + BLOCK_ROWS])
        compared += len(here)
        rows, weights = exact(store.gather(here), store.norms[here])
        values = (queries @ rows.T).astype(np.float64)
        if kernel.plain is Kernel.DOT:
            values *= lengths[:, None] * weights
        inside = np.flatnonzero(np.isin(sample, here))
        of_sample[:, inside] = values[:, np.searchsorted(here, sample[inside])]
        values[own[:, None] == here] = -np.inf
        every = np.broadcast_to(here, values.shape)
        true = norm_scan.top(np.hstack([true[0], values]), np.hstack([true[1], every]), most)
        store.release()
    seen = np.isin(sample, order[:compared])
    sample, of_sample = sample[seen], of_sample[:, seen]
    stored = white.store.rows_of(store.ids[sample])
    coded, code_norms = white.whitener(sketches, norms)
    codes = (coded @ white.store.gather(stored).T).astype(np.float64)
    estimates = codes * (code_norms[:, None] * white.store.norms[stored]) if kernel.plain is Kernel.DOT else codes
    found = _found(index, kernel, asked, own, most)
    scanned = _scanned(index, kernel, coded, code_norms, own, most)
    ranked = [agreement.spearman(*pair) for pair in zip(of_sample, estimates, strict=True)]
    correlation = agreement.mean(np.array(ranked))
    recall = agreement.share(agreement.recalls(true[1], found, k))
    depths = sorted({min(depth, most) for depth in DEPTHS})
    stages: dict[str, dict[str, Estimate]] = {}
    for name, want, got in ((INDEX, scanned, found), (SKETCH, true[1], scanned), (FINAL, true[1], found)):
        stages[name] = {f"recall@{d}": agreement.share(agreement.recalls(want, got, d)) for d in depths}
        stages[name]["rank correlation"] = agreement.mean(agreement.ranks(want, got))
    stages[SKETCH]["rank correlation"] = correlation
    return Audit(
        kernel=kernel.value,
        k=k,
        queries=len(asked),
        rerank=0,
        rows=len(alive),
        seed=seed,
        recall=recall[0],
        recall_interval=recall[1:],
        search_recall=recall[0],
        search_recall_interval=recall[1:],
        rank_correlation=correlation[0],
        rank_correlation_interval=correlation[1:],
        seconds=time.perf_counter() - began,
        compared=compared,
        drawn=drawn,
        stages=stages,
        pairs=_pairs(of_sample, estimates, rng),
    )


def _found(index: "Index", kernel: WhiteKernel, asked: Queries, own: Ids, most: int) -> Ids:
    """Return the store's rows (m, most) of the answers, without the queries themselves."""
    more = int(own[0] >= 0)
    options = SearchOptions(k=most + more, kernel=kernel.value)
    ids = index.explain(asked.x, asked.y, options=options).ordered_indices
    rows = np.full(ids.shape, -1, np.int64)
    rows[ids >= 0] = index.store.rows_of(ids[ids >= 0])
    return agreement.leave_out(rows, own) if more else rows


def _scanned(
    index: "Index", kernel: WhiteKernel, coded: NDArray[np.float32], norms: NDArray[np.float64], own: Ids, most: int
) -> Ids:
    """Return the store's rows (m, most) of a scan of all whitened rows, without the queries themselves."""
    white, more = index.white, int(own[0] >= 0)
    selection = white.selection(select(index.store, None))
    _, found, _ = norm_scan.scan(white.store, coded, norms, kernel.plain, most + more, selection=selection)
    rows = index.store.rows_of(white.store.ids[found].ravel()).reshape(found.shape)
    return agreement.leave_out(rows, own) if more else rows


def _pairs(
    exact: NDArray[np.float64], estimates: NDArray[np.float64], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Return some pairs (estimated, exact), scaled so that the largest exact one is 1, as audits draw them."""
    scale = float(np.abs(exact).max()) or 1.0
    chosen = rng.choice(exact.size, min(exact.size, _DRAWN), replace=False)
    both = zip((estimates.ravel()[chosen] / scale).tolist(), (exact.ravel()[chosen] / scale).tolist(), strict=True)
    return [(float(a), float(b)) for a, b in both]
