"""Copies that this machine keeps of remote files, by their sha256."""

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from gradindex.errors import DamagedIndexError
from gradindex.runtime.log import log
from gradindex.store import disk
from gradindex.store.location import CHUNK, Location, temporary
from gradindex.store.remote import RemotePath

_BYTES = 20 << 30
_IN_USE = 600  # seconds for which the cache keeps what was asked for, however full it is
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def directory() -> Path:
    """Return the directory of what this machine keeps, ``$GRADINDEX_CACHE`` or ``~/.cache/gradindex``.

    Raises
    ------
    OSError
        If there is no home directory.
    """
    if given := os.environ.get("GRADINDEX_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "gradindex"
    except RuntimeError as error:
        raise OSError(f"{error} Set GRADINDEX_CACHE to a directory for copies of remote files.") from None


def local(path: Location, size: int, sha256: str) -> Path:
    """Return a path of this machine with the file's contents, of which size and sha256 are known.

    A remote file is copied once into the cache, under its sha256. It holds ``$GRADINDEX_CACHE_BYTES`` (20 GiB),
    and more only of what was asked for in the last ten minutes. Where the home directory is unknown or cannot be
    written to, copies last as long as the process.

    Raises
    ------
    DamagedIndexError
        If a remote file is not what it should be.
    OSError
        If the cache is full, or ``$GRADINDEX_CACHE`` cannot be written to.
    """
    if isinstance(path, Path):
        return path
    folder = _folder()
    cached = folder / sha256
    with contextlib.suppress(FileNotFoundError):
        if cached.stat().st_size == size:
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(cached)
            return cached
    _make_room(folder, size)
    try:
        with temporary(folder) as part:
            _download(path, part, size, sha256)
            disk.sync(part)  # or a loss of power could leave a file of this size with other contents
            disk.rename(part, cached)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno, f"{folder} has no room for {path} ({size:,} bytes). Set GRADINDEX_CACHE to another directory"
        ) from error
    return cached


def _folder() -> Path:
    try:
        folder = directory()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if os.environ.get("GRADINDEX_CACHE"):
            raise
        return _of_this_process(str(error))
    return folder if os.access(folder, os.W_OK | os.X_OK) else _of_this_process(f"{folder} cannot be written to")


@functools.cache
def _of_this_process(reason: str) -> Path:
    folder = tempfile.mkdtemp(prefix="gradindex-cache-")
    log.warning("remote files are copied to %s until this process ends (%s)", folder, reason)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _download(path: RemotePath, part: Path, size: int, sha256: str) -> None:
    found, left = hashlib.sha256(), size
    with path.fs.open(path.key, "rb", cache_type="none") as source, part.open("wb") as target:
        while left and (chunk := source.read(min(CHUNK, left))):
            found.update(chunk)
            target.write(chunk)
            left -= len(chunk)
    if left or found.hexdigest() != sha256:
        raise DamagedIndexError(f"{path} is damaged: its contents do not match the sha256 in its manifest.")


def _make_room(folder: Path, size: int) -> None:
    """Delete what was not asked for the longest, until `size` more bytes fit."""
    room = int(os.environ.get("GRADINDEX_CACHE_BYTES") or _BYTES) - size
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                files.append((file.stat().st_mtime, file.stat().st_size, file))
    used = sum(bytes_ for _, bytes_, _ in files)
    for asked, bytes_, file in sorted(files):
        if used <= room or time.time() - asked < _IN_USE:
            break
        file.unlink(missing_ok=True)
        used -= bytes_
