"""Certified search: exact checks in the order of upper bounds, until no row that is left can enter the answer.

Each row has an upper bound of its kernel value (opponents: of minus its value), see `gradindex.search.bounds`. Once the
k-th exact value exceeds the largest bound left, evaluating the rest would change nothing: here ``certify=True`` stops.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.ann import ranges
from gradindex.compute import exact
from gradindex.compute.held_queries import Held, HeldGradients, hold
from gradindex.data.source import Batch, Ids
from gradindex.defaults import BLOCK_ROWS
from gradindex.gradients import paths
from gradindex.gradients.parameter import Floats
from gradindex.gradients.signals import FACTORS
from gradindex.gradients.ways import STEPS, WayDiffers
from gradindex.kernels import Kernel
from gradindex.runtime.log import log
from gradindex.search import cascade, norm_scan
from gradindex.search.answer import Answer, Side
from gradindex.search.bounds import cosine_bounds, errors, row_error
from gradindex.search.question import Question
from gradindex.sketch.unit_rows import normalise

if TYPE_CHECKING:
    from gradindex.index.index import Index

_FIRST = 16  # rows checked at first; each round checks up to twice as many as the last
_BYTES_PER_PAIR = 24  # of a query and a row
_MEMORY = 256 << 20
_USUAL = 1e-3  # error of an evaluation that a search for a range allows for; rows with more are always looked at


def chunk(rows: int) -> int:
    """Return how many queries may be certified at once over so many rows."""
    return max(1, _MEMORY // (_BYTES_PER_PAIR * rows))


class _Search:
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

    def consider(self, rows: Ids | slice, bounds: NDArray[np.generic], error: NDArray[np.float64]) -> None:
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
    queries: Batch | Floats,
    asked: Question,
) -> Answer:
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
        m labelled samples, or gradients (m, P) by training steps, or sums of such.
    asked
        The question. Where rows have no bounds of their own, its `depth` candidates are evaluated first, and no more
        where there can be no proof, unless there are `max_checks`.
    """
    kernel, k, eps, selection, max_checks = asked.kernel, asked.k, asked.eps, asked.selection, asked.max_checks
    engine = index.job.engine
    held = hold(engine, queries) if isinstance(queries, Batch) else HeldGradients(engine, queries)
    sketches, norms = _rows_of(index, held)
    by_range = _by_range(index, asked, len(norms))
    bounds = None if by_range else cosine_bounds(index, sketches)
    scanned = np.full((2, len(norms)), len(index))
    seeds = np.full((2, len(norms), 0), -1, np.int64)
    limit = len(index) if max_checks is None else max_checks
    pair = np.stack([sketches, index.projector.opposite(sketches)])
    if by_range:
        count = min(limit, max(k, _FIRST), len(index))
        seeds = np.stack([index.rows.nearest(side, count, selection)[1] for side in pair])
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
    searches = [[_Search(sign, each, k, limit, allowed) for sign in (1, -1)] for each in weights]
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


def checked_answer(index: "Index", batch: Batch, asked: Question) -> tuple[Answer, str]:
    """Return a certified answer and how values were computed; anew where these are not those of training steps."""
    try:
        found = answer(index, batch, asked)
    except WayDiffers as error:
        log.warning("%s, so training steps are taken", error)
        found = answer(index, batch, asked)
    return found, FACTORS if index.job.engine.ways.usable(FACTORS) else STEPS


def searched(index: "Index", asked: Question, queries: int) -> str:
    """Return what looks for the rows that may enter the answers to so many queries; see `cascade.searched`."""
    return cascade.FAISS if _by_range(index, asked, queries) else cascade.STORE


def _by_range(index: "Index", asked: Question, queries: int) -> bool:
    """Whether to search ranges for so few queries, where FAISS can and its inner products are bounds.

    A scan reads and converts the stored rows once for all queries, FAISS its own, shorter ones twice for each.
    """
    if asked.kernel is not Kernel.COS or asked.eps:
        return False
    projector, searcher = index.projector, index.searcher
    bounded = projector.bounds_cosine and projector.inner_product_bounds
    return bounded and ranges.serve(index.store, searcher) and queries * searcher.index.code_size <= 4 * searcher.dim


def _in_range(
    index: "Index", sketch: NDArray[np.float32], least: float, error: NDArray[np.float64]
) -> tuple[Ids, NDArray[np.float32]]:
    """Return the rows whose cosine may be evaluated as `least` or more, ascending, and upper bounds of it."""
    slack = row_error(len(sketch), index.projector.coordinate_error)
    rows = ranges.within(index.store, index.searcher, sketch, max(least - slack - _USUAL, -2.0))
    rows = np.union1d(rows, np.flatnonzero(error > _USUAL))
    bounds = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), BLOCK_ROWS):
        some = slice(begin, begin + BLOCK_ROWS)
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
        turned = paths.norms(found.sketches - index.projector(engine.parameters, true.gradient[None]))[0]
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
        searches: Sequence[Sequence[_Search]],
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


def _collect(index: "Index", searches: Sequence[Sequence[_Search]], scanned: NDArray[np.int64], k: int) -> Answer:
    sides = []
    for i in range(2):
        ones = [pair[i] for pair in searches]
        rows, scores = np.full((len(ones), k), -1, np.int64), np.full((len(ones), k), np.nan)
        for line, one in enumerate(ones):
            rows[line, : len(one.rows)], scores[line, : len(one.rows)] = one.rows, one.sign * one.scores
        side = Side(
            ids=cascade.ids_of(index.store, rows),
            scores=scores + 0.0,  # no −0
            exact=rows >= 0,
            proved=np.array([one.proved for one in ones]),
            checked=np.array([one.checked for one in ones], np.int64),
            scanned=scanned[i].astype(np.int64),
            bound_left=np.array([one.bound_left for one in ones], np.float64),
            expected_recall=np.full(len(ones), np.nan),
        )
        sides.append(side)
    return Answer(*sides)
