"""The best over a set of queries: the samples with the highest value for any of them, and those with the lowest.

Candidates are those of each query. The best of them are compared with ALL queries, so that a value is the true maximum
(of opponents: minimum) over the set, not only over the queries that found the sample.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.compute.queries import Queries, gradient_chunks
from gradindex.data.source import Batch, take_rows
from gradindex.search import cascade, norm_scan
from gradindex.search import certify as proofs
from gradindex.search.answer import Answer, Side, joined
from gradindex.search.bounds import proof
from gradindex.search.question import Question
from gradindex.search.sets import AT_ONCE

if TYPE_CHECKING:
    from gradindex.index.index import Index

Rows = Iterable[tuple[NDArray[np.float32], NDArray[np.float64]]]
"""Unit-norm rows (c, width) of some queries, and norms (c,)."""
_NONE = np.empty(0, np.int64)


def answer(
    index: "Index", asked: Queries, wanted: Question, more: NDArray[np.int64] | None = None
) -> tuple[Answer, set[str]]:
    """Return the answer for the best over all queries, a single row, and how exact values were computed.

    Parameters
    ----------
    index
        An index opened with its job.
    asked
        The queries.
    wanted
        The question; of each side, its `depth` best candidates are evaluated exactly.
    more
        Rows (c,) that are evaluated, too.
    """
    engine = index.job.engine

    def rows() -> Rows:
        for _, gradients, norms in gradient_chunks(engine, asked, AT_ONCE):
            yield index.sketches(gradients, norms), norms

    found = candidates(index, rows, index.projector.opposite, wanted)
    every = np.unique(np.concatenate([*found.sides, _NONE if more is None else more]))
    high, low, methods, largest = _evaluated(index, asked, every, wanted)
    kept = [norm_scan.top(values[None], every[None], min(wanted.k, len(every))) for values in (high, -low)]
    proofs_of = []
    for scores, _ in kept:
        kth = scores[:, -1] if scores.shape[1] == wanted.k else np.full(1, -np.inf)
        proofs_of.append(
            proof(index, wanted.kernel, wanted.eps, np.array([largest]), every[None], kth, wanted.selection)
        )
    sides = [
        _side(index, scores, near, sign, wanted.k, proved, left, len(every), found.scanned[i : i + 1])
        for i, ((scores, near), sign, (proved, left)) in enumerate(zip(kept, (1, -1), proofs_of, strict=True))
    ]
    return Answer(*sides), methods


def certified(index: "Index", asked: Queries, wanted: Question) -> tuple[Answer, set[str]]:
    """Return the proved answer for the best over all queries: of the answers that are proved for each of them.

    A sample among the k best over the set is among the k best of the query that it is best for. So it is enough to
    compare what was found for any query with all of them; where the answer to one is not proved, neither is this.
    """
    each: list[Answer] = []
    methods: set[str] = set()
    for batch in _batches(asked, min(AT_ONCE, proofs.chunk(len(index)))):
        found, method = proofs.checked_answer(index, batch, wanted)
        each.append(found)
        methods.add(method)
    of_each = joined(each)
    ids = np.unique(np.concatenate([side.ids.ravel() for side in of_each.sides]))
    every = index.store.rows_of(ids[ids >= 0])
    high, low, more, _ = _evaluated(index, asked, every, wanted)
    sides = []
    for side, sign, values in zip(of_each.sides, (1, -1), (high, -low), strict=True):
        scores, near = norm_scan.top(values[None], every[None], min(wanted.k, len(every)))
        proved = bool(side.proved.all())
        last = np.nanmax(np.where(side.ids[:, -1] < 0, -np.inf, sign * side.scores[:, -1]), initial=-np.inf)
        left = np.nan if proved else max(float(last), float(np.nanmax(sign * side.bound_left)))
        checked, scanned = int(side.checked.sum()), side.scanned.max(keepdims=True)
        args = np.array([proved]), np.array([left]), checked, scanned
        sides.append(_side(index, scores, near, sign, wanted.k, *args))
    return Answer(*sides), methods | more


class Candidates:
    """Rows of each side (proponents, opponents) of the best estimates over a set, and how many rows were looked at."""

    def __init__(self) -> None:
        self.scores, self.sides = [np.empty(0), np.empty(0)], [_NONE, _NONE]
        self.scanned = np.zeros(2, np.int64)

    def add(self, side: int, scores: NDArray[np.float64], rows: NDArray[np.int64], depth: int) -> None:
        """Learn the candidates (c, depth) of some queries, of which the best `depth` are kept."""
        every = np.concatenate([self.sides[side], rows[rows >= 0]])
        values = np.concatenate([self.scores[side], scores[rows >= 0]])
        order = np.argsort(-values, kind="stable")
        _, first = np.unique(every[order], return_index=True)
        best = order[np.sort(first)[:depth]]
        self.sides[side], self.scores[side] = every[best], values[best]

    def saw(self, side: int, scanned: NDArray[np.int64]) -> None:
        """Learn how many rows were looked at for some queries (c,), −1 where that is not known."""
        unknown = (scanned < 0).any() or self.scanned[side] < 0
        self.scanned[side] = -1 if unknown else max(int(self.scanned[side]), int(scanned.max()))


def candidates(
    searched: cascade.Searched,
    rows: Callable[[], Rows],
    opposite: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    wanted: Question,
) -> Candidates:
    """Return the rows of the best estimated values over a set of queries, whose rows come in parts."""
    found = Candidates()
    for sketches, norms in rows():
        pair = np.concatenate([sketches, opposite(sketches)])
        estimates, near, scanned = cascade.candidates(searched, pair, np.tile(norms, 2), wanted)
        for side, half in enumerate((slice(0, len(norms)), slice(len(norms), None))):
            found.add(side, estimates[half], near[half], wanted.depth)
            found.saw(side, scanned[half])
    return found


def estimated(
    searched: cascade.Searched,
    rows: Callable[[], Rows],
    opposite: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    wanted: Question,
) -> Answer:
    """Return the answer for the best over all queries by stored rows alone."""
    found = candidates(searched, rows, opposite, wanted)
    store, sides = searched.store, []
    for i, sign in enumerate((1, -1)):
        near = found.sides[i]
        best = np.full(len(near), -np.inf)
        for sketches, norms in rows():
            turned = sketches if sign > 0 else opposite(sketches)
            dots = cascade.rescored(store, turned, np.tile(near, (len(norms), 1)))
            weights = [kernels.weights(wanted.kernel, float(one), store.norms[near], wanted.eps) for one in norms]
            best = np.maximum(best, (dots * np.stack(weights)).max(axis=0))
        scores, kept = norm_scan.top(best[None], near[None], min(wanted.k, len(near)))
        nothing = np.zeros(1, bool), np.full(1, np.nan), 0, found.scanned[i : i + 1]
        sides.append(_side(searched, scores, kept, sign, wanted.k, *nothing))
    return Answer(*sides)


def _evaluated(
    index: "Index", asked: Queries, rows: NDArray[np.int64], wanted: Question
) -> tuple[NDArray[np.float64], NDArray[np.float64], set[str], float]:
    """Return the highest and the lowest exact value (r,) of rows over all queries.

    And how they were computed, and the largest norm of a query.
    """
    high, low = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    methods: set[str] = set()
    largest = 0.0
    for some, gradients, norms in gradient_chunks(index.job.engine, asked, AT_ONCE):
        every = np.tile(rows, (len(norms), 1))
        values, method = cascade.exact_values(index, _batch(asked, some), gradients, norms, every, wanted)
        high, low = np.maximum(high, values.max(axis=0)), np.minimum(low, values.min(axis=0))
        methods.add(method)
        largest = max(largest, float(norms.max()))
    return high, low, methods, largest


def _side(
    searched: cascade.Searched,
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    sign: int,
    k: int,
    proved: NDArray[np.bool_],
    left: NDArray[np.float64],
    checked: int,
    scanned: NDArray[np.int64],
) -> Side:
    """Return one side (1, k) of at most k rows (1, r) by scores, which of opponents are negated."""
    ids, values = np.full((1, k), -1, np.int64), np.full((1, k), np.nan)
    ids[:, : rows.shape[1]] = cascade.ids_of(searched.store, rows)
    values[:, : rows.shape[1]] = sign * scores
    return Side(
        ids=ids,
        scores=values + 0.0,  # no −0
        exact=(ids >= 0) & (checked > 0),
        proved=proved,
        checked=np.array([checked], np.int64),
        scanned=scanned.astype(np.int64),
        bound_left=sign * left,
        expected_recall=np.full(1, np.nan),
    )


def _batches(asked: Queries, most: int) -> Iterator[Batch]:
    for begin in range(0, len(asked), most):
        yield _batch(asked, slice(begin, min(begin + most, len(asked))))


def _batch(asked: Queries, some: slice) -> Batch:
    return Batch(np.arange(some.start, some.stop), take_rows(asked.x, some), take_rows(asked.y, some))
