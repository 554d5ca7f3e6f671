"""The cascade: FAISS over narrow rows, then the stored rows of what it found, then the exact kernel on the best.

Each stage narrows what the last one found, and scores it better. What every stage was asked for is recorded in
the result.
"""

import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.ann.searcher import Searcher
from gradindex.data.source import Batch, Ids
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel
from gradindex.runtime.stages import stage
from gradindex.search import norm_scan
from gradindex.search.answer import Answer, Side
from gradindex.search.bounds import proof
from gradindex.search.question import Question
from gradindex.search.row_search import RowSearch, by_faiss
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.index.index import Index

# Stored rows held at once while candidates are scored anew. Scattered ones map up to 110 KB each of the store, which
# counts as the process's memory, so after so many they are let go of.
_GATHERED = 1024
FAISS, STORE = "FAISS", "scan of the store"
_SKETCH_TOLERANCE = 1e-3  # far below the error of a sketched cosine


def answer(
    index: "Index",
    queries: Batch | None,
    gradients: Floats | None,
    sketches: NDArray[np.float32],
    norms: NDArray[np.float64],
    asked: Question,
    more: NDArray[np.int64] | None = None,
) -> tuple[Answer, str]:
    """Return proponents and opponents of some queries, and how exact values were computed.

    Parameters
    ----------
    index
        An index opened with its job.
    queries, gradients, sketches, norms
        m labelled samples (None: vectors that are of no sample), their gradients (m, P) (None where none is needed:
        nothing is evaluated exactly), unit-norm rows (m, width) and norms (m,).
    asked
        The question.
    more
        Rows (m, c) that are evaluated exactly, too, −1 for none, whatever the search finds.
    """
    pair = np.concatenate([sketches, index.projector.opposite(sketches)])
    estimates, near, scanned = candidates(index, pair, np.tile(norms, 2), asked)
    halves = slice(0, len(norms)), slice(len(norms), None)
    checked, method = np.empty((len(norms), 0), np.int64), "none"
    if gradients is not None:
        checked = distinct(np.hstack([near[half] for half in halves] + ([] if more is None else [more])))
        values, method = exact_values(index, queries, gradients, norms, checked, asked)
        found = best_of(values, checked, asked.k)
    else:
        found = [(estimates[half, : asked.k], near[half, : asked.k]) for half in halves]
    return answer_of(index, asked, norms, found, checked, [scanned[half] for half in halves]), method


