"""Keeping other processes out of a directory of this machine, for as long as a block or this process lasts."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF}  # of a file system


@contextlib.contextmanager
def alone(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Let no other process into a directory.

    Raises
    ------
    BlockingIOError
        If another one is in it, unless told to `wait`.
    FileNotFoundError
        If there is none.
    """
    with _held(directory, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
        yield


@contextlib.contextmanager
def together(directory: Path) -> Iterator[None]:
    """Wait for a process that is `alone` in a directory, and let none be, but others that are in it together."""
    with _held(directory, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def _held(directory: Path, how: int) -> Iterator[None]:
    """Hold a lock on what is at this path then, and not on what was there before another process moved it."""
    while True:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            _lock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                yield
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
