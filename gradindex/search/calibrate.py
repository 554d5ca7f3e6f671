"""Measuring a calibration: answers of held-out queries with every margin, against the exact kernel over all rows."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels, relevance
from gradindex.ann import operating_point
from gradindex.ann.selection import select
from gradindex.compute import exact
from gradindex.compute.blocks import default_batch_size
from gradindex.compute.queries import Queries, gradient_chunks
from gradindex.data.source import Batch, take_rows
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel, white
from gradindex.runtime.interrupts import kept_if_possible
from gradindex.runtime.progress import progress_bar
from gradindex.search import adaptive, calibration, cascade, question, stopping
from gradindex.search.calibration import FIFTHS, About, Calibration
from gradindex.search.checking import store_removed
from gradindex.search.coverage import ROUNDING
from gradindex.search.options import SearchOptions
from gradindex.search.question import Question
from gradindex.search.row_search import by_faiss

if TYPE_CHECKING:
    from gradindex.index.index import Index

_MARGINS = 64
_POINTS = 8  # operating points of FAISS at most
_TIMED, _BLOCK = 32, 32  # queries that searches are timed on, and candidates that exact checks are
_SAME = 1e-6  # cosine and norm of a query and a training sample of which one is the other
_FEW_ROWS, _MANY_ROWS = 0.05, 0.5  # shares of queries that are training samples: warned of, refused


def calibrate(
    index: "Index", asked: Queries, options: SearchOptions, *, labelled: bool, progress: bool | None = None
) -> Calibration:
    """Measure a calibration, and keep it beside the index, where that is possible; see `Index.calibrate`.

    Parameters
    ----------
    index
        An index opened with its job.
    asked
        Held-out queries.
    options
        `k`, `kernel` and `candidates` that the calibration is for.
    labelled
        Whether the queries have their own labels, not predicted ones.
    progress
        Show a progress bar; None: only on a terminal.
    """
    store = index.store
    kernel = kernel_of(index, options.kernel)
    selection = select(store, None)
    points = _points(index, kernel)
    wanted = [
        checked_question(question.ask(len(index), kernel, options, selection, operating_point.parse(point)))
        for point in points
    ]
    if len(asked) < 2:
        raise ValueError(f"A calibration takes 2 queries or more, and recall=0.99 takes 99; got {len(asked)}.")
    parts: list[list[list[_Measured]]] = []
    seconds = np.zeros((len(points) + 1, 0))
    shared = 0
    with progress_bar("Calibrating", len(asked) * len(index), show=progress) as advance:
        for some, gradients, norms in gradient_chunks(index.job.engine, asked):
            batch = Batch(np.arange(some.start, some.stop), take_rows(asked.x, some), take_rows(asked.y, some))
            sketches = index.sketches(gradients, norms)
            found = [_candidates(index, one, sketches, norms) for one in wanted]
            truth = _truth(index, batch, gradients, norms, wanted[-1], [rows for rows, _ in found], advance)
            parts.append(
                [
                    [
                        _measure(index, one, sketches, norms, estimates[side], rows[side], truth, side)
                        for side in (calibration.PROPONENTS, calibration.OPPONENTS)
                    ]
                    for one, (rows, estimates) in zip(wanted, found, strict=True)
                ]
            )
            shared += int(truth.shared.sum())
            if not seconds.size:
                seconds = _seconds(index, wanted, batch, gradients, sketches, norms, found[-1][0][0])
    _refuse_training_samples(shared, len(asked))
    removed = store_removed(store)
    result = _joined(
        parts,
        About(
            kernel=kernel.value,
            k=options.k,
            candidates=wanted[-1].depth,
            queries=len(asked),
            labelled=labelled,
            points=tuple(points),
            seconds=tuple(seconds[:-1].tolist()),
            seconds_per_check=float(seconds[-1]),
            file=index.searcher.file,
            rows=len(store) - removed,
            removed=removed,
        ),
    )
    with kept_if_possible(store.path, "the calibration"):
        calibration.save(store, result)
    return result


def kernel_of(index: "Index", name: str | None) -> Kernel:
    """Return the kernel that an index is asked for by a name; raises ValueError for one that has no exact values."""
    if white(name) is not None:
        raise ValueError(
            f"{name} is an estimate by whitened rows: nothing is checked, so there is no recall to promise."
        )
    return relevance.kernel_of(index.store.header.metric, name)


def checked_question(asked: Question) -> Question:
    """Return a question all of whose candidates may be evaluated exactly."""
    return replace(asked, depth=asked.candidates, rerank=True)


def _points(index: "Index", kernel: Kernel) -> list[str]:
    """Return FAISS's operating points that are measured, from the fastest; one, of no settings, where it has none."""
    if kernel is not Kernel.COS or not by_faiss(index.searcher, select(index.store, None)):
        return [""]
    curve = index.curve
    if curve is not None:
        keys = [point.key for point in curve.points if point.optimal]
    else:
        keys = operating_point.keys(index.searcher.index)
    places = np.unique(np.linspace(0, len(keys) - 1, min(len(keys), _POINTS)).astype(np.int64))
    return list(
        dict.fromkeys([*(keys[place] for place in places), operating_point.all_lists(index.searcher.index, keys[-1])])
    )


