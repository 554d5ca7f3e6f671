"""Operating points: recall against latency, measured on held-out queries at every setting of FAISS's `ParameterSpace`.

What counts is what the next stage gets: the share of a query's k nearest stored rows (by a scan of the store) that
are among the rows FAISS hands on, scored by the stored rows. The curve is kept in the index's manifest, so that
`explain(recall=…)` can pick from it, and goes with the index when that is built anew.
"""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.ann import files as index_files
from gradindex.ann import operating_point
from gradindex.ann.operating_point import Point
from gradindex.defaults import NEIGHBOURS, QUERIES, SEED
from gradindex.errors import DamagedIndexError
from gradindex.kernels import Kernel
from gradindex.runtime.interrupts import kept_if_possible
from gradindex.search import norm_scan, question
from gradindex.search.answer import check_k
from gradindex.search.options import SearchOptions
from gradindex.sketch.unit_rows import normalise
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.index.index import Index

KEY = "tuning"


@dataclass(frozen=True)
class OperatingPoint:
    """One setting: FAISS's key (``'nprobe=16'``; empty where there is nothing to set) and what it measured.

    `recall`, and `seconds` for one query on its own; `optimal` if no faster point has as much recall.
    """

    key: str
    recall: float
    seconds: float
    optimal: bool = False


@dataclass(frozen=True)
class Curve:
    """Recall@k against latency of an index over `queries` held-out queries, slowest last."""

    k: int
    queries: int
    candidates: int
    points: tuple[OperatingPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON-ready values."""
        return asdict(self)

    def pick(self, recall: float) -> OperatingPoint:
        """Return the fastest point of at least this recall.

        Raises
        ------
        ValueError
            If there is none; names the best.
        """
        able = [point for point in self.points if point.recall >= recall]
        if not able:
            best = max(point.recall for point in self.points)
            raise ValueError(
                f"No operating point reaches recall {recall}; the best measured is {best:.4f}. Ask for more candidates "
                "when tuning, or build a finer index."
            )
        return min(able, key=lambda point: point.seconds)

    def __str__(self) -> str:
        lines = [f"recall@{self.k} of the store's scan, {self.queries} queries, {self.candidates} candidates"]
        for point in self.points:
            mark = "*" if point.optimal else " "
            lines.append(f"{mark} {point.key or 'as it is':<40} {point.recall:.4f} {1e3 * point.seconds:9.3f} ms")
        return "\n".join(lines)


def tune(
    index: "Index",
    vectors: object = None,
    *,
    queries: int = QUERIES,
    k: int = NEIGHBOURS,
    candidates: int | None = None,
    seed: int = SEED,
) -> Curve:
    """Measure the operating points of an index, and save the curve with it (where that is possible: else it is logged).

    Parameters
    ----------
    index
        The index; needs no job.
    vectors
        Held-out queries: unit-norm sketches (m, dim), as `Index.sketch` makes of new samples. None: stored rows
        drawn by `seed`, each left out of its own answer.
    queries
        How many rows to draw.
    k, candidates
        As in `Index.explain`.
    seed
        Draws the rows.

    Raises
    ------
    ValueError
        For a bad size, or vectors of another width.
    """
    store = index.store
    rows = np.flatnonzero(np.ones(len(store), bool) if store.alive is None else store.alive)
    check_k(k, len(rows) - 1)
    own = np.full(0, -1)
    if vectors is None:
        if queries < 1:
            raise ValueError(f"queries must be 1 or more, got {queries}.")
        own = np.sort(np.random.default_rng(seed).choice(rows, min(queries, len(rows)), replace=False))
        vectors = store.gather(own)
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != store.header.dim or not len(vectors):
        raise ValueError(f"Expected vectors of shape (m, {store.header.dim}), got {vectors.shape}.")
    vectors = normalise(vectors)
    own = own if len(own) else np.full(len(vectors), -1)
    options = SearchOptions(k=k + 1, rerank=k + 1, candidates=candidates)
    wanted = question.ask(len(store), Kernel.COS, options)
    depth = wanted.depth if index.searcher.exact else wanted.candidates
    _, truth, _ = norm_scan.scan(store, vectors, np.ones(len(vectors)), Kernel.COS, k + 1)
    truth = without(truth, own)[:, :k]
    found = [_measure(index, key, vectors, own, truth, depth) for key in operating_point.keys(index.searcher.index)]
    found.sort(key=lambda point: point.seconds)
    curve = Curve(k, len(vectors), depth, tuple(_marked(found)))
    with kept_if_possible(store.path, "the curve"):
        index_files.annotate(store, KEY, curve.to_json())
    return curve


def saved(store: Store) -> Curve | None:
    """Return the curve saved with a store's index, if it was tuned.

    Raises
    ------
    DamagedIndexError
        If what is saved is none.
    """
    found = index_files.annotation(store, KEY)
    if found is None:
        return None
    try:
        points = tuple(
            OperatingPoint(str(one["key"]), float(one["recall"]), float(one["seconds"]), bool(one["optimal"]))
            for one in found["points"]
        )
        return Curve(int(found["k"]), int(found["queries"]), int(found["candidates"]), points)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedIndexError(
            f"{index_files.manifest_path(store)} is damaged: its {KEY!r} is none ({error}); tune again."
        ) from None


def pick(store: Store, recall: float) -> Point:
    """Return FAISS's search parameters for a recall, from the saved curve.

    Raises
    ------
    ValueError
        If `recall` is not in (0, 1], there is no curve, or no point reaches it.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {recall}.")
    curve = saved(store)
    if curve is None:
        raise ValueError("The index was never tuned, so no operating point is known: call index.tune() first.")
    return operating_point.parse(curve.pick(recall).key)


def without(rows: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows (m, c − 1) with each line's `own` row left out, or its last where that is not there."""
    out = np.empty((len(rows), rows.shape[1] - 1), np.int64)
    for line, (found, this) in enumerate(zip(rows, own, strict=True)):
        out[line] = found[found != this][: rows.shape[1] - 1]
    return out


def _measure(
    index: "Index",
    key: str,
    vectors: NDArray[np.float32],
    own: NDArray[np.int64],
    truth: NDArray[np.int64],
    depth: int,
) -> OperatingPoint:
    point = operating_point.parse(key)
    _, rows = index.searcher.search(vectors, depth, point=point)
    hits = [len(np.intersect1d(want, got[got != this])) for want, got, this in zip(truth, rows, own, strict=True)]
    alone = vectors[: min(len(vectors), 50)]
    times = []
    for vector in alone:
        began = time.perf_counter()
        index.searcher.search(vector[None], depth, point=point)
        times.append(time.perf_counter() - began)
    return OperatingPoint(key, float(np.mean(hits)) / truth.shape[1], float(np.median(times)))


def _marked(points: list[OperatingPoint]) -> list[OperatingPoint]:
    """Mark the points that beat all faster ones."""
    best, out = -1.0, []
    for point in points:
        out.append(OperatingPoint(point.key, point.recall, point.seconds, point.recall > best))
        best = max(best, point.recall)
    return out
