"""Processes that were forked from one with threads (gunicorn's preload, DataLoader, multiprocessing).

The threads of OpenMP, with which FAISS and torch compute, do not come along, and whoever asks them to work waits
forever. With one thread there is nobody to ask. TensorFlow has no such way.
"""

import os
import sys

_threads, _lost = 1, False


def settle(backend: str | None = None) -> None:
    """Let a forked process compute with one thread; elsewhere do nothing.

    Parameters
    ----------
    backend
        The framework of the model that is to be used.

    Raises
    ------
    RuntimeError
        If that is TensorFlow, which hangs in forked processes.
    """
    if not _lost:
        return
    if backend == "tensorflow":
        raise RuntimeError(
            "TensorFlow does not work in a process that was forked from one that had used it. Make the job and open "
            "the index in the new process, and start that by multiprocessing.get_context('spawn') (gunicorn: without "
            "--preload)."
        )
    if (faiss := sys.modules.get("faiss")) is not None:
        faiss.omp_set_num_threads(1)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # also if it says that it has one: MKL has a number of its own


def forked() -> bool:
    """Whether this process was forked from one with threads."""
    return _lost


def _before() -> None:
    global _threads
    try:
        _threads = len(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        _threads = 2


def _in_child() -> None:
    global _lost
    _lost = _lost or _threads > 1


os.register_at_fork(before=_before, after_in_child=_in_child)
