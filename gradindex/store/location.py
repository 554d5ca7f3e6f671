"""Where a store lies: a directory of this machine, or a URL that fsspec knows (``s3://bucket/index``).

The one module that knows the difference. A directory is a `pathlib.Path`; anything else is a `RemotePath`, which has
the few methods of Path that a store needs. What differs is in the functions: publishing is a hard link here and a
create-if-absent there; files are mapped where they lie here, and from a local cache there.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradindex.errors import DamagedIndexError

NO_FILE = "not a plain file"
_TEMPORARY = ".tmp-"
_CHUNK = 8 << 20
_ATTEMPTS = 4
_CACHE_BYTES = 20 << 30
_CACHING = ("blockcache", "filecache", "simplecache")  # protocols of fsspec whose path is that of what they cache
_IN_USE = 600  # seconds for which the cache keeps what was asked for, however full it is
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
            raise ImportError("fsspec is not installed. Type: pip install 'gradindex[remote]'") from None
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

    def exists(self) -> bool:
        """Whether a file is here, or anything below."""
        return bool(self.fs.exists(self.key))

    def is_dir(self) -> bool:
        """Whether anything is below."""
        return bool(self.fs.isdir(self.key))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory where there are some; object stores, whose interface is asynchronous, have none."""
        fs = getattr(self.fs, "fs", self.fs)  # behind a cache
        if not fs.async_impl:
            self.fs.makedirs(self.key, exist_ok=True)

    def read_bytes(self) -> bytes:
        """Return the file's contents; raises FileNotFoundError."""
        return bytes(self.fs.cat_file(self.key))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        try:
            self.fs.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise


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


Location = Path | RemotePath


def locate(path: Any) -> Location:
    """Return where a path or URL leads: ``protocol://…`` to a `RemotePath`, except ``file://…``.

    Raises
    ------
    ValueError
        If a URL was made a `pathlib.Path`, which takes one of its slashes.
    """
    if isinstance(path, RemotePath):
        return path
    if isinstance(path, Path):
        first = path.parts[0] if path.parts else ""
        if first.endswith(":") and len(first) > 2 and not Path(first).exists():
            raise ValueError(f"{str(path)!r} was a URL before it became a pathlib.Path: give the URL as a string.")
        return path
    text = os.fspath(path)
    protocol, found, rest = text.partition("://")
    if found and protocol != "file":
        return RemotePath(text.rstrip("/"))
    return Path(rest if found else text)


def on_disk(path: Any, what: str) -> Path:
    """Return a path of this machine; raises ValueError for a URL, saying that `what` takes none."""
    found = locate(path)
    if not isinstance(found, Path):
        raise ValueError(f"{what} takes a path on this machine, got {found}. Give a path, and copy from or to there.")
    return found


def size(path: Location) -> int:
    """Return a file's size in bytes; raises FileNotFoundError if there is none, or only a link, pipe or directory."""
    if isinstance(path, Path):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, NO_FILE, str(path))
        return status.st_size
    found = path.fs.info(path.key)
    if found["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return int(found["size"])


def listing(directory: Location) -> list[Location]:
    """Return what is directly below a directory, sorted; nothing where there is none."""
    if isinstance(directory, Path):
        return [*sorted(directory.iterdir())] if directory.is_dir() else []
    try:
        keys = directory.fs.ls(directory.key, detail=False)
    except FileNotFoundError:
        return []
    names = {key.rstrip("/").rpartition("/")[2] for key in keys}
    return [directory / name for name in sorted(names - {"", directory.name})]


def create(path: Location, data: bytes) -> None:
    """Write a file durably, all of it or nothing; of several processes that create it, one succeeds.

    Raises
    ------
    FileExistsError
        If it is there already.
    OSError
        If the remote file system does not keep to that.
    """
    if isinstance(path, Path):
        with temporary(path.parent) as part:
            _write(part, data)
            os.link(part, path)
        sync(path.parent)
        return
    _create_remote(path, data)
    _require_exclusive(path, data)


def replace(path: Location, data: bytes) -> None:
    """Write a file durably, in the place of the one there: readers see the old or the new one, whole."""
    if isinstance(path, Path):
        with temporary(path.parent) as part:
            _write(part, data)
            os.replace(part, path)
        sync(path.parent)
    else:
        path.fs.pipe_file(path.key, data)


def _create_remote(path: RemotePath, data: bytes) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            return path.fs.pipe_file(path.key, data, mode="create")  # type: ignore[no-any-return]
        except FileExistsError:
            raise
        except OSError as error:  # servers differ in how they say it, and some ask to try again while others write
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError  # unreachable: the last attempt returns or raises


def _require_exclusive(path: RemotePath, data: bytes) -> None:
    """Create once more what was just created, the first time on each bucket: that has to fail.

    Servers that do not know the condition ignore it; what they write then is the same bytes again.
    """
    place = path.fs, path.key.lstrip("/").partition("/")[0]
    if place in _exclusive:
        return
    try:
        _create_remote(path, data)
    except FileExistsError:
        _exclusive.add(place)
        return
    raise OSError(
        f"{path.parent}: this file system overwrites where a file should only be created if it is absent, so builders "
        "could destroy each other's work. Build on a local disk and copy the finished index there."
    )


@contextlib.contextmanager
def temporary(directory: Location) -> Iterator[Path]:
    """Yield a path of this machine for a file that `move` then puts into `directory`; removed if still there."""
    if isinstance(directory, Path):
        path = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="gradindex-") as folder:
            yield Path(folder) / "part"


