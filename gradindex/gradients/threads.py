"""How many threads a framework computes with: part of what fixes the bits of an embedding; parts of a batch in two."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients import Backend

_Result = TypeVar("_Result")


def count(backend: str) -> int:
    """Return the number of threads that one operation may use."""
    if backend == Backend.TORCH:
        import torch

        return int(torch.get_num_threads())
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads()) or len(os.sched_getaffinity(0))


@contextmanager
def using(backend: str, threads: int) -> Iterator[None]:
    """Compute with `threads` for a while; TensorFlow's number is fixed once it has started."""
    if backend != Backend.TORCH or threads == count(backend):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fix(backend: str, threads: int) -> None:
    """Let a framework compute with `threads` from now on: for new processes, as TensorFlow must not have started."""
    if backend == Backend.TORCH:
        import torch

        torch.set_num_threads(threads)
    elif backend == Backend.TENSORFLOW:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


@cache
def _helper(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "gradindex-parts")


def two_at_a_time(work: Callable[[slice], _Result], parts: Sequence[slice]) -> list[tuple[NDArray[np.intp], _Result]]:
    """Return the places of each part's rows and its result, the parts computed by this thread and a helper.

    While one is in a step that does not fill the cores, the other goes on. Both are done when this returns or
    raises.
    """
    left = iter(parts)
    found: dict[int, _Result] = {}

    def some() -> None:
        for part in left:  # the iterator of a list hands out each part once, whichever thread asks
            found[part.start] = work(part)

    other = _helper(os.getpid()).submit(some)
    try:
        some()
    finally:
        wait([other])
    other.result()
    return [(np.arange(part.start, part.stop), found[part.start]) for part in parts]
