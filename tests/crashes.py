"""Every state of a disk that a loss of power may leave, by recording operations and replaying parts of them.

The method of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018), over the package's own layer,
`gradindex.store.disk`. What POSIX promises is little: what was written to a file is there after the file was flushed, a
name after its directory was. Of everything else any part may be lost. So after each operation the disk is in any state
that comes of the flushed operations and any subset of the others: a file that was not flushed is missing its end from
a block or half-way on, or holds zeros; a renaming has happened, or has not, or has left both names.
"""

import contextlib
import itertools
import os
import random
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from gradindex.store import disk

BLOCK = 4096
ALL_SUBSETS, DRAWN = 10, 1000  # of up to so many operations, else drawn


@dataclass
class Inode:
    """A file's contents, or (None) a directory."""

    data: bytes | None = None
    entries: dict = field(default_factory=dict)


@dataclass
class Write:
    """Contents of a file that may be lost until it is flushed."""

    file: Inode
    data: bytes
    safe: bool = False

    def undone(self):
        """Yield what else the file may hold."""
        size = len(self.data)
        whole = [cut for cut in range(0, size, BLOCK)]
        for cut in {0, size // 2, *whole[:1], *whole[-1:]}:
            yield self.data[:cut]
        yield bytes(size)  # its size was written, nothing else
        yield self.data[: size // 2] + bytes(size - size // 2)


@dataclass
class Names:
    """Names that are given and taken in one step: (directory, name, inode or None)."""

    changes: list
    safe: bool = False


class Recorder:
    """Records what happens below a directory, which may hold something already."""

    def __init__(self, root):
        self.root = Path(root).resolve()
        self.log, self._lock = [], threading.RLock()
        self.top = self._adopt(self.root)
        self.now = copy(self.top)

    def _adopt(self, path):
        if path.is_dir():
            return Inode(None, {one.name: self._adopt(one) for one in sorted(path.iterdir())})
        return Inode(path.read_bytes())
