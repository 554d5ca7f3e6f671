"""A place behind a URL that fsspec knows, and what its file systems ask for.

They fail in ways that pass, so they are asked again; and not all of them keep two builders from creating one file.
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from gradindex.errors import missing

_ATTEMPTS = 4
_CACHING = ("blockcache", "filecache", "simplecache")  # protocols of fsspec whose path is that of what they cache
_WAIT = 0.1  # seconds before a remote file system is asked again; doubled each time
_FINAL = FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError
T = TypeVar("T")
_exclusive: set[tuple[Any, str]] = set()  # file systems and buckets that were seen to refuse a second creation


@dataclass(frozen=True)
class RemotePath:
    """A place on a file system of fsspec; `url` has no slash at its end.

    URLs may be chained, such as ``zip://folder::s3://bucket/archive.zip``: what lies below is below the folder.
    """

    url: str

    @cached_property
    def _found(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise missing("fsspec", "gradindex[remote]") from None
        try:
            fs, path = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise ImportError(f"{self.url} needs another package: {error}. For s3://: gradindex[s3]") from None
        return fs, path

    @property
    def fs(self) -> Any:
        """The file system of fsspec."""
        return self._found[0]

    @property
    def key(self) -> str:
        """The path on that file system."""
        return self._found[1]

    def __truediv__(self, name: str) -> "RemotePath":
        before, place, behind = _chained(self.url)
        return RemotePath(f"{before}{place}{'' if place.endswith('/') else '/'}{name}{behind}")

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        raise TypeError(f"{self.url} is not on this machine.")

    @property
    def name(self) -> str:
        """The last part."""
        return _chained(self.url)[1].rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """Everything but the last part."""
        before, place, behind = _chained(self.url)
        return RemotePath(f"{before}{place.rpartition('/')[0]}{behind}")

    def kind(self) -> str | None:
        """Return "file" or "directory"; None where there is neither."""
        try:
            return str(again(lambda: self.fs.info(self.key))["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_bytes(self) -> bytes:
        """Return the file's contents; raises FileNotFoundError."""
        return bytes(again(lambda: self.fs.cat_file(self.key)))


def _chained(url: str) -> tuple[str, str, str]:
    """Return the part of a URL that holds the path, with what is before it and behind it in a chain."""
    before = ""
    while True:
        head, chain, rest = url.partition("::")
        if not chain or head not in _CACHING:
            break
        before, url = f"{before}{head}::", rest
    if chain and "://" not in head:
        head += "://"
    return before, head if head.endswith("://") else head.rstrip("/"), chain + rest


def again(work: Callable[[], T]) -> T:
    """Ask a remote file system, several times if it fails in a way that may pass."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return work()
        except _FINAL:
            raise
        except OSError:
            time.sleep(_WAIT * 2**attempt)
    return work()


def create(path: RemotePath, data: bytes) -> None:
    """Create a file that is not there.

    Raises
    ------
    FileExistsError
        If it is there already.
    OSError
        If the file system overwrites it then.
    """
    _create(path, data)
    _require_exclusive(path, data)


def _create(path: RemotePath, data: bytes) -> None:
    """Create a file that is not there; where an error leaves open whether it was created, see who created it."""
    for attempt in range(_ATTEMPTS):
        try:
            return path.fs.pipe_file(path.key, data, mode="create")  # type: ignore[no-any-return]
        except FileExistsError as error:
            if attempt and path.read_bytes() == data:  # an attempt that failed after it had written
                return None
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        except OSError:  # servers differ in how they say it, and some ask to try again while others write
            if path.kind() is not None:
                if path.read_bytes() == data:
                    return None
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_WAIT * 2**attempt)
    raise AssertionError  # unreachable: the last attempt returns or raises


def _require_exclusive(path: RemotePath, data: bytes) -> None:
    """Create once more what was just created, the first time on each bucket: that has to fail.

    Servers that do not know the condition ignore it; what they write then is the same bytes again.
    """
    place = path.fs, path.key.lstrip("/").partition("/")[0]
    if place in _exclusive:
        return
    try:
        again(lambda: path.fs.pipe_file(path.key, data, mode="create"))
    except FileExistsError:
        _exclusive.add(place)
        return
    except OSError:  # servers differ in how they say it
        return
    raise OSError(
        f"{path.parent}: this file system overwrites where a file should only be created if it is absent, so builders "
        "could destroy each other's work. Build on a local disk and copy the finished index there."
    )
