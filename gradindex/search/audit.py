"""Audits: measured agreement of the index with the exact kernel, stage by stage."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels, relevance
from gradindex.ann.selection import select
from gradindex.compute import exact
from gradindex.compute.blocks import default_batch_size
from gradindex.compute.queries import Queries, gradient_chunks
from gradindex.data.names import Tree
from gradindex.data.source import Batch, Ids, take_rows
from gradindex.defaults import QUERIES, SEED
from gradindex.gradients import paths
from gradindex.kernels import Kernel, white
from gradindex.runtime.log import log
from gradindex.search import agreement, norm_scan, white_audit
from gradindex.search.agreement import Estimate
from gradindex.search.audit_result import DEPTHS, FINAL, INDEX, SKETCH, Audit, kept
from gradindex.search.coverage import coverage_of
from gradindex.search.options import SearchOptions
from gradindex.search.spot_check import STEPS, spot_check

if TYPE_CHECKING:
    from gradindex.index.index import Index

_CORRELATED_ROWS = 10_000  # rank correlation over at most this many rows, drawn by the seed
_STEPS_AT_ONCE = 16
_DRAWN = 2000  # pairs of cosines kept for drawing


def verify(
    index: "Index",
    options: SearchOptions,
    *,
    queries: int = QUERIES,
    seed: int = SEED,
    x: Tree = None,
    y: Tree = None,
    max_seconds: float | None = None,
) -> Audit:
    """Compare the index's answers with the exact kernel over the whole training set.

    Queries are training samples drawn by `seed`, with their own labels; each one is left out of its own answer
    (a sample's cosine with itself is 1, which would flatter). Or give held-out samples. Costs one pass over the
    training set. The audit is saved beside the index, where that is possible; else it is logged that it was not.

    Parameters
    ----------
    index
        An index opened with its job.
    options
        What `Index.explain` is asked with, k of which is that of recall@k; with a `recall`, it is measured whether a
        calibration holds.
    queries
        How many training samples; all rows if there are fewer.
    seed
        Draws the queries.
    x, y
        Held-out samples, as `Index.explain` takes them, instead of training samples.
    max_seconds
        Stop the pass over the training set so many seconds after the call; its rows then come in an order drawn by
        `seed`, and at least one batch is compared. None: never.

    Raises
    ------
    ValueError
        If k is not between 1 and rows − 1, `queries` is less than 1, `max_seconds` is not positive, or a recall is
        asked for without held-out samples.
    """
    began = time.perf_counter()
    k, rerank = options.k, options.rerank
    whitened = white(options.kernel)
    parsed = relevance.kernel_of(index.store.header.metric, None if whitened else options.kernel)
    if queries < 1:
        raise ValueError(f"queries must be 1 or more, got {queries}.")
    if max_seconds is not None and max_seconds <= 0:
        raise ValueError(f"max_seconds must be positive, got {max_seconds}.")
    if options.recall is not None and x is None:
        raise ValueError(
            "Whether recall= holds is measured on held-out queries, as its calibration was: give some, x and y."
        )
    alive = np.ones(len(index), bool) if index.store.alive is None else index.store.alive
    rows = np.flatnonzero(alive)
    if not 1 <= k < len(rows):
        raise ValueError(f"k must be between 1 and {len(rows) - 1} (a query is left out of its own answer), got {k}.")
    rng = np.random.default_rng(seed)
    if x is None:
        own = np.sort(rng.choice(rows, min(queries, len(rows)), replace=False)).astype(np.int64)
        batch = index.job.source.take(index.store.ids[own])
        asked, how, drawn = Queries(batch.x, batch.y), {"ids": index.store.ids[own]}, "training samples"
    else:
        asked = index.labelled(x, y)
        own, how, drawn = np.full(len(asked), -1, np.int64), {"x": asked.x, "y": asked.y}, "given samples"
    end = None if max_seconds is None else began + max_seconds
    if whitened is not None:
        return kept(index.store, white_audit.verify(index, whitened, asked, own, drawn, k, seed, end))
    most = min(max(DEPTHS), len(rows) - 1)
    plain = dataclasses.replace(options, recall=None)
    lists = {
        depth: _answer(index, own, how, options if depth == k else dataclasses.replace(plain, k=depth))
        for depth in {k, most}
    }  # what a user gets who asks for so many
    estimates = _answer(index, own, how, dataclasses.replace(plain, k=max(k, most), rerank=0))
    by_steps = len(rows) <= STEPS
    truth = _compare(index, asked, own, max(k, most), parsed, rng, end, by_steps)
    checked = spot_check(index, asked, [(truth.rows, truth.values), lists[k], lists[most]], parsed, max_seconds)
    if not by_steps and not paths.agree(checked.errors[0], index.job.engine):
        log.warning("exact values are off by up to %.2g from training steps, which are taken", checked.error)
        truth = _compare(index, asked, own, max(k, most), parsed, rng, end, True)
    best = [_with_answers(truth, answer) for answer in (lists[k], lists[most])]
    stages = _stages(best, truth, estimates, lists, k, most)
    recall = agreement.share(agreement.recalls(best[0], lists[k][0], k))
    search = agreement.share(agreement.recalls(best[0], estimates[0], k))
    correlation = stages[SKETCH]["rank correlation"]
    audit = Audit(
        kernel=relevance.title(index.store.header.metric, parsed),
        k=k,
        queries=len(own),
        rerank=max(rerank, k + 1) if rerank else 0,
        rows=len(rows),
        seed=seed,
        recall=recall[0],
        recall_interval=recall[1:],
        search_recall=search[0],
        search_recall_interval=search[1:],
        rank_correlation=correlation[0],
        rank_correlation_interval=correlation[1:],
        seconds=time.perf_counter() - began,
        compared=truth.compared,
        drawn=drawn,
        stages=stages,
        pairs=truth.pairs,
        steps=checked.count,
        steps_error=checked.error,
        coverage=coverage_of(options, lists[k][1], truth.values, truth.norms, parsed, asked.y),
    )
    return kept(index.store, audit)


@dataclass(frozen=True)
class _Truth:
    """The exact and the sketched order of all rows that were compared.

    `rows`, `values` (m, c) the exact best, descending, and `sketched` (m, c) rows by a scan of the store; `norms` of
    the queries' gradients and `correlations` (m,).
    """

    rows: Ids
    values: NDArray[np.float64]
    sketched: Ids
    norms: NDArray[np.float64]
    correlations: NDArray[np.float64]
    compared: int
    pairs: list[tuple[float, float]]


def _answer(index: "Index", own: Ids, how: dict[str, Any], options: SearchOptions) -> tuple[Ids, NDArray[np.float64]]:
    """Return the rows (m, k) of an answer and their scores, with the query itself left out."""
    more = 1 if own[0] >= 0 else 0
    found = index.explain(**how, options=dataclasses.replace(options, k=options.k + more))
    index.store.release()  # scattered rows map many times their own size, which counts as the process's memory
    ids = found.ordered_indices
    rows = np.full(ids.shape, -1, np.int64)
    rows[ids >= 0] = index.store.rows_of(ids[ids >= 0])
    if not more:
        return rows, found.scores
    kept = agreement.leave_out(rows, own)
    place = np.argmax(kept[:, :, None] == rows[:, None, :], axis=2)
    return kept, np.take_along_axis(found.scores, place, 1)


def _with_answers(truth: _Truth, answer: tuple[Ids, NDArray[np.float64]]) -> Ids:
    """Return the exact best rows once the answer's exact values are known, too."""
    rows, scores = answer
    known = (rows[:, :, None] == truth.rows[:, None, :]).any(axis=2) | (rows < 0) | np.isnan(scores)
    values = np.hstack([truth.values, np.where(known, -np.inf, scores)])
    return norm_scan.top(values, np.hstack([truth.rows, np.where(known, -1, rows)]), truth.rows.shape[1])[1]


def _stages(
    best: list[Ids],
    truth: _Truth,
    estimates: tuple[Ids, NDArray[np.float64]],
    lists: dict[int, tuple[Ids, NDArray[np.float64]]],
    k: int,
    most: int,
) -> dict[str, dict[str, Estimate]]:
    pairs = {INDEX: (truth.sketched, estimates[0]), SKETCH: (best[1], truth.sketched)}
    out: dict[str, dict[str, Estimate]] = {}
    depths = sorted({min(depth, most) for depth in DEPTHS})
    for name, (want, got) in pairs.items():
        out[name] = {f"recall@{d}": agreement.share(agreement.recalls(want, got, d)) for d in depths}
    out[INDEX]["rank correlation"] = agreement.mean(agreement.ranks(truth.sketched[:, :most], estimates[0][:, :most]))
    out[SKETCH]["rank correlation"] = agreement.mean(truth.correlations)
    final = {d: lists[k] if d <= k else lists[most] for d in depths}
    true = {d: best[0] if d <= k else best[1] for d in depths}
    out[FINAL] = {f"recall@{d}": agreement.share(agreement.recalls(true[d], final[d][0], d)) for d in depths}
    out[FINAL]["rank correlation"] = agreement.mean(agreement.ranks(best[1][:, :most], lists[most][0]))
    return out


def _compare(
    index: "Index",
    asked: Queries,
    own: Ids,
    depth: int,
    kernel: Kernel,
    rng: np.random.Generator,
    end: float | None,
    by_steps: bool,
) -> _Truth:
    """Compare queries with all rows, exactly and by their sketches, in one pass as long as time allows.

    The queries' gradients are those of training steps; `by_steps`, those of all rows, too.
    """
    store, engine = index.store, index.job.engine
    sample = np.sort(rng.choice(len(store), min(len(store), _CORRELATED_ROWS), replace=False)).astype(np.int64)
    order = rng.permutation(len(store)) if end is not None else None
    parts = []
    for some, gradients, norms in gradient_chunks(engine, asked, by_steps=True):
        batch = Batch(np.arange(some.start, some.stop), take_rows(asked.x, some), take_rows(asked.y, some))
        sketches = index.sketches(gradients, norms)
        _, sketched, _ = norm_scan.scan(store, sketches, norms, kernel, depth + 1, selection=select(store, None))
        best, rows = np.full((len(norms), depth), -np.inf), np.full((len(norms), depth), -1, np.int64)
        values, compared = np.full((len(norms), len(sample)), np.nan), 0
        size = _STEPS_AT_ONCE if by_steps else default_batch_size(engine)
        blocks = None if order is None else _until(end, store.ids[order], size)
        for part, dots, train in exact.scan(engine, index.job.source, batch, gradients, size, blocks, by_steps):
            there = store.holds(part.ids)  # a compaction leaves removed samples out
            here = store.rows_of(part.ids[there])
            found = kernels.values(kernel, dots, norms, train)[:, there]
            place = np.searchsorted(sample, here).clip(max=len(sample) - 1)
            inside = sample[place] == here
            values[:, place[inside]] = found[:, inside]
            found[own[some][:, None] == here] = -np.inf
            if store.alive is not None:
                found[:, ~store.alive[here]] = -np.inf
                compared -= int((~store.alive[here]).sum())
            every = np.hstack([rows, np.broadcast_to(here, found.shape)])
            best, rows = norm_scan.top(np.hstack([best, found]), every, depth)
            compared += len(here)
        estimate = (sketches @ store.gather(sample).T) * np.stack(
            [kernels.weights(kernel, float(norm), store.norms[sample]) for norm in norms]
        )
        parts.append((np.where(best == -np.inf, -1, rows), best, sketched, norms, estimate, values, compared))
    return _joined(parts, own, rng)


def _joined(parts: list[Any], own: Ids, rng: np.random.Generator) -> _Truth:
    rows, best, sketched, norms = (np.concatenate([part[i] for part in parts]) for i in range(4))
    sketched = agreement.leave_out(sketched, own)
    correlations, pairs = [], []
    for *_, estimate, values, _ in parts:
        for a, b in zip(estimate, values, strict=True):
            there = ~np.isnan(b)
            correlations.append(agreement.spearman(a[there], b[there]) if there.sum() > 1 else 0.0)
            some = rng.choice(np.flatnonzero(there), min(int(there.sum()), 1 + _DRAWN // len(own)), replace=False)
            pairs += [(float(a[i]), float(b[i])) for i in some]
    compared = min(part[-1] for part in parts)
    return _Truth(rows, best, sketched, norms, np.array(correlations), compared, pairs[:_DRAWN])


def _until(end: float | None, ids: Ids, size: int) -> Iterator[Ids]:
    """Yield ids, `size` at a time, until it is time to stop; the first in any case."""
    for begin in range(0, len(ids), size):
        if begin and end is not None and time.perf_counter() > end:
            return
        yield ids[begin : begin + size]
