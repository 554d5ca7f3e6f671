"""Where a store lies: a directory of this machine, or a URL that fsspec knows (``s3://bucket/index``).

The one module that knows the difference. A directory is a `pathlib.Path`; anything else is a `RemotePath`, which has
the few methods of Path that a store needs (`gradindex.store.remote`). What differs is in the functions: publishing is a
hard link here and a create-if-absent there; files are mapped where they lie here, and from a local cache
(`gradindex.store.cache`) there.

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
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradindex.store import disk, remote
from gradindex.store.remote import RemotePath, again

NO_FILE = "not a plain file"
CHUNK = 8 << 20
_TEMPORARY = ".tmp-"
Location = Path | RemotePath


def locate(path: Any) -> Location:
    """Return where a path or URL leads: ``protocol://…`` to a `RemotePath`, except ``file://…``.

    Paths are made absolute, so that they lead to the same place when the working directory is another one; one that
    begins with ``~`` is in a home directory.

    Raises
    ------
    ValueError
        If a URL has one slash, as `pathlib.Path` leaves it, or names a file of another machine; if a path is empty or
        not UTF-8.
    """
    if isinstance(path, RemotePath):
        return path
    text = os.fsdecode(path)
    if not isinstance(path, Path):
        if text.lower().startswith("file:/"):
            text = _file_of_url(text)
        elif "://" in text:
            return RemotePath(text.rstrip("/"))
    if not text:
        raise ValueError("The path is empty: name a directory, such as 'runs/digits'.")
    first = text.partition("/")[0]
    if "/" in text and first.endswith(":") and len(first) > 2 and not Path(first).exists():
        if isinstance(path, Path):
            raise ValueError(f"{text!r} was a URL before it became a pathlib.Path: give the URL as a string.")
        raise ValueError(f"{text!r} is a URL with one slash too few: type {first}//{text[len(first) :].lstrip('/')}.")
    found = Path(os.path.expanduser(text)).absolute()
    try:
        str(found).encode()
    except UnicodeEncodeError:
        raise ValueError(f"The path {str(found)!r} is not UTF-8, which FAISS and Arrow need: rename it.") from None
    return found


def _file_of_url(url: str) -> str:
    """Return the path that a URL ``file:///path`` or ``file:/path`` names, with its %20 as spaces."""
    place = urllib.parse.urlsplit(url, allow_fragments=False)
    path = place.path + (f"?{place.query}" if place.query else "")
    if place.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ValueError(
            f"{url!r} names a file of the machine {place.netloc!r}: type file:///PATH, with three slashes."
        )
    return urllib.parse.unquote(path)


def on_disk(path: object, what: str) -> Path:
    """Return a path of this machine; raises ValueError for a URL, saying that `what` takes none."""
    found = locate(path)
    if not isinstance(found, Path):
        raise ValueError(f"{what} takes a path on this machine, got {found}. Give a path, and copy from or to there.")
    return found


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
        return path.kind()
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_directory(path: Location) -> None:
    """Make a directory and those above it, durably, where they are missing.

    Object stores, whose interface is asynchronous, have none.

    Raises
    ------
    FileExistsError
        If there is a file.
    """
    if not isinstance(path, Path):
        if not getattr(path.fs, "fs", path.fs).async_impl:  # the one behind a cache
            again(lambda: path.fs.makedirs(path.key, exist_ok=True))
        return
    if not is_directory(path.parent):
        make_directory(path.parent)
    while not is_directory(path):
        try:
            disk.mkdir(path)
            disk.sync(path.parent)
            return
        except FileExistsError:
            if path.is_symlink() and not exists(path):
                there = path.readlink()
                raise FileNotFoundError(
                    errno.ENOENT, f"This is a link to {there}, which is not there. Make that directory first", str(path)
                ) from None
            if exists(path) and not is_directory(path):  # else another process has just made it, or moved it away
                raise


def size(path: Location) -> int:
    """Return a file's size in bytes; raises FileNotFoundError if there is none, or only a link, pipe or directory."""
    if isinstance(path, Path):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, NO_FILE, str(path))
        return status.st_size
    found = again(lambda: path.fs.info(path.key))
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
        keys = again(lambda: directory.fs.ls(directory.key, detail=False))
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
    else:
        remote.create(path, data)


def replace(path: Location, data: bytes) -> None:
    """Write a file durably, in the place of the one there: readers see the old or the new one, whole."""
    if isinstance(path, Path):
        with temporary(path.parent) as part:
            _write(part, data)
            disk.rename(part, path)
        disk.sync(path.parent)
    else:
        again(lambda: path.fs.pipe_file(path.key, data))


def append_line(path: Path, line: bytes) -> None:
    """Write a line behind the last one of a file, durably. The caller keeps other writers out, see `locks.alone`.

    What a killed writer left of a line is ended first, so that it spoils no other.
    """
    there = exists(path)
    disk.append(path, (b"\n" if there and _is_torn(path) else b"") + line + b"\n")
    disk.sync(path)
    if not there:
        disk.sync(path.parent)


def _is_torn(path: Path) -> bool:
    """Whether a file's last line has no end."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


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
        again(lambda: path.fs.put_file(str(written), path.key))


def unlink(path: Location) -> None:
    """Delete a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        if isinstance(path, Path):
            disk.unlink(path)
        else:
            again(lambda: path.fs.rm_file(path.key))


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
            again(lambda: path.fs.rm(path.key, recursive=True))


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
        again(lambda: source.fs.get_file(source.key, str(target)))


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
