"""Replacing an index: the new one is built beside it, and takes its place when it is finished."""

import shutil
from pathlib import Path

from gradindex.errors import MismatchError
from gradindex.store import Header, Store
from gradindex.store.location import Location
from gradindex.store.manifest import read_json
from gradindex.store.store import HEADER


def begin(out: Location) -> bool:
    """Whether there is an index at `out` to replace.

    Where a replacement was killed between its two renames, the old index is put back first.

    Raises
    ------
    ValueError
        If the index lies on an object store, where a directory cannot be renamed.
    """
    if not isinstance(out, Path):
        if (out / HEADER).exists():
            raise ValueError(f"{out} cannot be replaced: object stores rename nothing. Delete it, or build elsewhere.")
        return False
    if not out.exists() and _replaced(out).exists():
        _replaced(out).rename(out.resolve())
    return (out / HEADER).exists()


def beside(out: Location, header: Header) -> Store:
    """Return the store that is to replace `out`; an unfinished one of the same job is continued."""
    read_json(out / HEADER)  # replace an index, and nothing that is not one
    new = aside(out)
    try:
        return Store.create(new, header)
    except MismatchError:
        shutil.rmtree(new)
        return Store.create(new, header)


def finish(out: Location) -> None:
    """Put the finished index that lies beside `out` in its place; see `begin` for a kill between the renames."""
    place = Path(out).resolve()
    old = _replaced(place)
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    aside(place).rename(place)
    shutil.rmtree(old)


def aside(out: Location) -> Path:
    """Return where the index that is to replace `out` is built."""
    place = Path(out).resolve()
    return place.with_name(f".{place.name}.building")


def _replaced(out: Path) -> Path:
    place = out.resolve()
    return place.with_name(f".{place.name}.replaced")
