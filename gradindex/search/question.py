"""What is asked of an index, with the depths of its stages resolved."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gradindex.ann.operating_point import Point
from gradindex.ann.selection import Selection
from gradindex.compute.exact import Evaluated
from gradindex.data.source import Batch, Ids
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel
from gradindex.search.answer import check_k
from gradindex.search.options import SearchOptions

CANDIDATES_PER_CHECK, LEAST_CANDIDATES = 4, 400
Evaluate: TypeAlias = Callable[[Batch | None, Floats, Ids], Evaluated]
"""As `gradindex.search.row_search.RowSearch.dots`."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about each query.

    `k` results of each side of `kernel` with `eps`; `depth` candidates of each side leave the stored rows' stage, to
    be evaluated exactly if `rerank`; FAISS is asked for `candidates` (at least `depth`) at its operating `point`
    (None: its own settings); only rows of `selection` may be found. A proof may evaluate `max_checks` rows for a query
    and side; None: as many as it needs. `evaluate` computes exact products with candidates, where the rows' own search
    is not to do it.
    """

    kernel: Kernel
    k: int
    depth: int
    candidates: int
    rerank: bool = True
    eps: float = 0.0
    selection: Selection | None = None
    point: Point | None = None
    max_checks: int | None = None
    evaluate: Evaluate | None = None


def ask(
    rows: int,
    kernel: Kernel,
    options: SearchOptions,
    selection: Selection | None = None,
    point: Point | None = None,
) -> Question:
    """Return the question with its depths resolved, for an index of so many rows, which `kernel` orders.

    Raises
    ------
    ValueError
        If k is more than the rows, or `candidates` less than what is to be evaluated.
    """
    check_k(options.k, rows)
    depth = min(rows, max(options.k, options.rerank))
    candidates = options.candidates
    if candidates is None:
        candidates = max(LEAST_CANDIDATES, CANDIDATES_PER_CHECK * depth)
    elif candidates < depth:
        raise ValueError(f"candidates must be at least k and rerank, {depth}, got {candidates}.")
    return Question(
        kernel=kernel,
        k=options.k,
        depth=depth,
        candidates=min(rows, candidates),
        rerank=bool(options.rerank),
        eps=options.eps,
        selection=selection,
        point=point,
        max_checks=options.max_checks,
    )
