"""The threads that compiled loops run in: two build Keras' CNN 1.15 times as fast as one (`benchmarks/clever.py`).

The loops release the interpreter's lock and run in a thread pool of our own: numba's OpenMP pool, when its threads have
to share cores with torch's, waits milliseconds at its barriers (measured: 7 ms a call), and its other pool aborts the
process on concurrent entry.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba

from gradindex.compiled.emit import LANES

_alone = threading.local()
_WORTH_A_THREAD = 200_000  # numbers; below this, handing work to a thread costs more than it saves


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, "gradindex-sketch")


def use_one_thread() -> None:
    """Let `for_samples`, when this thread calls it, use no other: the others have parts of their own."""
    _alone.here = True


def for_samples(work: Callable[[slice], None], samples: int, numbers: int) -> None:
    """Run `work` on slices that make up all samples, in as many threads as `numbers` of work are worth.

    A sample is one thread's work, so the result does not depend on the number of threads, which is
    ``NUMBA_NUM_THREADS``.
    """
    threads = min(numba.config.NUMBA_NUM_THREADS, samples, 1 + numbers // _WORTH_A_THREAD)
    if threads <= 1 or getattr(_alone, "here", False):
        work(slice(0, samples))
        return
    step = -(-samples // threads)
    step = -(-step // LANES) * LANES if samples >= LANES else step
    parts = [slice(begin, min(begin + step, samples)) for begin in range(0, samples, step)]
    others = [_pool(os.getpid()).submit(work, part) for part in parts[1:]]
    work(parts[0])
    for other in others:
        other.result()
