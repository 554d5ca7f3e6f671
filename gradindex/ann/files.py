"""The files of a store's FAISS index: saved, opened, checked. Disposable: the store is the truth."""

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

import faiss

from gradindex.ann.plan import probes
from gradindex.ann.searcher import Searcher, inverted
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.store import Store, changes, location
from gradindex.store.location import Location, listing, make_directory, temporary, unlink
from gradindex.store.manifest import FileEntry, keep, publish, read_entries, read_json, refuse_extra

library: Any = faiss
DIRECTORY, MANIFEST = "index", "index.json"
_READING = threading.Lock()
_SUFFIX = {"": 1, "k": 1 << 10, "M": 1 << 20}  # of a number of lists, in FAISS's factory strings


def save(store: Store, built: faiss.Index, factory: str) -> None:
    """Write a FAISS index and the manifest that names it; the file that it replaces is deleted."""
    directory = store.path / DIRECTORY
    make_directory(directory)
    with temporary(directory) as part:
        faiss.write_index(built, str(part))
        entry = keep(part, directory, "<tag>.faiss")
    place = {"store": store.state.rows_seal, "rows": len(store)}
    saved = {**place, "factory": factory, "dim": built.d, "files": {"faiss": vars(entry)}}
    before = saved_entry(store)
    publish(manifest_path(store), saved, replace=True)
    if before is not None and before.name != entry.name:
        unlink(directory / before.name)  # open indexes hold it in memory


def load(store: Store, *, mapped: bool = True) -> Searcher:
    """Open the saved index of a store.

    Parameters
    ----------
    store
        The store.
    mapped
        Leave codes on disk, mapped into memory. A large file is then hashed only if `seen` does not know it.

    Raises
    ------
    DamagedIndexError
        If a file is missing or damaged; it is checked against its sha256 before FAISS reads it.
    """
    directory = store.path / DIRECTORY
    while True:
        saved, entry = _manifest(store)
        try:
            index = read(entry.local(directory, once=mapped), str(saved.get("factory")), mapped=mapped)
            break
        except DamagedIndexError:
            if _manifest(store)[1] == entry:  # else it was replaced while it was read
                raise
    wanted = (saved.get("dim"), len(store))
    if (index.d, index.ntotal) != wanted or saved.get("rows") != len(store):
        raise DamagedIndexError(
            f"{directory / entry.name} is not the index of this store: expected width and rows {wanted}, "
            f"found {(index.d, index.ntotal)}."
        )
    _set_probes(index)
    return Searcher(index, str(saved.get("factory")), index.d, entry.bytes, entry.name)


def open_last(path: str | Location) -> tuple[Store, Searcher]:
    """Open the last state of a store with its index; raises like `Store.open` and `load`."""
    while True:
        store = Store.open(path)
        try:
            return store, load(store)
        except DamagedIndexError:
            if store.is_last():  # else its rows changed while their index was being opened
                raise


def exists(store: Store) -> bool:
    """Whether the store has an index."""
    return location.exists(manifest_path(store))


def manifest_path(store: Store) -> Location:
    """Return where the manifest of the index over a store's rows lies; there is one for every set of rows."""
    state = store.state
    name = MANIFEST if state.rows_seal == store.header.seal else f"{state.rows_seal[:16]}.json"
    return store.path / DIRECTORY / name


def names(store: Store) -> set[str]:
    """Return the names of the files of the index over a store's rows."""
    entry = saved_entry(store)
    return {manifest_path(store).name} | ({entry.name} if entry else set())


def files(store: Store, without: str = "") -> set[str]:
    """Return the names of all files that belong to an index, also of rows that are being added by another process.

    Of manifests, one may be left `without`.
    """
    known: set[str] = set()
    for path in listing(store.path / DIRECTORY):
        with contextlib.suppress(DamagedIndexError):
            if path.name.endswith(".json") and path.name != without:
                known |= {path.name, read_entries(read_json(path), path, {"faiss"})["faiss"].name}
    return known


