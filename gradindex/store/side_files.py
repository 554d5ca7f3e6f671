"""Side files of a store: named arrays that belong to its sketch, published like shards and read with suspicion.

``assets/<name>.json`` names the store by its seal and the ``.npy`` files by size and sha256.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.errors import DamagedIndexError
from gradindex.store import location
from gradindex.store.location import Location, listing, temporary
from gradindex.store.manifest import keep, publish, read_entries, read_json, refuse_extra

DIRECTORY = "assets"


def manifest_path(store: Location, name: str) -> Location:
    """Return the path of an asset's manifest."""
    return store / DIRECTORY / f"{name}.json"


def exists(store: Location, name: str) -> bool:
    """Whether the asset is published."""
    return location.exists(manifest_path(store, name))


def write(
    store: Location, seal: str, name: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any] | None = None
) -> None:
    """Publish arrays by their kinds, with JSON-ready facts `about` them; what is already published stands.

    Parameters
    ----------
    store
        The store's directory.
    seal
        The seal of its header.
    name
        Name of the asset.
    arrays
        Arrays of numbers.
    about
        Anything that belongs to them.
    """
    directory = store / DIRECTORY
    location.make_directory(directory)
    files = {}
    for kind, array in arrays.items():
        with temporary(directory) as part:
            with part.open("wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            files[kind] = vars(keep(part, directory, f"{name}.<tag>.{kind}.npy"))
    saved = {"store": seal, "asset": name, "about": dict(about or {}), "files": files}
    try:
        publish(manifest_path(store, name), saved)
    except FileExistsError:
        return


def read(store: Location, seal: str, name: str, kinds: set[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays of an asset by kind, and what was said about them.

    Raises
    ------
    DamagedIndexError
        If a file is missing or not what its manifest says, or the asset belongs to another store.
    """
    path = manifest_path(store, name)
    saved = read_json(path)
    about = saved.get("about")
    if (saved.get("store"), saved.get("asset")) != (seal, name) or not isinstance(about, dict):
        raise DamagedIndexError(f"{path} is not of this store.")
    arrays = {}
    for kind, entry in read_entries(saved, path, kinds).items():
        file = entry.local(path.parent)
        try:
            arrays[kind] = np.array(
                np.load(file, mmap_mode="r", allow_pickle=False)
            )  # refuses sizes that are not there
        except (ValueError, EOFError, OverflowError) as error:
            raise DamagedIndexError(f"{file} is damaged: {error}") from None
    return arrays, about


def check(store: Location, seal: str) -> None:
    """Compare the sha256 of every asset's files, and look for others.

    Raises
    ------
    DamagedIndexError
        Naming the first that differs, or that no manifest names.
    """
    known = set()
    manifests = [path for path in listing(store / DIRECTORY) if path.name.endswith(".json")]
    for path in manifests:
        saved = read_json(path)
        files = saved.get("files")
        if saved.get("store") != seal or not isinstance(files, dict):
            raise DamagedIndexError(f"{path} is not of this store.")
        entries = read_entries(saved, path, set(files))
        known |= {path.name, *(entry.check_contents(path.parent).name for entry in entries.values())}
    refuse_extra(store / DIRECTORY, known)
