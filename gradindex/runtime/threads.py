"""How many threads a framework computes with: part of what fixes the bits of an embedding."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gradindex.runtime import forking


def count(backend: str) -> int:
    """Return the number of threads that one operation may use."""
    if backend == "torch":
        import torch

        return int(torch.get_num_threads())
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads()) or len(os.sched_getaffinity(0))


@contextmanager
def using(backend: str, threads: int) -> Iterator[None]:
    """Compute with `threads` for a while; TensorFlow's number is fixed once it has started."""
    if backend != "torch" or threads == count(backend):
        yield
        return
    forking.settle(backend)
    if threads > count(backend) == 1 and forking.forked():
        raise RuntimeError(
            f"This was begun with {threads} threads, which fix the bits of its rows, and a process that was forked has "
            "one. Continue it in a process of its own (multiprocessing.get_context('spawn'))."
        )
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fix(backend: str, threads: int) -> None:
    """Let a framework compute with `threads` from now on: for new processes, as TensorFlow must not have started."""
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
