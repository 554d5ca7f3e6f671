"""What FAISS's steps cost on this machine, in seconds a row."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.ann.searcher import as_vectors
from gradindex.sketch.unit_rows import normalise
from gradindex.store import location
from gradindex.store.manifest import keep

LARGE = 64 << 20
"""Bytes of what is scanned: more than caches hold."""
_CENTROIDS = 8192  # compared with at once
_ROWS = 4096  # assigned at once


def inverted_lists(vectors: NDArray[np.float32], seed: int) -> dict[str, float]:
    """Return the seconds that each step with inverted lists takes a row, by vectors (n, width) of unit norm."""
    library: Any = faiss
    width = vectors.shape[1]
    rng = np.random.default_rng(seed)
    centroids = normalise(rng.standard_normal((_CENTROIDS, width)))
    quantiser = library.IndexFlatIP(width)
    quantiser.add(centroids)
    some = np.resize(vectors, (_ROWS, width))
    assign = seconds(lambda: quantiser.search(some, 1)) / (_ROWS * _CENTROIDS)
    many = LARGE // (4 * width)
    wide = library.IndexFlatIP(width)
    wide.add(np.resize(centroids, (many, width)))
    coarse = seconds(lambda: wide.search(some[:1], 64)) / many
    lists = library.index_factory(width, "IVF1,SQ8", library.METRIC_INNER_PRODUCT)
    lists.train(vectors)
    encode = seconds(lambda: lists.sa_encode(some)) / _ROWS
    codes = np.resize(lists.sa_encode(vectors), (LARGE // width, lists.sa_code_size()))
    began = time.perf_counter()
    lists.add_sa_codes(codes)
    append = (time.perf_counter() - began) / len(codes)
    scan = seconds(lambda: lists.search(some[:1], 100)) / lists.ntotal
    return {"assign": assign, "encode": encode, "append": append, "coarse": coarse, "scan": scan}


def flat(rows: NDArray[np.float32], folder: Path) -> dict[str, float]:
    """Return the costs of an exact index over rows like these (n, dim), which is written to a folder."""
    library: Any = faiss
    count, stored = max(len(rows), LARGE // (4 * rows.shape[1])), rows.astype(np.float16)

    def filled() -> faiss.Index:
        index: faiss.Index = library.IndexFlatIP(rows.shape[1])
        for begin in range(0, count, len(rows)):
            index.add(as_vectors(stored[: count - begin].astype(np.float32), rows.shape[1]))
        return index

    def save(index: faiss.Index) -> None:
        with location.temporary(folder) as part:
            library.write_index(index, str(part))
            keep(part, folder, "<tag>.faiss")

    full = filled()
    added = seconds(filled) / count
    finish = seconds(lambda: save(library.IndexFlatIP(rows.shape[1])))
    saved = max(0.0, seconds(lambda: save(full)) - finish) / (4 * rows.shape[1] * count)
    scan = seconds(lambda: full.search(rows[:1], 100)) / count
    return {"add_flat": added, "finish": finish, "save": saved, "scan_flat": scan}


def seconds(work: Callable[[], object], least: float = 0.2) -> float:
    """Return the median seconds of some repetitions after a first one."""
    work()
    times: list[float] = []
    while sum(times) < least or len(times) < 3:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
