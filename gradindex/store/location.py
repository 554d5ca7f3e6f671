"""Where a store lies: a directory of this machine, or a URL that fsspec knows (``s3://bucket/index``).

The one module that knows the difference. A directory is a `pathlib.Path`; anything else is a `RemotePath`, which has
the few methods of Path that a store needs. What differs is in the functions: publishing is a hard link here and a
create-if-absent there; files are mapped where they lie here, and from a local cache (`gradindex.store.cache`) there.

Only what is not there is missing: every other error of the machine is raised as it came.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from gradindex.store import disk

NO_FILE = "not a plain file"
CHUNK = 8 << 20
_TEMPORARY = ".tmp-"
_ATTEMPTS = 4
_WAIT = 0.1  # seconds before a remote file system is asked again; doubled each time
_FINAL = FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError
T = TypeVar("T")
_exclusive: set[tuple[Any, str]] = set()  # file systems and buckets that were seen to refuse a second creation


@dataclass(frozen=True)
class RemotePath:
    """A place on a file system of fsspec: `below` the one that `url` names, both without a slash at the end.

    A URL may be a chain, such as ``zip://index::s3://bucket/index.zip``: what is below does not stand at its end.
    """

    url: str
    below: str = ""

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
        found: str = self._found[1].rstrip("/")
        return f"{found}/{self.below}" if self.below else found

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.url, f"{self.below}/{name}" if self.below else name)

    def __str__(self) -> str:
        return f"{self.url}/{self.below}" if self.below else self.url

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not on this machine.")

    @property
    def name(self) -> str:
        """The last part."""
        return (self.below or self.url).rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """Everything but the last part."""
        if self.below:
            return RemotePath(self.url, self.below.rpartition("/")[0])
        return RemotePath(self.url.rpartition("/")[0])

    def read_bytes(self) -> bytes:
        """Return the file's contents; raises FileNotFoundError."""
        return bytes(_again(lambda: self.fs.cat_file(self.key)))


Location = Path | RemotePath


def locate(path: Any) -> Location:
    """Return where a path or URL leads: ``protocol://…`` to a `RemotePath`, except ``file://…``.

    Paths are made absolute, so that they lead to the same place when the working directory is another one.
    """
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    protocol, found, rest = text.partition("://")
    if found and not isinstance(path, Path) and protocol != "file":
        return RemotePath(text.rstrip("/"))
    return Path(rest if found and not isinstance(path, Path) else text).absolute()


def exists(path: Location) -> bool:
    """Whether there is a file or directory; raises OSError if that cannot be told."""
    return _kind(path) is not None


def is_directory(path: Location) -> bool:
    """Whether there is a directory, or anything below; raises OSError if that cannot be told."""
    return _kind(path) == "directory"


