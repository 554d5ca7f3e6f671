"""How an index is searched: what belongs together in a call of `Index.explain`."""

from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral

from gradindex.defaults import NEIGHBOURS, RERANK
from gradindex.words import choose_word


class Measure(StrEnum):
    """Measures beside the kernels."""

    BM25 = "bm25"
    HIDDEN = "hidden"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How `Index.explain` searches.

    Parameters
    ----------
    k
        How many proponents and how many opponents, at most the number of indexed samples.
    kernel
        ``'grad_cos'`` (the default), ``'grad_dot'`` or ``'grad_asym_dot'``; in an index built with a metric,
        None or the metric's name.
    rerank
        How many candidates of each side are evaluated with the exact kernel (at least k); 0 leaves the
        sketch's estimates.
    candidates
        How many rows of each side FAISS is asked for, which are then scored by the stored rows, so that the best
        are evaluated exactly; at least k and `rerank`. None: four times as many, at least 400. An index that
        holds the stored rows as they are (``'Flat'``) needs none.
    recall
        With a calibration (`Index.calibrate`) for this kernel and k: check candidates exactly, best estimates first,
        until the answers to queries like the calibration's hold this share of the true k on average, counting what
        FAISS misses; `rerank` then says only whether anything is checked. Below 1. A filter, `eps`, other `candidates`
        or ``certify=True`` leave that aside, and so does an index without a calibration: then this is the fastest
        operating point whose recall of the stored rows, as measured by `Index.tune`, is at least this, for
        ``'grad_cos'``. ``meta["params"]["recall"]`` says which. None: FAISS's own settings, a sixteenth of the lists.
    eps
        Added to the kernel's denominator. The default leaves the kernels as they are defined, with 0 where
        a gradient is zero; `GradientSimilarity` uses 1e-7.
    certify
        Check rows exactly until the answer is proved to be that of the exact kernel over all rows; see
        `gradindex.search.certify`. For ``'grad_cos'`` that takes an index of `gradindex.Landmark` rows: with any
        other sketch nothing is proved unless `max_checks` lets every row be checked.
    max_checks
        With `certify`: give up after this many exact checks for a query and side, at least k; None: never.
    candidates_from
        Other measures, some of ``'bm25'`` (words, of jobs whose samples are texts; needs the package bm25s) and
        ``'hidden'`` (cosine of pooled hidden vectors, see `gradindex.relevance.pooled`). The result shows them beside
        its scores, and the `rerank` best samples by each are evaluated exactly, too. Proofs and whitened rows, which
        leave no sample out, need no more candidates: with them there are the columns alone.

    Raises
    ------
    ValueError
        If k is less than 1 or `rerank` negative; if `max_checks` is less than k, or given without `certify`; if a
        measure of `candidates_from` is unknown. What depends on the index, such as k of more than its rows, is refused
        when it is asked.
    """

    k: int = NEIGHBOURS
    kernel: str | None = None
    rerank: int = RERANK
    candidates: int | None = None
    recall: float | None = None
    eps: float = 0.0
    certify: bool = False
    max_checks: int | None = None
    candidates_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (self.candidates_from,) if isinstance(self.candidates_from, str) else tuple(self.candidates_from)
        for name in names:
            choose_word(Measure, name, "measure in candidates_from")
        object.__setattr__(self, "candidates_from", names)
        if not isinstance(self.k, Integral) or self.k < 1:
            raise ValueError(f"k must be a positive integer, got {self.k!r}.")
        if self.rerank < 0:
            raise ValueError(f"rerank must be 0 or more, got {self.rerank}.")
        if self.max_checks is None:
            return
        if not self.certify:
            raise ValueError("max_checks limits a proof: give certify=True with it, or rerank instead.")
        if not isinstance(self.max_checks, Integral) or self.max_checks < self.k:
            raise ValueError(f"max_checks must be an integer of k = {self.k} or more, got {self.max_checks!r}.")