def delete(store: Store) -> None:
    """Delete the index over a store's rows, when they are no longer the last.

    The manifest goes last: while it is there, whoever comes after a kill knows which file to delete.
    """
    entry, manifest = saved_entry(store), manifest_path(store)
    if entry is not None and entry.name not in files(store, manifest.name):  # the same rows in other parts have it, too
        unlink(store.path / DIRECTORY / entry.name)
    unlink(manifest)


def saved_entry(store: Store) -> FileEntry | None:
    """Return the entry of the saved index file, if a manifest of this store names one."""
    try:
        return _manifest(store)[1]
    except DamagedIndexError:
        return None


def size(store: Store) -> int:
    """Return the bytes of the saved index file, as its manifest has them; raises DamagedIndexError."""
    return _manifest(store)[1].bytes


def saved_factory(store: Store) -> str:
    """Return the factory string of the saved index; ``'auto'`` where its manifest is lost."""
    try:
        return str(_manifest(store)[0].get("factory", "auto"))
    except DamagedIndexError:
        return "auto"


def annotate(store: Store, key: str, value: object) -> None:
    """Keep a JSON-ready value in the manifest of the saved index; raises MismatchError if that is gone."""
    with changes.in_place(store.path, store.header):
        try:
            saved, _ = _manifest(store)
        except DamagedIndexError:
            if store.is_last():
                raise
            raise MismatchError("its rows were changed since it was opened: open it again") from None
        publish(manifest_path(store), {**saved, key: value}, replace=True)


def annotation(store: Store, key: str) -> Any:
    """Return what `annotate` kept, else None."""
    return _manifest(store)[0].get(key)


def check(store: Store) -> None:
    """Compare the size and sha256 of the index where it lies; raises DamagedIndexError."""
    _, entry = _manifest(store)
    entry.check_contents(store.path / DIRECTORY)


def check_extra(store: Store) -> None:
    """Look for files in the index's directory that do not belong there; raises DamagedIndexError."""
    refuse_extra(store.path / DIRECTORY, files(store))


def _manifest(store: Store) -> tuple[dict[str, Any], FileEntry]:
    path = manifest_path(store)
    saved = read_json(path)
    if saved.get("store") != store.state.rows_seal:
        raise DamagedIndexError(f"{path} is not of this store.")
    return saved, read_entries(saved, path, {"faiss"})["faiss"]


def _set_probes(index: faiss.Index) -> None:
    """Probe a sixteenth of the lists, at least 8: gradients cluster by class, a probe or two is too few."""
    ivf = inverted(index)
    if ivf is not None:
        ivf.nprobe = probes(ivf.nlist)


def read(path: Path, factory: str, *, mapped: bool) -> faiss.Index:
    """Return the index in a file, of which `factory` is FAISS's factory string.

    Raises
    ------
    DamagedIndexError
        If it is missing or none, or claims arrays that are larger than the file.
    OSError
        If the machine cannot read it.
    """
    with _READING:  # FAISS has one limit for all
        limit = faiss.get_deserialization_vector_byte_limit()
        try:
            path.open("rb").close()  # says what the machine refuses, which FAISS does not
            faiss.set_deserialization_vector_byte_limit(max(path.stat().st_size, 1 << 16, table_bytes(factory)))
            found: faiss.Index = library.read_index(str(path), library.IO_FLAG_MMAP_IFC if mapped else 0)
            return found
        except FileNotFoundError:
            raise DamagedIndexError(f"{path} is missing.") from None
        except (RuntimeError, MemoryError) as error:  # its sha256 is right, or was until it was deleted
            raise DamagedIndexError(f"{path} is damaged: {str(error).splitlines()[-1]}") from None
        finally:
            faiss.set_deserialization_vector_byte_limit(limit)


def table_bytes(factory: str) -> int:
    """Return more than the bytes of the table that FAISS counts for product quantisers of residuals (IVF…,PQ…).

    It holds a float for each list, part of a vector and code. It is not in the file, and larger than one of few rows.
    """
    lists = [int(count) * _SUFFIX[suffix] for count, suffix in re.findall(r"IVF(\d+)([kM]?)", factory)]
    codes = [int(parts) << int(bits or 8) for parts, bits in re.findall(r"PQ(\d+)(?:x(\d+))?", factory)]
    return 4 * max(lists, default=0) * max(codes, default=0) + 4
