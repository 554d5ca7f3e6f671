"""Side files of a store: named arrays that belong to its sketch, published like shards and read with suspicion.

``assets/<name>.json`` names the store by its seal and the ``.npy`` files by size and sha256.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.errors import DamagedIndexError
from gradindex.store import location
from gradindex.store.location import Location, listing, temporary, unlink
from gradindex.store.manifest import keep, publish, read_entries, read_json, refuse_extra

DIRECTORY = "assets"


def manifest_path(store: Location, name: str) -> Location:
    """Return the path of an asset's manifest."""
    return store / DIRECTORY / f"{name}.json"


def exists(store: Location, name: str) -> bool:
    """Whether the asset is published."""
    return location.exists(manifest_path(store, name))


def write(
    store: Location,
    seal: str,
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    about: Mapping[str, Any] | None = None,
    *,
    replace: bool = False,
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
    replace
        Take the place of what is published, whose files are deleted.
    """
    directory = store / DIRECTORY
    before = _files_of(manifest_path(store, name)) if replace else set()
    location.make_directory(directory)
    files = {}
    for kind, array in arrays.items():
        with temporary(directory) as part:
            with part.open("wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            files[kind] = vars(keep(part, directory, f"{name}.<tag>.{kind}.npy"))
    saved = {"store": seal, "asset": name, "about": dict(about or {}), "files": files}
    if not replace:
        with contextlib.suppress(FileExistsError):
            publish(manifest_path(store, name), saved)
        return
    publish(manifest_path(store, name), saved, replace=True)
    for old in before - {entry["name"] for entry in files.values()}:
        unlink(directory / old)


def _files_of(path: Location) -> set[str]:
    """Return the names of the files that a manifest names; none if it is missing or damaged."""
    try:
        files = read_json(path).get("files")
        return {entry.name for entry in read_entries({"files": files}, path, set(files or ())).values()}
    except (DamagedIndexError, TypeError):
        return set()


def sweep(store: Location, seal: str, disposable: str) -> list[str]:
    """Delete damaged assets whose names begin with `disposable`, and files that none names; return their names."""
    directory = store / DIRECTORY
    removed, known = [], set()
    for path in listing(directory):
        if not (path.name.startswith(disposable) and path.name.endswith(".json")):
            continue
        try:
            saved = read_json(path)
            entries = read_entries(saved, path, set(saved.get("files") or ()))
            if saved.get("store") != seal:
                raise DamagedIndexError(f"{path} is not of this store.")
            known |= {path.name, *(entry.check_contents(directory).name for entry in entries.values())}
        except (DamagedIndexError, TypeError):
            unlink(path)
            removed.append(path.name)
    for path in listing(directory):
        if path.name.startswith(disposable) and path.name not in known | set(removed):
            unlink(path)
            removed.append(path.name)
    return removed


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
