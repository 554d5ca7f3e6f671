"""Replacing an index: the new one is built beside it, and takes its place when it is finished."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.runtime.log import log
from gradindex.store import Header, Store, disk, locks
from gradindex.store.layout import strangers
from gradindex.store.location import Location, exists, listing, make_directory, remove_tree
from gradindex.store.manifest import read_json
from gradindex.store.store import HEADER


def begin(out: Location) -> bool:
    """Whether there is an index at `out` to replace.

    Where a replacement was killed between its two renames, the old index is put back first.

    Raises
    ------
    ValueError
        If the index lies on an object store, where a directory cannot be renamed, or is a mount point.
    IndexExistsError
        If something else lies in its directory, which would be deleted with it.
    """
    if not isinstance(out, Path):
        if exists(out / HEADER):
            raise ValueError(f"{out} cannot be replaced: object stores rename nothing. Delete it, or build elsewhere.")
        return False
    if not exists(out) and exists(_replaced(out)):
        disk.rename(_replaced(out), out.resolve())
        disk.sync(out.resolve().parent)
    if not exists(out / HEADER):
        return False
    if os.path.ismount(out):
        raise ValueError(f"{out} cannot be replaced: it is a mount point. Build into a directory within it.")
    _refuse_strangers(out)
    return True


def _refuse_strangers(out: Path) -> None:
    if others := strangers(out):
        names = ", ".join(one.name for one in others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise IndexExistsError(
            f"{out} holds {names} besides the index, which would be deleted with it: move that elsewhere, and run this "
            "again."
        )


@contextlib.contextmanager
def replacement(out: Path, header: Header) -> Iterator[Store]:
    """Yield the store that is to replace `out`, which it does when the block ends without an error.

    An unfinished one of the same job is continued, one of another job deleted.

    Raises
    ------
    IndexExistsError
        If another process is building one.
    OSError
        If the old index cannot be renamed; it is then as it was.
    """
    read_json(out / HEADER)  # replace an index, and nothing that is not one
    place, new = out.resolve(), aside(out)
    store = None
    while store is None:
        with _only_builder(new):
            store = _begun(new, header)
            if store is None:
                _set_aside(new, place)
            else:
                yield store
                _put(new, place)
        _delete_old(place)


def discard(out: Path) -> None:
    """Delete an unfinished replacement of `out`; raises IndexExistsError if another process is building it."""
    place, new = out.resolve(), aside(out)
    with _only_builder(new):
        _set_aside(new, place)
    _delete_old(place)


def aside(out: Location) -> Path:
    """Return where the index that is to replace `out` is built."""
    place = Path(out).resolve()
    return place.with_name(f".{place.name}.building")


def _replaced(out: Path) -> Path:
    """Return where the old index is for the moment between two renames, where it cannot be exchanged in one step."""
    place = out.resolve()
    return place.with_name(f".{place.name}.replaced")


def _begun(new: Path, header: Header) -> Store | None:
    """Return the store in `new`; None if it is of another job, or an index that was replaced."""
    try:
        store = Store.create(new, header)
    except (MismatchError, DamagedIndexError):
        return None
    return None if store.state.number else store


def _put(new: Path, place: Path) -> None:
    """Let a finished index change places with the old one, which is then set aside."""
    with locks.alone(place, wait=True):  # for as long as the old one is where others look for one that is being built
        _refuse_strangers(place)  # that came meanwhile
        try:
            old = _exchange(new, place)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The index cannot be renamed ({error.strerror}), as if it were a mount point. It is as it was; the "
                f"new one is in {new}",
                str(place),
            ) from error
        disk.sync(place.parent)
        _set_aside(old, place)


def _exchange(new: Path, place: Path) -> Path:
    """Put `new` in its place, and return where the old one is now."""
    try:
        disk.exchange(new, place)
        return new
    except OSError as error:
        if error.errno not in disk.UNSUPPORTED:
            raise
    old = _replaced(place)
    remove_tree(old)  # left by a kill after the second renaming
    disk.rename(place, old)
    try:
        disk.rename(new, place)
    except BaseException:
        disk.rename(old, place)
        raise
    return old


def _set_aside(directory: Path, place: Path) -> None:
    """Give a directory that is to be deleted a name of its own, so that others do not look into it."""
    disk.rename(directory, place.with_name(f".{place.name}.old-{secrets.token_hex(8)}"))


def _delete_old(place: Path) -> None:
    """Delete what was set aside, also by processes that were killed then."""
    for one in listing(place.parent):
        if one.name.startswith(f".{place.name}.old-"):
            try:
                remove_tree(one)
            except OSError as error:
                log.warning("%s could not be deleted and is not needed any more: %s", one, error)


@contextlib.contextmanager
def _only_builder(new: Path) -> Iterator[None]:
    """Make a directory and keep other builds out of it; raises IndexExistsError if there is one in it."""
    with contextlib.ExitStack() as stack:
        inside = False
        while not inside:
            make_directory(new)
            try:
                stack.enter_context(locks.alone(new))
                inside = True
            except FileNotFoundError:  # another process has put it in its place
                continue
            except BlockingIOError:
                raise IndexExistsError(
                    f"Another process builds what is to replace this index, in {new}. Wait until it has done so."
                ) from None
        yield
