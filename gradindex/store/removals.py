"""Tombstones: numbered files of removed ids, each created once and never changed, so that readers need no lock.

A reader that opened the store before a removal keeps what it saw. Each file names the one before it, so that a missing
one is noticed, except for the last.
"""

from itertools import count

import numpy as np

from gradindex.batches import Ids
from gradindex.errors import DamagedIndexError
from gradindex.store.location import Location, is_temporary, listing
from gradindex.store.manifest import publish, read_json, seal

DIRECTORY = "removals"
_IDS_PER_FILE = 1_000_000


def file(store: Location, number: int) -> Location:
    """Return the path of the tombstones number 1, 2, ..."""
    return store / DIRECTORY / f"{number:06}.json"


def read(store: Location, store_seal: str) -> tuple[Ids, int, str]:
    """Return the removed ids, how many files name them, and the seal of the last one.

    Raises
    ------
    DamagedIndexError
        If a file is damaged, belongs to another store, or is missing while a later one is there.
    """
    found, before = [np.empty(0, np.int64)], ""
    for number in count(1):
        path = file(store, number)
        if not path.exists():
            _refuse_later(store, number)
            return np.concatenate(found), number - 1, before
        saved = read_json(path)
        ids = saved.get("ids")
        place = saved.get("store"), saved.get("number"), saved.get("before")
        if place != (store_seal, number, before) or not isinstance(ids, list):
            raise DamagedIndexError(f"{path} is not the next list of removals of this store.")
        if not all(isinstance(one, int) and 0 <= one < 2**63 for one in ids):
            raise DamagedIndexError(f"{path} is damaged: expected ids ≥ 0.")
        found.append(np.array(ids, np.int64))
        before = seal(saved)
    raise AssertionError  # unreachable: numbers do not end


def write(store: Location, store_seal: str, ids: Ids) -> None:
    """Publish tombstones of `ids`, behind those that other processes may publish meanwhile."""
    (store / DIRECTORY).mkdir(exist_ok=True)
    for begin in range(0, len(ids), _IDS_PER_FILE):
        part = ids[begin : begin + _IDS_PER_FILE].tolist()
        while True:
            _, number, before = read(store, store_seal)
            value = {"store": store_seal, "number": number + 1, "before": before, "ids": part}
            try:
                publish(file(store, number + 1), value)
                break
            except FileExistsError:
                continue


def _refuse_later(store: Location, missing: int) -> None:
    directory = store / DIRECTORY
    known = {file(store, number).name for number in range(1, missing)}
    for path in listing(directory):
        # One that was published since the reader looked is no gap.
        if path.name not in known and not is_temporary(path) and not file(store, missing).exists():
            raise DamagedIndexError(f"{path} belongs to no manifest of this index: {file(store, missing)} is missing.")