def is_temporary(path: Location) -> bool:
    """Whether a killed process may have left this file of `temporary`."""
    return path.name.startswith(_TEMPORARY)


def move(written: Path, path: Location) -> None:
    """Put a finished file of `temporary` at `path`, durably; what is there is replaced."""
    if isinstance(path, Path):
        sync(written)
        os.replace(written, path)
    else:
        path.fs.put_file(str(written), path.key)


def remove_tree(path: Location) -> None:
    """Delete a directory and what is below, if it is there."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.fs.rm(path.key, recursive=True)


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sync(path)


def digest(path: Location) -> str:
    """Return the sha256 of a file's contents."""
    with path.open("rb") if isinstance(path, Path) else path.fs.open(path.key, "rb", cache_type="none") as file:
        sha256 = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def cache() -> Path:
    """Return the directory of what this machine keeps, ``$GRADINDEX_CACHE`` or ``~/.cache/gradindex``."""
    return Path(os.environ.get("GRADINDEX_CACHE") or Path.home() / ".cache" / "gradindex")


def local(path: Location, size: int, sha256: str) -> Path:
    """Return a path of this machine with the file's contents, of which size and sha256 are known.

    A remote file is copied once into the `cache`, under its sha256. It holds ``$GRADINDEX_CACHE_BYTES`` (20 GiB),
    and more only of what was asked for in the last ten minutes.

    Raises
    ------
    DamagedIndexError
        If a remote file is not what it should be.
    """
    if isinstance(path, Path):
        return path
    cached = cache() / sha256
    with contextlib.suppress(FileNotFoundError):
        if cached.stat().st_size == size:
            os.utime(cached)
            return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    _make_room(cached.parent, size)
    with temporary(cached.parent) as part:
        _download(path, part, size, sha256)
        os.replace(part, cached)
    return cached


def _download(path: RemotePath, part: Path, size: int, sha256: str) -> None:
    found, left = hashlib.sha256(), size
    with path.fs.open(path.key, "rb", cache_type="none") as source, part.open("wb") as target:
        while left and (chunk := source.read(min(_CHUNK, left))):
            found.update(chunk)
            target.write(chunk)
            left -= len(chunk)
    if left or found.hexdigest() != sha256:
        raise DamagedIndexError(f"{path} is damaged: its contents do not match the sha256 in its manifest.")


def _make_room(cache: Path, size: int) -> None:
    """Delete what was not asked for the longest, until `size` more bytes fit."""
    room = int(os.environ.get("GRADINDEX_CACHE_BYTES") or _CACHE_BYTES) - size
    files = []
    for file in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                files.append((file.stat().st_mtime, file.stat().st_size, file))
    used = sum(bytes_ for _, bytes_, _ in files)
    for asked, bytes_, file in sorted(files):
        if used <= room or time.time() - asked < _IN_USE:
            break
        file.unlink(missing_ok=True)
        used -= bytes_
