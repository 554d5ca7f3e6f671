"""The cascade: FAISS over narrow rows, then the stored rows of what it found, then the exact kernel on the best.

Each stage narrows what the last one found, and scores it better. What every stage was asked for is recorded in
the result.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.ann.operating_point import Point
from gradindex.ann.selection import SCAN_ROWS, Selection
from gradindex.data.source import Batch, Ids
from gradindex.gradients.engine import Floats
from gradindex.kernels import Kernel
from gradindex.runtime.stages import stage
from gradindex.search import certify as proofs
from gradindex.search import norm_scan
from gradindex.search.answer import distinct
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.ann.searcher import Searcher
    from gradindex.index.index import Index

RERANK = 50
"""Candidates of each side that are evaluated exactly by default: recall@10 of .999 in benchmarks/lookup.py."""
CANDIDATES_PER_CHECK, LEAST_CANDIDATES = 4, 400
# Stored rows held at once while candidates are scored anew. Scattered ones map up to 110 KB each of the store, which
# counts as the process's memory, so after so many they are let go of.
_GATHERED = 1024
_SKETCH_TOLERANCE = 1e-3  # far below the error of a sketched cosine


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


def answer(
    index: "Index",
    queries: Batch,
    gradients: Floats | None,
    sketches: NDArray[np.float32],
    norms: NDArray[np.float64],
    asked: Question,
) -> tuple[dict[str, NDArray[Any]], str]:
    """Return proponents and opponents of some queries, and how exact values were computed.

    Parameters
    ----------
    index
        An index opened with its job.
    queries, gradients, sketches, norms
        m labelled samples, their gradients (m, P) (None where none is needed: nothing is evaluated exactly), unit-norm
        rows (m, width) and norms (m,).
    asked
        The question.
    """
    k, rerank = asked.k, gradients is not None
    pair = np.concatenate([sketches, index.projector.opposite(sketches)])
    estimates, near, scanned = candidates(index, pair, np.tile(norms, 2), asked)
    halves = slice(0, len(norms)), slice(len(norms), None)
    checked = distinct(np.hstack([near[half] for half in halves])) if rerank else np.empty((len(norms), 0), np.int64)
    method = "none"
    if gradients is not None:
        values, method = _exact(index, queries, gradients, norms, checked, asked)
        found = [norm_scan.top(np.where(checked < 0, -np.inf, side * values), checked, k) for side in (1, -1)]
    else:
        found = [(estimates[half, :k], near[half, :k]) for half in halves]
    out: dict[str, NDArray[Any]] = {}
    for i, (prefix, side, (scores, rows)) in enumerate(zip(("", "opponent_"), (1, -1), found, strict=True)):
        missing = rows < 0
        kth = np.where(missing[:, -1] | (not rerank), -np.inf, scores[:, -1])
        proved, left = proofs.proof(index, asked.kernel, asked.eps, norms, checked, kth, asked.selection)
        out[f"{prefix}proved"], out[f"{prefix}bound_left"] = proved, side * left
        out[f"{prefix}checked"] = (checked >= 0).sum(axis=1)
        out[f"{prefix}scanned"] = scanned[halves[i]]
        out[f"{prefix}scores"] = np.where(missing, np.nan, side * np.where(missing, 0.0, scores))
        out["opponent_indices" if prefix else "ordered_indices"] = ids_of(index.store, rows)
        out[f"{prefix}exact"] = ~missing & rerank
    return out, method


@stage("search")
def candidates(
    index: "Index", sketches: NDArray[np.float32], norms: NDArray[np.float64], asked: Question
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return estimated kernel values and rows (m, depth) of the nearest stored rows, descending.

    Also, how many rows were looked at (m,), −1 where FAISS does not tell. Missing rows are −1, with value −inf.
    """
    kernel, depth, eps, selection = asked.kernel, asked.depth, asked.eps, asked.selection
    if kernel is not Kernel.COS:
        return index._scan(sketches, norms, kernel, depth, eps, selection)
    same = index.searcher.exact
    found, rows, scanned = index._nearest(sketches, depth if same else asked.candidates, selection, asked.point)
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
        scan = index._scan(sketches[unsure], norms[unsure], kernel, depth, eps, selection)
        scores[unsure], rows[unsure], scanned[unsure] = scan
    return scores, rows, scanned


def nearest(
    index: "Index",
    sketches: NDArray[np.float32],
    k: int,
    selection: Selection | None,
    point: Point | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return cosines and rows (m, k) of the nearest selected rows of the index, and rows looked at (m,)."""
    searcher = index.searcher
    if selection is None:
        return *searcher.search(sketches, k, point=point), searcher.scanned(sketches, point)
    if not by_faiss(searcher, selection):
        ones = np.ones(len(sketches))
        scores, rows, scanned = norm_scan.scan(index.store, sketches, ones, Kernel.COS, k, selection=selection)
        return scores.astype(np.float32), rows, scanned
    found, rows = searcher.search(sketches, k, selection, point)
    scanned = np.full(len(sketches), len(selection))
    return found, rows, scanned if selection.everywhere else searcher.scanned(sketches, point)


def by_faiss(searcher: "Searcher", selection: Selection | None) -> bool:
    """Whether FAISS finds the nearest of some rows (None: of all), rather than a scan of the store."""
    return selection is None or ((len(selection) > SCAN_ROWS or not selection.everywhere) and searcher.filters)


def searched(index: "Index", asked: Question) -> str:
    """Return what finds the candidates of a question: FAISS, or a scan of the store in the order of the norms."""
    faiss = asked.kernel is Kernel.COS and by_faiss(index.searcher, asked.selection)
    return "FAISS" if faiss else "scan of the store"


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


def ids_of(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids of some rows; −1 stays −1."""
    return np.where(rows < 0, -1, store.ids[rows])


def _exact(
    index: "Index",
    queries: Batch,
    gradients: Floats,
    norms: NDArray[np.float64],
    rows: NDArray[np.int64],
    asked: Question,
) -> tuple[NDArray[np.float64], str]:
    found = index._dots(queries, gradients, ids_of(index.store, rows))
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
