"""What changes the disk of this machine: few operations, so that tests can record them and replay a loss of power.

A name is only safe once its directory was flushed, and contents once their file was: nothing here flushes by itself.
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
UNSUPPORTED = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EMLINK}
"""How file systems say that they have no such operation."""


def write(path: Path, pieces: Iterable[Any]) -> None:
    """Write a new file of bytes, or of anything that holds some."""
    with path.open("wb") as file:
        file.writelines(pieces)


def append(path: Path, data: bytes) -> None:
    """Write behind the end of a file, which is made if it is not there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mkdir(path: Path) -> None:
    """Make a directory; raises FileExistsError."""
    path.mkdir()


def link(source: Path, target: Path) -> None:
    """Give a file a second name; raises FileExistsError."""
    os.link(source, target)


def rename(source: Path, target: Path) -> None:
    """Give a file another name, whose own file is replaced; a directory replaces none but an empty one."""
    os.replace(source, target)


def rename_new(source: Path, target: Path) -> None:
    """Give a file another name; raises FileExistsError if there is one of that name, and OSError where unsupported."""
    _renameat2(source, target, _NOREPLACE)


def exchange(one: Path, other: Path) -> None:
    """Let two directories change places in one step; raises OSError where that is unsupported."""
    _renameat2(one, other, _EXCHANGE)


def unlink(path: Path) -> None:
    """Delete a file; raises FileNotFoundError."""
    path.unlink()


def rmdir(path: Path) -> None:
    """Delete an empty directory; raises FileNotFoundError."""
    path.rmdir()


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    function = getattr(_library(), "renameat2", None)
    if function is None:  # not Linux, or a C library older than 2018
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source), None, str(target))
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))
