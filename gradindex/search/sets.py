"""Sets of queries that are asked as one, and what a contrast set takes from them.

The kernels are linear in the query's gradient q once that is scaled as the kernel scales it: K(q, t) = ⟨s(q), t⟩ w(t),
with s(q) = q / ‖q‖ for the cosines (0 where q is 0) and s(q) = q for the other kernels. So the mean of the kernel's
values over a set X of queries, less that over a contrast set Y, is the value of ONE vector u = mean s(x) − mean s(y):
it is searched, checked exactly and proved as a query's gradient is. For the cosine the values are then ‖u‖ cos(u, t).
The best over a set, max K(x, t), is no such value: there every query looks for candidates of its own, and all are
compared with all queries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.compute import exact
from gradindex.compute.queries import Queries, gradient_chunks
from gradindex.data.source import length, take_rows
from gradindex.gradients.ways import STEPS
from gradindex.kernels import Kernel
from gradindex.search import cascade
from gradindex.search import certify as proofs
from gradindex.search.answer import Answer
from gradindex.search.question import Question
from gradindex.words import Reduce, choose_word

if TYPE_CHECKING:
    from gradindex.index.index import Index

AT_ONCE = 256
"""Queries handled at once, so that candidates' rows take little memory."""
_NUMBERS = 1 << 16  # of a vector, summed in double precision at once

Vectors = Iterator[tuple[slice, NDArray[Any], NDArray[np.float64]]]
"""Places of some queries, their vectors (c, d) and their norms (c,)."""


@dataclass(frozen=True)
class QuerySet:
    """Labelled queries, what their values are reduced to, and queries `against` which they stand."""

    asked: Queries
    reduce: Reduce = Reduce.EACH
    against: Queries | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every query is asked by itself, with nothing against it."""
        return self.reduce is Reduce.EACH and self.against is None

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return len(self.asked) if self.reduce is Reduce.EACH else 1

    @property
    def drawn(self) -> Queries:
        """The queries that stand for the rows of the result where these are drawn: of a set, its first."""
        if self.reduce is Reduce.EACH:
            return self.asked
        first = slice(0, 1)
        return Queries(take_rows(self.asked.x, first), take_rows(self.asked.y, first))

    def to_json(self) -> dict[str, str | int]:
        """Return what there is to say of a set, JSON-ready; nothing where there is none."""
        if self.is_plain:
            return {}
        return {"reduce": self.reduce.value, "queries": len(self.asked), "against": length_of(self.against)}

    def refuse_eps(self, kernel: Kernel, eps: float) -> None:
        """Raise ValueError if values cannot be added up: ⟨q, t⟩ / (‖q‖‖t‖ + eps) is linear in no vector of its own."""
        if eps and kernel is Kernel.COS and not self.is_plain and self.reduce is not Reduce.MAX:
            raise ValueError(
                f"eps = {eps} changes the cosine of each query in another way, so that their {self.reduce} is the "
                "value of no single vector: leave eps out, or give reduce='each' or 'max' without against."
            )

    def vectors(self, of: Callable[[Queries], Vectors], unit: bool) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the vectors u of rows of the result, (c, d), with the rows' places.

        Parameters
        ----------
        of
            Returns vectors of queries, which the kernel is linear in, and their norms.
        unit
            Whether the kernel is a cosine, so that every vector is scaled to unit norm first.
        """
        sums = self.reduce is Reduce.SUM
        away = None if self.against is None else _total(of(self.against), unit, 1 if sums else len(self.against))
        if self.reduce is not Reduce.EACH:
            total = _total(of(self.asked), unit, 1 if sums else len(self.asked))
            yield slice(0, 1), (total if away is None else total - away)[None]
            return
        for some, vectors, norms in of(self.asked):
            yield some, _scales(norms, unit)[:, None] * vectors - (0.0 if away is None else away)


def make(asked: Queries, reduce: str, against: Queries | None) -> QuerySet:
    """Return queries with what their values are reduced to.

    Raises
    ------
    ValueError
        For an unknown word, or a contrast set with ``'max'``.
    """
    word = choose_word(Reduce, reduce, "reduce")
    if word is Reduce.MAX and against is not None:
        raise ValueError(
            "reduce='max' takes the best of the queries, of which a contrast set's mean cannot be taken: give "
            "reduce='mean', 'sum' or 'each' with against."
        )
    return QuerySet(asked, word, against)


def length_of(queries: Queries | None) -> int:
    """Return how many queries there are; 0 for None."""
    return 0 if queries is None else length(queries.x)


def combined(
    index: "Index", asked: QuerySet, wanted: Question, certify: bool, more: NDArray[np.int64] | None = None
) -> Iterator[tuple[Answer, str]]:
    """Yield the answers for vectors that are sums of queries' gradients, and how exact values were computed.

    Parameters
    ----------
    index
        An index opened with its job.
    asked
        The queries, whose values are not reduced to the best.
    wanted
        The question.
    certify
        Whether to prove the answers. Gradients of queries are then those of training steps.
    more
        Rows (s, c) for every row of the result that are evaluated, too.
    """
    engine, unit = index.job.engine, wanted.kernel is Kernel.COS
    most = min(AT_ONCE, proofs.chunk(len(index))) if certify else AT_ONCE
    for some, vectors in asked.vectors(lambda one: gradient_chunks(engine, one, most, by_steps=certify), unit):
        single = vectors.astype(engine.dtype)
        norms = exact.norms(single)
        if certify:
            found, method = proofs.answer(index, single, wanted), STEPS
        else:
            sketches, evaluated = index.sketches(single, norms), single if wanted.rerank else None
            extra = None if more is None else more[some]
            found, method = cascade.answer(index, None, evaluated, sketches, norms, wanted, extra)
        yield (scaled(found, norms) if unit else found), method


def scaled(answer: Answer, factors: NDArray[np.float64]) -> Answer:
    """Return answers (m rows) whose values are multiplied by positive factors (m,)."""
    return Answer(
        *(
            replace(side, scores=side.scores * factors[:, None], bound_left=side.bound_left * factors)
            for side in answer.sides
        )
    )


def _total(found: Vectors, unit: bool, count: int) -> NDArray[np.float64]:
    """Return the sum of vectors over a `count`, (d,)."""
    total = np.zeros(0)
    for _, vectors, norms in found:
        if not total.size:
            total = np.zeros(vectors.shape[1])
        scales = _scales(norms, unit) / count
        for begin in range(0, len(total), _NUMBERS):
            part = slice(begin, begin + _NUMBERS)
            total[part] += scales @ vectors[:, part].astype(np.float64)
    return total


def _scales(norms: NDArray[np.float64], unit: bool) -> NDArray[np.float64]:
    if not unit:
        return np.ones(len(norms))
    return np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
