"""What is asked of an index, with the depths of its stages resolved."""

from dataclasses import dataclass

from gradindex.ann.operating_point import Point
from gradindex.ann.selection import Selection
from gradindex.kernels import Kernel

RERANK = 50
"""Candidates of each side that are evaluated exactly by default: recall@10 of .999 in benchmarks/lookup.py."""
CANDIDATES_PER_CHECK, LEAST_CANDIDATES = 4, 400


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about each query.

    `k` results of each side of `kernel` with `eps`; `depth` candidates of each side leave the stored rows' stage, to
    be evaluated exactly if `rerank`; FAISS is asked for `candidates` (at least `depth`) at its operating `point`
    (None: its own settings); only rows of `selection` may be found.
    """

    kernel: Kernel
    k: int
    depth: int
    candidates: int
    rerank: bool = True
    eps: float = 0.0
    selection: Selection | None = None
    point: Point | None = None


def ask(
    rows: int,
    kernel: Kernel,
    k: int,
    rerank: int,
    candidates: int | None = None,
    eps: float = 0.0,
    selection: Selection | None = None,
    point: Point | None = None,
) -> Question:
    """Return the question with its depths resolved, for an index of so many rows; see `Index.explain`.

    Raises
    ------
    ValueError
        If `rerank` is negative, or `candidates` less than what is to be evaluated.
    """
    if rerank < 0:
        raise ValueError(f"rerank must be 0 or more, got {rerank}.")
    depth = min(rows, max(k, rerank))
    if candidates is None:
        candidates = max(LEAST_CANDIDATES, CANDIDATES_PER_CHECK * depth)
    elif candidates < depth:
        raise ValueError(f"candidates must be at least k and rerank, {depth}, got {candidates}.")
    return Question(
        kernel=kernel,
        k=k,
        depth=depth,
        candidates=min(rows, candidates),
        rerank=bool(rerank),
        eps=eps,
        selection=selection,
        point=point,
    )
