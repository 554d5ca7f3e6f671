"""Choosing, building, saving and opening a FAISS index over a store's rows. Disposable: the store is the truth."""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.ann import blas, operating_point
from gradindex.ann.choice import FLAT_ROWS as FLAT_ROWS
from gradindex.ann.choice import choose_index
from gradindex.ann.files import read
from gradindex.ann.operating_point import Point
from gradindex.ann.selection import Selection
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.sketch import from_json
from gradindex.sketch.countsketch import fold
from gradindex.store import Header, Store, changes, location
from gradindex.store.location import Location, listing, make_directory, temporary, unlink
from gradindex.store.publish import FileEntry, keep, publish, read_entries, read_json, refuse_extra
from gradindex.store.shard import normalise

library: Any = faiss
_FOLD = re.compile(r"Fold(\d+),(.+)", re.DOTALL)
_TRAIN_ROWS_PER_LIST, _TRAIN_BLOCK = 64, 16384
DIRECTORY, MANIFEST = "index", "index.json"


@dataclass(frozen=True)
class Searcher:
    """A FAISS index whose vectors are a store's rows folded to `dim` numbers and normalised.

    `factory` is FAISS's factory string, `file` the name of the file, which its contents give it; `found` is what
    searches found out about it. Searching is thread-safe.
    """

    index: Any
    factory: str
    dim: int
    bytes: int
    file: str
    found: dict[str, Any] = field(default_factory=dict, compare=False)

    def search(
        self,
        sketches: NDArray[np.float32],
        k: int,
        selection: Selection | None = None,
        point: Point | None = None,
        chosen: Any = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return inner products and rows (m, k) of the nearest vectors, descending; missing rows are −1.

        `selection`, or FAISS's own selector `chosen`, need an index that `filters`; `point` names search-time
        parameters.
        """
        queries = np.ascontiguousarray(normalise(fold(sketches, self.dim)))
        selector: Any = chosen
        if selection is not None:
            selector = library.IDSelectorBitmap(selection.bits)
        options = operating_point.build(self.index, point, selector, selection is not None and selection.everywhere)
        with blas.for_few():
            scores, rows = self.index.search(queries, k, params=options)
        if rows.max(initial=-1) >= self.index.ntotal:
            raise DamagedIndexError(f"The {self.factory} index is damaged: it holds rows from {self.index.ntotal} on.")
        return scores, rows

    @property
    def exact(self) -> bool:
        """Whether it holds the stored rows as they are."""
        return self.factory == "Flat"

    @cached_property
    def filters(self) -> bool:
        """Whether FAISS finds all of a few selected rows."""
        return operating_point.filters(self.index)

    @cached_property
    def _list_sizes(self) -> NDArray[np.int64]:
        ivf = inverted(self.index)
        return np.array([ivf.invlists.list_size(number) for number in range(ivf.nlist)] + [0])

    def scanned(self, sketches: NDArray[np.float32], point: Point | None = None) -> NDArray[np.int64]:
        """Return how many vectors a search for each of these compares (m,), −1 where FAISS does not tell."""
        ivf = inverted(self.index)
        if ivf is not None:
            queries = np.ascontiguousarray(normalise(fold(sketches, self.dim)))
            index = library.downcast_index(self.index)
            if isinstance(index, library.IndexRefine):
                index = library.downcast_index(index.base_index)
            for i in range(index.chain.size() if hasattr(index, "chain") else 0):
                queries = index.chain.at(i).apply(queries)
            _, lists = ivf.quantizer.search(queries, int((point or {}).get("nprobe", ivf.nprobe)))
            return self._list_sizes[lists].sum(axis=1)  # type: ignore[no-any-return]
        exhaustive = isinstance(self.index, faiss.IndexFlatCodes)
        return np.full(len(sketches), self.index.ntotal if exhaustive else -1, np.int64)


def probes(lists: int) -> int:
    """Return how many lists a search reads: a sixteenth, at least 8 (gradients cluster by class)."""
    return min(lists, max(8, lists // 16))


def training_rows(rows: int, lists: int) -> int:
    """Return how many of `rows` rows a quantiser of so many lists is trained on."""
    return min(rows, max(lists * _TRAIN_ROWS_PER_LIST, 4096))


def plan(header: Header, index: str, rows: int | None = None, memory: int | None = None) -> tuple[str, int]:
    """Return the factory string and width that `build` will use for `rows` (None: the header's), before there are any.

    Raises
    ------
    ValueError
        If FAISS does not know the string, or the rows cannot be folded to the width it begins with; if nothing fits
        `memory`, or it is given with a string.
    """
    able = foldable(header)
    if index == "auto":
        factory = choose_index(rows or header.rows, header.dim, foldable=able, memory=memory)
    elif memory is None:
        factory = index
    else:
        raise ValueError(f"index_memory={memory} is for index='auto'; {index!r} takes what it takes.")
    dim, inner = unfold(factory, header.dim)
    if header.dim % dim or (dim != header.dim and not able):
        kind = header.sketch["kind"]
        raise ValueError(f"{factory!r}: {kind} rows of {header.dim} numbers cannot be folded to {dim}.")
    _new(inner, dim)
    return factory, dim


def choose(rows: int, dim: int, able: bool) -> tuple[str, int]:
    """Return FAISS's own factory string and the width of its vectors for ``index='auto'``."""
    width, inner = unfold(choose_index(rows, dim, foldable=able), dim)
    return inner, width


def unfold(factory: str, dim: int) -> tuple[int, str]:
    """Return the width that a string such as ``'Fold256,IVF64,SQ8'`` names, else `dim`, and what is FAISS's own."""
    match = _FOLD.fullmatch(factory)
    return (int(match[1]), match[2]) if match and int(match[1]) else (dim, factory)


def add(index: Any, store: Store, dim: int, advance: Callable[[int], None], first: int = 0) -> None:
    """Add the rows of a store from `first` on, folded to `dim` numbers, to a trained index."""
    at_once: list[NDArray[np.float32]] = []
    for _, rows in store.blocks(first=first):
        vectors = as_vectors(rows, dim)
        if operating_point.grows(index):
            index.add(vectors)
        else:
            at_once.append(vectors)
        advance(len(rows))
    if at_once:
        index.add(np.concatenate(at_once))


def build(
    store: Store,
    index: str,
    seed: int,
    advance: Callable[[int], None] = lambda rows: None,
    adding: Callable[[Any, Store, int, Callable[[int], None]], None] = add,
) -> None:
    """Build and save the FAISS index of a store.

    Parameters
    ----------
    store
        A complete store.
    index
        ``'auto'`` or a FAISS factory string.
    seed
        Chooses the rows that a quantiser is trained on.
    advance
        Called with the number of rows added.
    adding
        Does what `add` does.

    Raises
    ------
    ValueError
        If FAISS does not know the string, or cannot train it on this many rows.
    """
    factory, dim = plan(store.header, index, len(store))
    built = _new(unfold(factory, dim)[1], dim)
    if not built.is_trained:
        _train(built, factory, store, dim, seed)
    adding(built, store, dim, advance)
    _save(store, built, factory)


def extend(before: Store, after: Store) -> None:
    """Save the index of `after`, which has the rows of `before` and more: that of `before` with those rows added.

    Raises
    ------
    DamagedIndexError
        If the index of `before` is damaged.
    """
    searcher = load(before, mapped=False)
    if operating_point.grows(searcher.index):
        add(searcher.index, after, searcher.dim, lambda rows: None, len(before))
        _save(after, searcher.index, searcher.factory)
    else:
        build(after, searcher.factory, after.header.seed)


def _save(store: Store, built: Any, factory: str) -> None:
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


def saved_entry(store: Store) -> FileEntry | None:
    """Return the entry of the saved index file, if a manifest of this store names one."""
    try:
        return _read(store)[1]
    except DamagedIndexError:
        return None


def annotate(store: Store, key: str, value: Any) -> None:
    """Keep a JSON-ready value in the manifest of the saved index; raises MismatchError if that is gone."""
    with changes.in_place(store.path, store.header):
        try:
            saved, _ = _read(store)
        except DamagedIndexError:
            if store.is_last():
                raise
            raise MismatchError("its rows were changed since it was opened: open it again") from None
        publish(manifest_path(store), {**saved, key: value}, replace=True)


def annotation(store: Store, key: str) -> Any:
    """Return what `annotate` kept, else None."""
    return _read(store)[0].get(key)


def foldable(header: Header) -> bool:
    """Whether a store's rows can be made narrower."""
    return header.backend != "none" and from_json(header.sketch).foldable


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


def delete(store: Store) -> None:
    """Delete the index over a store's rows, when they are no longer the last."""
    entry = saved_entry(store)
    unlink(manifest_path(store))
    if entry is not None and entry.name not in files(store):  # the same rows in other parts have the same index
        unlink(store.path / DIRECTORY / entry.name)


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
        saved, entry = _read(store)
        try:
            index = read(entry.local(directory, once=mapped), str(saved.get("factory")), mapped=mapped)
            break
        except DamagedIndexError:
            if _read(store)[1] == entry:  # else it was replaced while it was read
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


def _read(store: Store) -> tuple[dict[str, Any], FileEntry]:
    path = manifest_path(store)
    saved = read_json(path)
    if saved.get("store") != store.state.rows_seal:
        raise DamagedIndexError(f"{path} is not of this store.")
    return saved, read_entries(saved, path, {"faiss"})["faiss"]


def check(store: Store) -> None:
    """Compare the size and sha256 of the index where it lies; raises DamagedIndexError."""
    _, entry = _read(store)
    entry.check_contents(store.path / DIRECTORY)


def check_extra(store: Store) -> None:
    """Look for files in the index's directory that do not belong there; raises DamagedIndexError."""
    refuse_extra(store.path / DIRECTORY, files(store))


def files(store: Store) -> set[str]:
    """Return the names of all files that belong to an index, also of rows that are being added by another process."""
    known: set[str] = set()
    for path in listing(store.path / DIRECTORY):
        with contextlib.suppress(DamagedIndexError):
            if path.name.endswith(".json"):
                known |= {path.name, read_entries(read_json(path), path, {"faiss"})["faiss"].name}
    return known


def saved_factory(store: Store) -> str:
    """Return the factory string of the saved index; ``'auto'`` where its manifest is lost."""
    try:
        return str(_read(store)[0].get("factory", "auto"))
    except DamagedIndexError:
        return "auto"


def _new(factory: str, dim: int) -> Any:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ValueError(
            f"Unknown index {factory!r}. Expected 'auto' or a FAISS factory string of width {dim}, "
            "such as 'Flat', 'IVF256,SQ8' or 'HNSW32'."
        ) from None


def _train(index: Any, factory: str, store: Store, dim: int, seed: int) -> None:
    lists = getattr(inverted(index), "nlist", 256)
    size = training_rows(len(store), lists)
    chosen = np.sort(np.random.default_rng(seed).choice(len(store), size, replace=False))
    rows = np.empty((size, dim), np.float32)
    for at in range(0, size, _TRAIN_BLOCK):  # wide rows are folded before the next ones are read
        some = slice(at, at + _TRAIN_BLOCK)
        rows[some] = as_vectors(store.gather(chosen[some]), dim)
        store.release()
    try:
        index.train(rows)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"FAISS cannot train {factory!r} on {len(store)} rows: {reason}") from None


def as_vectors(rows: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return sketches as the index takes them: folded to `dim` numbers, of unit norm."""
    return np.ascontiguousarray(normalise(fold(rows, dim)))


def inverted(index: Any) -> Any:
    """Return the inverted file within an index, else None."""
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def _set_probes(index: Any) -> None:
    """Probe a sixteenth of the lists, at least 8: gradients cluster by class, a probe or two is too few."""
    ivf = inverted(index)
    if ivf is not None:
        ivf.nprobe = probes(ivf.nlist)