_Found = tuple[list[NDArray[np.int64]], list[NDArray[np.float64]]]
"""Rows (m, c) of each side's candidates, and their estimates."""


def _candidates(index: "Index", asked: Question, sketches: NDArray[np.float32], norms: NDArray[np.float64]) -> _Found:
    rows, estimates = [], []
    for side in (sketches, index.projector.opposite(sketches)):
        found, near, _ = cascade.candidates(index, side, norms, asked)
        rows.append(near)
        estimates.append(found)
        index.store.release()
    return rows, estimates


@dataclass(frozen=True)
class _Truth:
    """The true k-th values of both sides (2, m), negated for opponents, and values of pairs of queries and rows.

    `pairs` (p,) are query · n + row, ascending, and `values` (p,) theirs; `shared` (m,) whether a query is a training
    sample.
    """

    kth: NDArray[np.float64]
    pairs: NDArray[np.int64]
    values: NDArray[np.float64]
    shared: NDArray[np.bool_]
    count: int

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values (m, c) of rows of each query's, −inf for −1."""
        wanted = np.arange(len(rows))[:, None] * self.count + np.maximum(rows, 0)
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(rows < 0, -np.inf, self.values[place])


def _truth(
    index: "Index",
    queries: Batch,
    gradients: Floats,
    norms: NDArray[np.float64],
    asked: Question,
    candidates: Sequence[Sequence[NDArray[np.int64]]],
    advance: Callable[[int], None],
) -> _Truth:
    """Compare queries with all rows in one pass; keep the best of both sides, and the values of candidates."""
    store, engine, k, m = index.store, index.job.engine, asked.k, len(norms)
    count = len(store)
    every = np.hstack([rows for sides in candidates for rows in sides])
    pairs = np.unique((np.arange(m)[:, None] * count + every)[every >= 0])
    by_row = np.argsort(pairs % count, kind="stable")
    ordered = (pairs % count)[by_row]
    values = np.full(len(pairs), np.nan)
    best = np.full((2, m, k), -np.inf)
    shared = np.zeros(m, bool)
    for part, dots, train in exact.scan(engine, index.job.source, queries, gradients, default_batch_size(engine)):
        there = store.holds(part.ids)  # a compaction leaves removed samples out
        advance(m * len(part))
        if not there.any():
            continue
        here = store.rows_of(part.ids[there])
        found = kernels.values(asked.kernel, dots, norms, train)[:, there]
        shared |= _are_same(dots[:, there], norms, train[there])
        order = np.argsort(here)
        low, high = np.searchsorted(ordered, here.min()), np.searchsorted(ordered, here.max(), "right")
        chosen = by_row[low:high]
        place = np.minimum(np.searchsorted(here[order], pairs[chosen] % count), len(here) - 1)
        inside = here[order][place] == pairs[chosen] % count
        chosen, place = chosen[inside], order[place[inside]]
        values[chosen] = found[pairs[chosen] // count, place]
        if store.alive is not None:
            found = found[:, store.alive[here]]
        for side, sign in enumerate((1, -1)):
            best[side] = -np.partition(-np.hstack([best[side], sign * found]), k - 1, axis=1)[:, :k]
    return _Truth(best.min(axis=2), pairs, values, shared, count)


def _are_same(dots: NDArray[np.float64], norms: NDArray[np.float64], train: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which queries have the gradient of a training sample, (m,)."""
    product = np.outer(norms, train)
    near = (dots >= (1 - _SAME) * product) & (product > 0)
    near &= np.abs(norms[:, None] - train) <= _SAME * norms[:, None]
    return np.asarray(near.any(axis=1), np.bool_)


@dataclass(frozen=True)
class _Measured:
    """What `stopping.losses` takes of a side of some queries: all (m, c), but `kth` (m,)."""

    z: NDArray[np.float64]
    weights: NDArray[np.float64]
    bounds: NDArray[np.float64] | None
    values: NDArray[np.float64]
    true: NDArray[np.bool_]
    kth: NDArray[np.float64]


def _measure(
    index: "Index",
    asked: Question,
    sketches: NDArray[np.float32],
    norms: NDArray[np.float64],
    estimates: NDArray[np.float64],
    rows: NDArray[np.int64],
    truth: _Truth,
    side: int,
) -> _Measured:
    turned = sketches if side == calibration.PROPONENTS else index.projector.opposite(sketches)
    z, weights, bounds = adaptive.measures(index, asked, turned, norms, estimates, rows)
    values = truth.of(rows)
    if side == calibration.OPPONENTS:
        values = np.where(rows < 0, -np.inf, -values)
    kth = truth.kth[side]
    return _Measured(z, weights, bounds, values, values >= kth[:, None] - ROUNDING * weights, kth)


def _joined(parts: list[list[list[_Measured]]], about: About) -> Calibration:
    shape = len(about.points), 2
    margins = np.empty((*shape, _MARGINS))
    missed, checks = np.empty((2, *shape, about.queries, _MARGINS), np.int64)
    difficulty = np.empty((*shape, about.queries))
    errors = np.zeros((2, FIFTHS, 101))
    for point in range(len(about.points)):
        for side in range(2):
            several = [part[point][side] for part in parts]
            z, weights, values, true = (
                np.concatenate([getattr(one, field) for one in several]) for field in ("z", "weights", "values", "true")
            )
            kth = np.concatenate([one.kth for one in several])
            bounds = None if several[0].bounds is None else np.concatenate([one.bounds for one in several])
            grid = stopping.grid(z, weights, true, kth, _MARGINS)
            margins[point, side] = grid
            missed[point, side], checks[point, side] = stopping.losses(z, weights, values, true, grid, about.k, bounds)
            difficulty[point, side] = adaptive.difficulty(z, about.k)
            if point == len(about.points) - 1:
                errors[side] = _errors(z, weights, values, true, difficulty[point, side])
    return Calibration(about, margins, missed, checks, difficulty, errors)


def _errors(
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    values: NDArray[np.float64],
    true: NDArray[np.bool_],
    difficulty: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return percentiles of estimated minus exact cosines by fifths of the queries' difficulty, (5, 101)."""
    fifth = np.searchsorted(np.quantile(difficulty, np.arange(1, FIFTHS) / FIFTHS), difficulty, "right")
    cosines = np.divide(values, weights, out=np.zeros_like(values), where=true & (weights > 0))
    off = np.tanh(z) - cosines
    good = true & (weights > 0)
    out = np.zeros((FIFTHS, 101))
    for number in range(FIFTHS):
        some = off[(fifth == number)[:, None] & good]
        if len(some):
            out[number] = np.percentile(some, np.arange(101))
    return out


def _seconds(
    index: "Index",
    wanted: Sequence[Question],
    queries: Batch,
    gradients: Floats,
    sketches: NDArray[np.float32],
    norms: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return what a search takes at each operating point, and last an exact check, in a median query."""
    count = min(_TIMED, len(norms))
    times = np.empty((len(wanted) + 1, count))
    for line in range(count):
        here = slice(line, line + 1)
        for place, one in enumerate(wanted):
            began = time.perf_counter()
            cascade.candidates(index, sketches[here], norms[here], one)
            times[place, line] = 2 * (time.perf_counter() - began)
        began = time.perf_counter()
        some = rows[here, :_BLOCK]
        cascade.exact_values(index, queries.select(here), gradients[here], norms[here], some, wanted[0])
        times[-1, line] = (time.perf_counter() - began) / max(1, int((some >= 0).sum()))
    return np.median(times, axis=1)


def _refuse_training_samples(shared: int, queries: int) -> None:
    """Warn of queries that are training samples, or refuse them if they are many: others are not like them."""
    share = shared / queries
    said = (
        f"{shared} of {queries} queries have the gradient of a training sample, which finds itself: what is measured "
        "on them says nothing of queries that are not in the training set."
    )
    if share >= _MANY_ROWS:
        raise ValueError(f"{said} Give held-out samples.")
    if share >= _FEW_ROWS:
        warnings.warn(f"{said} Give held-out samples only.", UserWarning, stacklevel=4)