Best = list[tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Of proponents and opponents: values (m, k), descending (of opponents negated), and their rows, −1 for none."""


def best_of(values: NDArray[np.float64], rows: NDArray[np.int64], k: int) -> Best:
    """Return the k highest and the k lowest of exact values (m, c) of some rows (m, c)."""
    return [norm_scan.top(np.where(rows < 0, -np.inf, sign * values), rows, k) for sign in (1, -1)]


def answer_of(
    index: "Index",
    asked: Question,
    norms: NDArray[np.float64],
    found: Best,
    checked: NDArray[np.int64],
    scanned: list[NDArray[np.int64]],
    expected: list[NDArray[np.float64]] | None = None,
) -> Answer:
    """Return the answer that consists of what was found, with what Cauchy–Schwarz proves of it.

    Parameters
    ----------
    index, asked, norms
        As in `answer`.
    found
        Proponents and opponents, exact if anything was checked.
    checked
        Rows evaluated exactly, (m, c), −1 for none.
    scanned
        Rows looked at for each side, (m,).
    expected
        Calibrated recall for each side, (m,), where it is known.
    """
    rerank = checked.shape[1] > 0
    sides = []
    for place, (sign, (scores, rows)) in enumerate(zip((1, -1), found, strict=True)):
        missing = rows < 0
        kth = np.where(missing[:, -1] | (not rerank), -np.inf, scores[:, -1])
        proved, left = proof(index, asked.kernel, asked.eps, norms, checked, kth, asked.selection)
        side = Side(
            ids=ids_of(index.store, rows),
            scores=np.where(missing, np.nan, sign * np.where(missing, 0.0, scores)),
            exact=~missing & rerank,
            proved=proved,
            checked=(checked >= 0).sum(axis=1),
            scanned=scanned[place],
            bound_left=sign * left,
            expected_recall=np.full(len(norms), np.nan) if expected is None else expected[place],
        )
        sides.append(side)
    return Answer(*sides)


class Searched(Protocol):
    """Rows of a store that can be searched: an index's own, or its whitened ones."""

    @property
    def store(self) -> Store:
        """The rows on disk."""
        ...

    @property
    def searcher(self) -> Searcher:
        """Their FAISS index."""
        ...

    @property
    def rows(self) -> RowSearch:
        """What searches them."""
        ...


@stage("search")
def candidates(
    index: Searched, sketches: NDArray[np.float32], norms: NDArray[np.float64], asked: Question
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return estimated kernel values and rows (m, depth) of the nearest stored rows, descending.

    Also, how many rows were looked at (m,), −1 where FAISS does not tell. Missing rows are −1, with value −inf.
    """
    kernel, depth, eps, selection = asked.kernel, asked.depth, asked.eps, asked.selection
    if kernel is not Kernel.COS:
        return index.rows.scan(sketches, norms, kernel, depth, eps, selection)
    same = index.searcher.exact
    found, rows, scanned = index.rows.nearest(sketches, depth if same else asked.candidates, selection, asked.point)
    scores, rows = norm_scan.top(found if same else rescored(index.store, sketches, rows), rows, depth)
    if not eps:
        return scores, rows, scanned
    last = scores[:, -1].copy()
    for line, norm in enumerate(norms):
        there = rows[line] >= 0  # a missing row's score is −inf, whatever the weight of another
        scores[line, there] *= kernels.weights(kernel, float(norm), index.store.norms[rows[line, there]], eps)
    scores, rows = norm_scan.top(scores, rows, depth)
    # eps lowers the score of small gradients. A row that was not found scores at most its cosine, so at most
    # the last one found; where the k-th score is below that, the order of cosines is no guide.
    unsure = scores[:, asked.k - 1] < last - _SKETCH_TOLERANCE
    if unsure.any():
        scan = index.rows.scan(sketches[unsure], norms[unsure], kernel, depth, eps, selection)
        scores[unsure], rows[unsure], scanned[unsure] = scan
    return scores, rows, scanned


def searched(index: Searched, asked: Question) -> str:
    """Return what finds the candidates of a question: FAISS, or a scan of the store in the order of the norms."""
    return FAISS if asked.kernel is Kernel.COS and by_faiss(index.searcher, asked.selection) else STORE


def rescored(store: Store, sketches: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return cosines (m, c) of sketches with the stored rows (m, c), −inf for missing ones."""
    out = np.full(rows.shape, -np.inf)
    step = max(1, _GATHERED // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        some = rows[begin : begin + step]
        wide = store.gather(np.where(some < 0, 0, some).ravel()).reshape(*some.shape, -1)
        values = np.matmul(wide, sketches[begin : begin + step, :, None])[:, :, 0]
        out[begin : begin + step] = np.where(some < 0, -np.inf, values)
        if len(rows) > step:
            store.release()
    return out


def distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows (m, c) with repeated entries of a line replaced by −1."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    out = np.empty_like(rows)
    np.put_along_axis(out, order, ordered, 1)
    return out


def ids_of(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids of some rows; −1 stays −1."""
    return np.where(rows < 0, -1, store.ids[rows])


def exact_values(
    index: "Index",
    queries: Batch | None,
    gradients: Floats,
    norms: NDArray[np.float64],
    rows: NDArray[np.int64],
    asked: Question,
) -> tuple[NDArray[np.float64], str]:
    """Return exact kernel values (m, c) of queries with rows of their own, 0 for −1, and how they were computed."""
    found = (asked.evaluate or index.rows.dots)(queries, gradients, ids_of(index.store, rows))
    index.changed.append(compare_losses(index.store, found.losses))
    dots = np.where(rows < 0, 0.0, found.dots)
    return kernels.values(asked.kernel, dots, norms, index.store.norms[rows], asked.eps), found.method


def compare_losses(store: Store, losses: dict[int, float]) -> NDArray[np.int64]:
    """Return the ids whose losses are not those stored, with a warning: another loss function, or changed data.

    Their exact gradients are no longer those whose norms are stored, so that their scores are not exact.
    """
    ids = np.fromiter(losses, np.int64, len(losses))
    now = np.fromiter(losses.values(), np.float64, len(losses))
    stored = store.columns["loss"][store.rows_of(ids)]
    differs = np.abs(now - stored) > 1e-3 * (1 + np.abs(stored))
    if differs.any():
        first = np.flatnonzero(differs)[0]
        warnings.warn(
            f"The loss of {differs.sum()} of {len(ids)} samples is not the stored one (sample {ids[first]}: "
            f"{now[first]:.4g}, stored {stored[first]:.4g}). Is this the loss and the data of the build?",
            UserWarning,
            stacklevel=5,
        )
    changed: Ids = ids[differs]
    return changed
