"""Certified search: exact checks in the order of upper bounds, until no row that is left can enter the answer.

A kernel value is cos(q, t)·w(t), w from the two norms alone (`kernels.weights`). A Landmark row bounds the cosine
from above by ⟨p_q, p_t⟩ + ρ_q ρ_t and from below by ⟨p_q, p_t⟩ − ρ_q ρ_t; any other row by ±1. So with w each row has
an upper bound of its value (opponents: of minus its value), and once the k-th exact value exceeds the largest bound
left, evaluating the rest would change nothing.

What "proved" means in floating point: the answer is the one that evaluating every row would give, as long as each
evaluation errs by at most `evaluation_error`·w. Measured, evaluations err by 1e-6·w, but a gradient that is small
because numbers of order one cancelled (p − 1 of a saturated softmax) keeps the rounding of those, so the error grows
with the largest norm over its own. The query's gradient is that of one pass, for its row and for its values. What is
not modelled is a unit so near its kink that two passes take different sides.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.ann import ranges
from gradindex.ann.selection import Selection
from gradindex.compute import exact
from gradindex.compute.held_queries import Held, HeldGradients, hold
from gradindex.data.source import Batch, Ids
from gradindex.gradients import in_double
from gradindex.gradients.engine import Engine
from gradindex.kernels import Kernel
from gradindex.search import norm_scan
from gradindex.sketch.landmark import LandmarkProjector
from gradindex.store.shard import normalise

if TYPE_CHECKING:
    from gradindex.index.index import Index
    from gradindex.search.cascade import Question

EVALUATION = 1e-5
"""Error of an evaluated cosine that a proof allows for: ten times what was measured."""
_HALF, _TINY = 2.0**-11, 2.0**-25  # float16: half a unit in the last place, relative, and of subnormals
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53
_NO_BOUND = 3.0  # more than any evaluated cosine, also over a norm that was rounded to twice or half of itself
_FIRST = 16  # rows checked at first; each round checks up to twice as many as the last
_BYTES_PER_PAIR = 24  # of a query and a row
_MEMORY = 256 << 20
_USUAL = 1e-3  # error of an evaluation that a search for a range allows for; rows with more are always looked at
_ROWS = 16384  # compared with the queries at once


def row_error(width: int, coordinates: float) -> float:
    """Return how much the inner product of a query's row with a stored one may be off, both of unit norm.

    Stored rows are rounded to float16: relative errors of 2⁻¹¹ come to 2⁻¹¹ in the product (Cauchy–Schwarz), those of
    subnormal numbers to 2⁻²⁵ √width. Float32 products add width·2⁻²⁴. `coordinates` bounds the error of p on either
    side; it counts twice more as rows are scaled to unit norm after ρ was rounded up.
    """
    return 1.01 * _HALF + _TINY * math.sqrt(width) + width * _SINGLE + 4.1 * coordinates


def unit(engine: Engine) -> float:
    """Return the rounding of the model's numbers, relative: 2⁻²⁴ for single precision."""
    halves = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
    engine = getattr(engine, "_engine", engine)  # whose gradients others are made of
    own = float(np.finfo(engine.dtype).eps) / 2
    layers: Any = getattr(getattr(engine, "model", None), "_flatten_layers", list)()
    kinds = {parameter.dtype for parameter in engine.parameters} | {getattr(x, "compute_dtype", "") for x in layers}
    return max((halves.get(kind, own) for kind in kinds), default=own)


