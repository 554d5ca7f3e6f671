"""Large files whose sha256 this machine has compared before, so that it need not at every opening.

A note is an empty file in the cache, named by the sha256 and by device, inode, size and times of change. Whoever writes
to a file, or puts another one in its place, changes these (the time of change is the kernel's own), and it is hashed
anew. What a note cannot tell is a disk that returns other bytes than were written: for that there is `Index.check`.
"""

import contextlib
import os
import time
from pathlib import Path

from gradindex.store import cache

LARGE = 64 << 20  # bytes; smaller files are hashed at every opening
SETTLED = 2.0  # seconds: within the clock's tick, a second change might not show


def known(path: Path, sha256: str) -> bool:
    """Whether this file, as it is now, was compared before and is large."""
    status = path.stat()
    if status.st_size > LARGE:
        with contextlib.suppress(OSError):  # a cache that cannot be read costs time, and nothing else
            return _note(status, sha256).exists()
    return False


def note(path: Path, sha256: str, before: os.stat_result) -> None:
    """Remember that the file's contents are right; `before` is its status from before they were read."""
    status = path.stat()
    changed = _name(status, sha256) != _name(before, sha256) or time.time() - status.st_ctime < SETTLED
    if changed or status.st_size <= LARGE:
        return
    with contextlib.suppress(OSError):  # nor does one that cannot be written to
        file = _note(status, sha256)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def _note(status: os.stat_result, sha256: str) -> Path:
    return cache.directory() / "seen" / _name(status, sha256)


def _name(status: os.stat_result, sha256: str) -> str:
    place = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return "-".join((sha256[:32], *map(str, place)))
