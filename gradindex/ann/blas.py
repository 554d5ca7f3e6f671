"""Matrix products in FAISS for a few queries, too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss

_NUMBERS = 8192  # of queries, from which on a product is asked for: 8 of 1,024; 4 lost a tenth by it
_lock = threading.Lock()
_inside, _usual = 0, 0


def threads() -> int:
    """Return how many threads FAISS computes with."""
    return int(faiss.omp_get_max_threads())


@contextmanager
def for_few() -> Iterator[None]:
    """Let FAISS multiply matrices where it would compare one query after the other; see `benchmarks/flat.py`.

    Below 128,000 numbers of queries it does that, although a product of 16 queries of 1,024 is 3.6 times as fast. It
    has one setting for the process: the first thread here changes it, the last one puts it back.
    """
    global _inside, _usual
    with _lock:
        if not _inside:
            _usual = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = min(_NUMBERS, _usual)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                faiss.cvar.distance_compute_blas_threshold = _usual
