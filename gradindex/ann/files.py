"""Reading FAISS's files, with no more memory than they can need."""

import re
import threading
from pathlib import Path
from typing import Any

import faiss

from gradindex.errors import DamagedIndexError

library: Any = faiss
_READING = threading.Lock()
_SUFFIX = {"": 1, "k": 1 << 10, "M": 1 << 20}  # of a number of lists, in FAISS's factory strings


def read(path: Path, factory: str, *, mapped: bool) -> Any:
    """Return the index in a file, of which `factory` is FAISS's factory string.

    Raises
    ------
    DamagedIndexError
        If it is missing or none, or claims arrays that are larger than the file.
    OSError
        If the machine cannot read it.
    """
    with _READING:  # FAISS has one limit for all
        limit = faiss.get_deserialization_vector_byte_limit()
        try:
            path.open("rb").close()  # says what the machine refuses, which FAISS does not
            faiss.set_deserialization_vector_byte_limit(max(path.stat().st_size, 1 << 16, table_bytes(factory)))
            return library.read_index(str(path), library.IO_FLAG_MMAP_IFC if mapped else 0)
        except FileNotFoundError:
            raise DamagedIndexError(f"{path} is missing.") from None
        except (RuntimeError, MemoryError) as error:  # its sha256 is right, or was until it was deleted
            raise DamagedIndexError(f"{path} is damaged: {str(error).splitlines()[-1]}") from None
        finally:
            faiss.set_deserialization_vector_byte_limit(limit)


def table_bytes(factory: str) -> int:
    """Return more than the bytes of the table that FAISS counts for product quantisers of residuals (IVF…,PQ…).

    It holds a float for each list, part of a vector and code. It is not in the file, and larger than one of few rows.
    """
    lists = [int(count) * _SUFFIX[suffix] for count, suffix in re.findall(r"IVF(\d+)([kM]?)", factory)]
    codes = [int(parts) << int(bits or 8) for parts, bits in re.findall(r"PQ(\d+)(?:x(\d+))?", factory)]
    return 4 * max(lists, default=0) * max(codes, default=0) + 4
