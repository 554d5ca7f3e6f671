"""Files beside a store that are not part of it: what people decided, and what can be made again.

They lie in ``<name>.review`` next to the store's directory, so that the store's seals, its checks and its replacement
leave them alone. The name of each says what it belongs to: decisions a store, by the seal of its header, since ids mean
the same samples as long as it lives; what is computed a state of a store, and how it was computed.
"""

from pathlib import Path

from gradindex.store import Store
from gradindex.store.location import Location, listing, make_directory, on_disk, replace, unlink
from gradindex.store.manifest import seal

_TAG = 16  # hexadecimal digits


def directory(store: Location) -> Path:
    """Return the directory of the files beside a store.

    Raises
    ------
    ValueError
        If the store is behind a URL.
    """
    place = on_disk(store, "A review's directory")
    return place.with_name(f"{place.name}.review")


def generation(store: Store) -> str:
    """Return the name of a store's state: other samples, other rows or other removals have another one."""
    return store.state.last or store.header.seal


def tag(store: Store, made: dict[str, object]) -> str:
    """Return what names a file that was computed from a state of a store, by what it was `made` with."""
    return seal({"generation": generation(store), **made})[:_TAG]


def decisions_path(folder: Path, store: Store) -> Path:
    """Return where the decisions on a store's samples are kept."""
    return folder / f"decisions.{store.header.seal[:_TAG]}.jsonl"


def publish(folder: Path, name: str, data: bytes) -> Path:
    """Write ``<kind>.<tag>.<suffix>`` whole, and delete the others of that kind, which were made of other states."""
    make_directory(folder)
    replace(folder / name, data)
    kind, _, _ = name.partition(".")
    for one in listing(folder):
        if one.name.startswith(f"{kind}.") and one.name != name:
            unlink(one)
    return folder / name