def _kind(path: Location) -> str | None:
    try:
        if isinstance(path, Path):
            return "directory" if stat.S_ISDIR(path.stat().st_mode) else "file"
        return str(_again(lambda: path.fs.info(path.key))["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_directory(path: Location) -> None:
    """Make a directory and those above it, durably, where they are missing; object stores have none.

    Raises
    ------
    FileExistsError
        If there is a file.
    """
    if not isinstance(path, Path):
        return
    if not is_directory(path.parent):
        make_directory(path.parent)
    try:
        disk.mkdir(path)
    except FileExistsError:
        if not is_directory(path):
            raise
    else:
        disk.sync(path.parent)


def _again(work: Callable[[], T]) -> T:
    """Ask a remote file system, several times if it fails in a way that may pass."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return work()
        except _FINAL:
            raise
        except OSError:
            time.sleep(_WAIT * 2**attempt)
    return work()


def size(path: Location) -> int:
    """Return a file's size in bytes; raises FileNotFoundError if there is none, or only a link, pipe or directory."""
    if isinstance(path, Path):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, NO_FILE, str(path))
        return status.st_size
    found = _again(lambda: path.fs.info(path.key))
    if found["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return int(found["size"])


def listing(directory: Location) -> list[Location]:
    """Return what is directly below a directory, sorted; nothing where there is none."""
    if isinstance(directory, Path):
        try:
            return [*sorted(directory.iterdir())]
        except (FileNotFoundError, NotADirectoryError):
            return []
    try:
        keys = _again(lambda: directory.fs.ls(directory.key, detail=False))
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
        If the file system does not keep to that.
    """
    if isinstance(path, Path):
        with temporary(path.parent) as part:
            _write(part, data)
            _name_new(part, path)
        disk.sync(path.parent)
        return
    _create_remote(path, data)
    _require_exclusive(path, data)


def replace(path: Location, data: bytes) -> None:
    """Write a file durably, in the place of the one there: readers see the old or the new one, whole."""
    if isinstance(path, Path):
        with temporary(path.parent) as part:
            _write(part, data)
            disk.rename(part, path)
        disk.sync(path.parent)
    else:
        _again(lambda: path.fs.pipe_file(path.key, data))


def save(path: Any, data: bytes) -> None:
    """Write a file that a user asked for: the one there is replaced when the new one is whole. Links are followed."""
    place = locate(path)
    if not isinstance(place, Path):
        replace(place, data)
    elif exists(place) and not place.is_file():
        place.write_bytes(data)  # a pipe or a device
    else:
        make_directory(place.resolve().parent)
        replace(place.resolve(), data)


def _name_new(part: Path, path: Path) -> None:
    """Give a flushed file a name that no other has: by a hard link, or else by a renaming that replaces nothing."""
    try:
        disk.link(part, path)
        return
    except OSError as error:
        if error.errno not in disk.UNSUPPORTED:
            raise
    try:
        disk.rename_new(part, path)
    except OSError as error:
        if error.errno not in disk.UNSUPPORTED:
            raise
        raise OSError(
            error.errno,
            "This file system has neither hard links nor renaming that replaces nothing, without which builders could "
            "destroy each other's work. Build on another disk, and copy the finished index there",
            str(path),
        ) from None


def _create_remote(path: RemotePath, data: bytes) -> None:
    """Create a file that is not there; where an error leaves open whether it was created, see who created it."""
    for attempt in range(_ATTEMPTS):
        try:
            return path.fs.pipe_file(path.key, data, mode="create")  # type: ignore[no-any-return]
        except FileExistsError as error:
            if attempt and path.read_bytes() == data:  # an attempt that failed after it had written
                return None
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        except OSError:  # servers differ in how they say it, and some ask to try again while others write
            if exists(path):
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
        _again(lambda: path.fs.pipe_file(path.key, data, mode="create"))
    except FileExistsError:
        _exclusive.add(place)
        return
    except OSError:  # servers differ in how they say it
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
            unlink(path)
    else:
        with tempfile.TemporaryDirectory(prefix="gradindex-") as folder:
            yield Path(folder) / "part"


def is_temporary(path: Location) -> bool:
    """Whether a killed process may have left this file of `temporary`."""
    return path.name.startswith(_TEMPORARY)


def move(written: Path, path: Location) -> None:
    """Put a finished file of `temporary` at `path`, durably; what is there is replaced."""
    if isinstance(path, Path):
        disk.sync(written)
        disk.rename(written, path)
        disk.sync(path.parent)
    else:
        _again(lambda: path.fs.put_file(str(written), path.key))


def unlink(path: Location) -> None:
    """Delete a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        if isinstance(path, Path):
            disk.unlink(path)
        else:
            _again(lambda: path.fs.rm_file(path.key))


def remove_tree(path: Location) -> None:
    """Delete a directory and what is below, if it is there; others may be deleting it, too."""
    with contextlib.suppress(FileNotFoundError):
        if isinstance(path, Path):
            for one in os.scandir(path):
                if one.is_dir(follow_symlinks=False):
                    remove_tree(path / one.name)
                else:
                    unlink(path / one.name)
            disk.rmdir(path)
        else:
            _again(lambda: path.fs.rm(path.key, recursive=True))


def copy_tree(source: Location, target: Path) -> None:
    """Copy a directory of files and what is below, durably, into one that is not there."""
    make_directory(target)
    for one in listing(source):
        if is_directory(one):
            copy_tree(one, target / one.name)
        else:
            with temporary(target) as part:
                _copy(one, part)
                move(part, target / one.name)


def _copy(source: Location, target: Path) -> None:
    if isinstance(source, Path):
        shutil.copyfile(source, target)
    else:
        _again(lambda: source.fs.get_file(source.key, str(target)))


def _write(path: Path, data: bytes) -> None:
    disk.write(path, [data])
    disk.sync(path)


def digest(path: Location) -> str:
    """Return the sha256 of a file's contents."""
    with path.open("rb") if isinstance(path, Path) else path.fs.open(path.key, "rb", cache_type="none") as file:
        sha256 = hashlib.sha256()
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()