def evaluation_error(
    norms: NDArray[np.float32], rounding: float, directions: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Return how much an evaluated cosine with each row (n,) may err: 1e-5, more where gradients are small.

    `norms` (n,) are the rows' exact norms, `rounding` that of the model's numbers, see `unit`. `directions` (n,) are
    known errors of the gradients' directions, NaN where they are not known: there the loss was computed in double
    precision, and only numbers of that one cancelled. Norms that single precision holds with few digits give no bound.
    """
    wide = norms.astype(np.float64)
    share = np.divide(wide.max(initial=0), wide, out=np.zeros_like(wide), where=wide > 0)
    error: NDArray[np.float64] = max(EVALUATION, 8 * rounding) + rounding * share
    if directions is not None:
        better = EVALUATION + directions + _DOUBLE * share
        error = np.where(np.isnan(directions), error, np.maximum(better, 8 * rounding))
    error[(norms > 0) & (norms < np.finfo(np.float32).tiny)] = _NO_BOUND
    np.minimum(error, _NO_BOUND, out=error)
    return error


def errors(index: "Index") -> NDArray[np.float64]:
    """Return the `evaluation_error` of an index's rows (n,), by an index opened with its job."""
    engine = index.job.engine
    directions = index.store.columns.get(in_double.COLUMN) if in_double.is_double(engine) else None
    return evaluation_error(index.store.norms, unit(engine), directions)


def chunk(rows: int) -> int:
    """Return how many queries may be certified at once over so many rows."""
    return max(1, _MEMORY // (_BYTES_PER_PAIR * rows))


def cosine_bounds(index: "Index", sketches: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return upper bounds (2, m, n) of cos(q, t) and of −cos(q, t) over all rows; None if the store has none.

    `sketches` are the queries' rows (m, width), of unit norm.
    """
    projector = index.projector
    if not isinstance(projector, LandmarkProjector):
        return None
    out = np.empty((2, len(sketches), len(index)), np.float32)
    error = np.float32(row_error(projector.width, projector.whitening.error))
    dims, left = projector.options.dims, projector.lengths_left(sketches)
    for first, rows in index.store.blocks(_ROWS):
        here = slice(first, first + len(rows))
        inner = sketches[:, :dims] @ rows[:, :dims].T
        rest = np.outer(left, projector.lengths_left(rows)) + error
        np.minimum(rest + inner, 1, out=out[0, :, here])
        np.minimum(rest - inner, 1, out=out[1, :, here])
    return out


class _Side:
    """The search for the k highest values of one query, or the k lowest (`sign` −1, values negated)."""

    def __init__(self, sign: int, weights: NDArray[np.float64], k: int, limit: int, allowed: NDArray[np.bool_]) -> None:
        self.sign, self.k, self.limit = sign, k, limit
        self.checked, self.proved, self.bound_left = 0, False, np.nan
        zero = np.flatnonzero((weights == 0) & allowed)  # the value is 0, whatever the gradients
        self.rows, self.scores = zero[:k].astype(np.int64), np.zeros(min(k, len(zero)))
        self._possible, self._weights = (weights != 0) & allowed, weights
        self._left, self._bounds = np.empty(0, np.int64), np.empty(0)
        self._size = max(k, _FIRST)

    @property
    def least(self) -> float:
        """What a row has to reach to enter the answer."""
        return float(self.scores[-1]) if len(self.scores) == self.k else -math.inf

    def begin(self, seeds: Ids) -> Ids:
        """Return the rows among `seeds` to evaluate before the rest is looked at."""
        seeds = np.unique(seeds[seeds >= 0])
        seeds = seeds[self._possible[seeds]][: self.limit]
        self.checked += len(seeds)
        return seeds

    def consider(self, rows: Ids | slice, bounds: NDArray[Any], error: NDArray[np.float64]) -> None:
        """Learn upper bounds (r,) of the cosines of some rows, ascending, and their `error`; no other can enter."""
        places = np.arange(len(self._weights))[rows]
        left = self._possible[rows]
        self._left = places[left]
        self._bounds = (bounds[left] + error[rows][left]) * self._weights[self._left]

    def wanted(self) -> Ids:
        """Return the rows to evaluate next; none if the search is over."""
        if len(self.scores) == self.k:
            self._keep(self._bounds >= self.least)
        if len(self._left) == 0:
            self.proved = True
            return np.empty(0, np.int64)
        size = min(self._size, self.limit - self.checked)
        if size <= 0:
            self.bound_left = self.sign * float(self._bounds.max())
            return np.empty(0, np.int64)
        self._size *= 2
        if size < len(self._left):
            rows = self._left[np.argpartition(-self._bounds, size - 1)[:size]]
        else:
            rows = self._left
        self.checked += len(rows)
        return rows

    def take(self, rows: Ids, values: NDArray[np.float64]) -> None:
        """Learn the kernel values of some rows."""
        self._keep(~np.isin(self._left, rows))
        self._possible[rows] = False
        scores = np.concatenate([self.scores, self.sign * values])
        rows = np.concatenate([self.rows, rows])
        best, found = norm_scan.top(scores[None], rows[None], min(self.k, len(rows)))
        self.scores, self.rows = best[0], found[0]

    def _keep(self, which: NDArray[np.bool_]) -> None:
        self._left, self._bounds = self._left[which], self._bounds[which]


def answer(
    index: "Index",
    queries: Batch,
    asked: "Question",
    max_checks: int | None,
) -> dict[str, NDArray[Any]]:
    """Return proponents and opponents of some queries, with what was proved.

    Raises
    ------
    WayDiffers
        If what was compared with training steps is not theirs: then ask again.

    Parameters
    ----------
    index
        An index opened with its job.
    queries
        m labelled samples.
    asked
        The question. Where rows have no bounds of their own, its `depth` candidates are evaluated first.
    max_checks
        Rows evaluated for a query and side; None: as many as the proof needs, but `depth` where there can be none.
    """
    kernel, k, eps, selection = asked.kernel, asked.k, asked.eps, asked.selection
    from gradindex.search import cascade  # which asks this module what an ordinary answer proves

    held = hold(index.job.engine, queries)
    sketches, norms = _rows_of(index, held)
    by_range = kernel is Kernel.COS and not eps and _range_pays(index, len(norms))
    bounds = None if by_range else cosine_bounds(index, sketches)
    scanned = np.full((2, len(norms)), len(index))
    seeds = np.full((2, len(norms), 0), -1, np.int64)
    limit = len(index) if max_checks is None else max_checks
    pair = np.stack([sketches, index.projector.opposite(sketches)])
    if by_range:
        count = min(limit, max(k, _FIRST), len(index))
        seeds = np.stack([index._nearest(side, count, selection)[1] for side in pair])
    elif bounds is None:
        depth = min(asked.depth, limit)
        asked = dataclasses.replace(asked, depth=depth)
        found = [cascade.candidates(index, side, norms, asked) for side in pair]
        seeds, scanned = np.stack([f[1] for f in found]), np.stack([f[2] for f in found])
        if kernel is Kernel.COS and max_checks is None:
            limit = depth
    one = np.ones(len(index), np.float32)
    allowed = np.ones(len(index), bool) if selection is None else selection.mask
    error = errors(index)
    weights = [kernels.weights(kernel, float(norm), index.store.norms, eps) for norm in norms]
    searches = [[_Side(sign, each, k, limit, allowed) for sign in (1, -1)] for each in weights]
    evaluations = _Evaluations(index, held, norms, kernel, eps, searches)
    first = [[side.begin(seeds[i, line]) for i, side in enumerate(sides)] for line, sides in enumerate(searches)]
    evaluations.run([np.concatenate(rows) for rows in first])
    for line, sides in enumerate(searches):
        for i, side in enumerate(sides):
            if by_range:
                rows, upper = _in_range(index, pair[i, line], side.least, error)
                side.consider(rows, upper, error)
            else:
                side.consider(slice(None), one if bounds is None else bounds[i, line], error)
    del bounds
    while evaluations.run([np.concatenate([side.wanted() for side in sides]) for sides in searches]):
        pass
    return _collect(index, searches, scanned, k)


def _range_pays(index: "Index", queries: int) -> bool:
    """Whether to search ranges for so few queries, where FAISS can and its inner products are bounds.

    A scan reads and converts the stored rows once for all queries, FAISS its own, shorter ones twice for each.
    """
    projector, searcher = index.projector, index.searcher
    bounded = isinstance(projector, LandmarkProjector) and not projector.options.residual
    return bounded and ranges.serve(index.store, searcher) and queries * searcher.index.code_size <= 4 * searcher.dim


def _in_range(
    index: "Index", sketch: NDArray[np.float32], least: float, error: NDArray[np.float64]
) -> tuple[Ids, NDArray[np.float32]]:
    """Return the rows whose cosine may be evaluated as `least` or more, ascending, and upper bounds of it."""
    slack = row_error(len(sketch), index.projector.whitening.error)  # type: ignore[attr-defined]
    rows = ranges.within(index.store, index.searcher, sketch, max(least - slack - _USUAL, -2.0))
    rows = np.union1d(rows, np.flatnonzero(error > _USUAL))
    bounds = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), _ROWS):
        some = slice(begin, begin + _ROWS)
        bounds[some] = index.store.gather(rows[some]) @ sketch
    return rows, np.minimum(bounds + np.float32(slack), 1)


def _rows_of(index: "Index", held: Held) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return unit-norm rows (m, width) and norms (m,) of queries, of the gradients that they are held as.

    Factors are those of passes of one query: in a batch, a gradient that is nearly zero may come out otherwise. A bound
    holds for a right row only, so each one is compared with a training step's.

    Raises
    ------
    WayDiffers
        If a row is not that of a training step.
    """
    if isinstance(held, HeldGradients):
        norms = exact.norms(held.gradients)
        return index.sketches(held.gradients, norms), norms
    engine, rows, lengths = index.job.engine, [], []
    for line in range(len(held.queries)):
        one = held.queries.select(slice(line, line + 1))
        found = engine.of_queries.embed(one.x, one.y, index.projector)
        true = engine.ways.truth(one, of_query=True)
        turned = np.linalg.norm(found.sketches[0] - index.projector(engine.parameters, true.gradient[None])[0])
        engine.ways.check_row(held.way, max(float(turned), abs(float(found.norms[0]) - true.norm)), true)
        rows.append(normalise(index.projector.finish(found.sketches, found.norms)))
        lengths.append(found.norms)
    return np.concatenate(rows), np.concatenate(lengths)


class _Evaluations:
    """Exact values of rows that the searches of some queries want, all queries' rows in the same passes."""

    def __init__(
        self,
        index: "Index",
        held: Held,
        norms: NDArray[np.float64],
        kernel: Kernel,
        eps: float,
        searches: Sequence[Sequence[_Side]],
    ) -> None:
        self._index, self._held, self._norms, self._kernel, self._eps = index, held, norms, kernel, eps
        self._searches = searches

    def run(self, wanted: Sequence[Ids]) -> bool:
        """Evaluate each query's wanted rows, and tell its searches; False if nothing is wanted."""
        wanted = [np.unique(rows) for rows in wanted]
        every = np.unique(np.concatenate(wanted))
        if not len(every):
            return False
        index = self._index
        dots = index.evaluate(self._held, every)
        for line, (sides, rows) in enumerate(zip(self._searches, wanted, strict=True)):
            if len(rows):
                found, norm = dots[line : line + 1, np.searchsorted(every, rows)], self._norms[line : line + 1]
                values = kernels.values(self._kernel, found, norm, index.store.norms[rows], self._eps)[0]
                for side in sides:
                    side.take(rows, values)
        return True


def _collect(
    index: "Index", searches: Sequence[Sequence[_Side]], scanned: NDArray[np.int64], k: int
) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = {}
    for i, prefix in enumerate(("", "opponent_")):
        sides = [pair[i] for pair in searches]
        rows, scores = np.full((len(sides), k), -1, np.int64), np.full((len(sides), k), np.nan)
        for line, side in enumerate(sides):
            rows[line, : len(side.rows)], scores[line, : len(side.rows)] = side.rows, side.sign * side.scores
        out[f"{prefix}scores"] = scores + 0.0  # no −0
        out["opponent_indices" if prefix else "ordered_indices"] = np.where(rows < 0, -1, index.store.ids[rows])
        out[f"{prefix}exact"] = rows >= 0
        out[f"{prefix}proved"] = np.array([side.proved for side in sides])
        out[f"{prefix}checked"] = np.array([side.checked for side in sides], np.int64)
        out[f"{prefix}scanned"] = scanned[i].astype(np.int64)
        out[f"{prefix}bound_left"] = np.array([side.bound_left for side in sides], np.float64)
    return out


def proof(
    index: "Index",
    kernel: Kernel,
    eps: float,
    norms: NDArray[np.float64],
    checked: NDArray[np.int64],
    kth: NDArray[np.float64],
    selection: Selection | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which answers Cauchy–Schwarz alone proves (m,), and the largest bound of an unchecked row, else NaN.

    `checked` (m, c) are rows evaluated exactly (−1 for none), and `kth` (m,) the k-th exact values of the search (of
    minus the kernel for opponents; −inf where there are fewer).
    """
    bounds, order = _in_order(index, kernel, eps)
    order = order if selection is None else order[selection.mask[order]]
    left = np.full(len(norms), -np.inf)
    for line, norm in enumerate(norms):
        rows = checked[line][checked[line] >= 0]
        first = order[: len(rows) + 1]
        unchecked = first[~np.isin(first, rows)]
        if len(unchecked):
            left[line] = bounds[unchecked[0]] * (1 if kernel is Kernel.COS else norm)
    proved = (left == -np.inf) | (left < kth) | ((left == 0) & (kth == 0))
    return proved, np.where(proved, np.nan, left)


def _in_order(index: "Index", kernel: Kernel, eps: float) -> tuple[NDArray[np.float64], Ids]:
    """Return what an evaluation of each row (n,) may give at most, for a query of unit norm (grad_cos: of any).

    And the rows by that, descending. Both are kept, since an answer should not sort a million numbers.
    """
    eps = 0.0 if kernel is Kernel.COS else eps  # which can only lower a value
    key, orders = (f"bounds of {kernel}", eps), index.store.orders
    if key not in orders:
        norms = index.store.norms
        most = 1 + errors(index)
        bounds = (norms > 0) * most if kernel is Kernel.COS else kernels.weights(kernel, 1.0, norms, eps) * most
        orders[f"order by {kernel}", eps] = np.argsort(-bounds, kind="stable").astype(np.int64)
        orders[key] = bounds
    return orders[key], orders[f"order by {kernel}", eps]
