"""Files mapped into memory, and what the system is told of their pages: a scan takes half the memory for it.

Half, or 1.3 times less as an index is built: `benchmarks/clever.py`. Files are mapped without a descriptor: a store may
have more shards than a process may have files open.
"""

import ctypes
import mmap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return a file's bytes (n,), read when they are used; they stay readable when the file is deleted."""
    with pa.memory_map(str(path)) as file:
        return np.frombuffer(file.read_buffer(), np.uint8)


def advise(data: NDArray[np.generic], advice: int) -> None:
    """Tell the system about the pages of mapped bytes, see ``madvise``; those at the ends are taken whole."""
    begin = data.ctypes.data - data.ctypes.data % mmap.PAGESIZE
    length = data.ctypes.data + data.nbytes - begin
    _library().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), ctypes.c_int(advice))


@cache
def _library() -> Any:
    return ctypes.CDLL(None)
