"""Whitened rows of a store: a store of their own within its directory, made from its rows alone, without the model."""

import contextlib
import dataclasses
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.ann import build as indexing
from gradindex.ann import files as index_files
from gradindex.ann import plan as index_plan
from gradindex.defaults import BLOCK_ROWS, INDEX, SEED, WHITENED_BITS, WHITENED_DIMS
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.lifecycle import add, compact
from gradindex.runtime.interrupts import explain_full_disk, stop_on_sigterm
from gradindex.runtime.log import log
from gradindex.runtime.progress import Bar, progress_bar
from gradindex.search.whitened import Whitened, place_of, whitener_of, write_spectrum
from gradindex.sketch.base import blocks as blocks_of
from gradindex.sketch.whitening import WHITENED, Spectrum, Whitener, spectrum
from gradindex.store import Header, Rows, Store, locks
from gradindex.store import replace as store_replace
from gradindex.store.codes import BITS, RowType
from gradindex.store.layout import PARTS, WHITENED_ROWS
from gradindex.store.location import Location, exists, locate, make_directory, remove_tree
from gradindex.store.shard import SHARD_BYTES
from gradindex.store.store import HEADER

_MISSING, _UNFINISHED, _DAMAGED, _SOUND = "missing", "unfinished", "damaged", "sound"
SAMPLE = 1 << 17
"""Rows that the second moment is taken from, at most: of 1,024 numbers, 128 a number."""


def whiten(
    path: str | Location,
    *,
    damping: float | None = None,
    dims: int = WHITENED_DIMS,
    bits: int = WHITENED_BITS,
    index: str = INDEX,
    sample: int = SAMPLE,
    progress: bool | None = None,
) -> Whitened:
    """Whiten the rows of a finished store; see `gradindex.Index.whiten`."""
    damping = None if damping is None else _number(damping)
    dims, sample = _count("dims", dims), _count("sample", sample)
    if bits not in (4, 8):
        raise ValueError(f"A number of a whitened row has 4 or 8 bits, got {bits!r}.")
    parent = Store.open(path)
    refuse_metric(parent)
    rows = _alive(parent)
    found = _spectrum(parent, rows, sample)
    dampings = found.dampings(damping)
    place = place_of(parent)
    about = {"damping": damping, "asked": dims, "sample": sample, "index": index}
    header = _header(parent, len(rows), found.whitener(dampings, dims).width, bits, about)
    index_plan.plan(header, index)  # a mistake here should not cost the rows
    with stop_on_sigterm(), explain_full_disk(lambda: "the same call whitens the rows anew"), _alone(place):
        if _state(place) == _SOUND and store_replace.begin(place):
            with store_replace.replacement(Path(place), header) as store:
                _fill(parent, rows, store, found, dampings, index, progress)
        else:
            _fill(parent, rows, _begin(place, header), found, dampings, index, progress)
    if found.largest_share > 0.1:
        log.warning("one sample makes %.0f %% of the second moment's trace", 100 * found.largest_share)
    return Whitened.open(parent)


def follow(path: str | Location, *, progress: bool | None = None) -> None:
    """Give the whitened rows of a store, if it has some, the samples that were added, and drop what it compacted away.

    They are whitened as the others were; how many came since is said by `Whitened.added`.
    """
    if not exists(locate(path) / WHITENED_ROWS / HEADER):
        return
    parent = Store.open(path)
    try:
        _follow(parent, progress)
    except (DamagedIndexError, MismatchError) as error:  # the store itself has changed as it was to
        log.warning("the whitened rows were not brought up to date (%s): repair the index, or whiten it again", error)


def _follow(parent: Store, progress: bool | None) -> None:
    place = place_of(parent)
    if _state(place) == _MISSING:
        return
    store = Whitened.open(parent).store
    rows = _alive(parent)
    new = rows[~store.holds(parent.ids[rows])]
    if len(new):
        part = _part(store, parent, len(new))
        with progress_bar("Whitening", len(new), show=progress) as advance:
            _write(parent, new, part, whitener_of(store), advance)
        add.publish(store, part)
        store = Store.open(place)
    gone = store.ids[~parent.holds(store.ids)]
    if len(gone := np.setdiff1d(gone, store.state.removed)):
        store.remove(gone)
        compact.compact(place, progress=progress)


def repair(path: str | Location) -> bool:
    """Make the whitened rows of a store anew if they are damaged, with their options; whether that was so."""
    parent = Store.open(path)
    place = place_of(parent)
    if not exists(place):
        return False
    about: dict[str, Any] = {}
    bits = WHITENED_BITS
    try:
        header = Header.read(place / HEADER)
        about, bits = header.sketch, BITS[RowType(header.row_type)]
        if _state(place) != _SOUND or about.get("of") != parent.header.seal:
            about = {}
        else:
            Whitened.open(parent).check()
            return False
    except (DamagedIndexError, FileNotFoundError) as error:
        log.info("the whitened rows are made again: %s", error)
    remove_tree(place)
    whiten(
        path,
        damping=about.get("damping"),
        dims=about.get("asked", WHITENED_DIMS),
        bits=bits,
        index=about.get("index", INDEX),
        sample=about.get("sample", SAMPLE),
    )
    return True


def refuse_metric(store: Store) -> None:
    """Raise ValueError if the rows of a store are a metric's and no gradients."""
    if store.header.metric is not None:
        name = store.header.metric["name"]
        raise ValueError(f"This index holds rows of the metric {name!r}: only gradients are whitened.")


def _alive(store: Store) -> NDArray[np.int64]:
    return np.arange(len(store)) if store.alive is None else np.flatnonzero(store.alive)


def _spectrum(parent: Store, rows: NDArray[np.int64], sample: int) -> Spectrum:
    """Return the second moment's decomposition, from at most `sample` of the rows, evenly spaced."""
    norms = parent.norms[rows].astype(np.float64)
    largest = float(norms.max(initial=0)) or 1.0
    scale = largest * float(np.sqrt(np.mean((norms / largest) ** 2)))
    some = rows if len(rows) <= sample else rows[np.linspace(0, len(rows) - 1, sample).astype(np.int64)]
    sizes = blocks_of(parent.header.sketch, parent.header.dim)

    def blocks() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        for begin in range(0, len(some), BLOCK_ROWS):
            here = some[begin : begin + BLOCK_ROWS]
            yield parent.gather(here), parent.norms[here]
            parent.release()

    return spectrum(blocks(), sizes, scale or 1.0)


def _header(parent: Store, rows: int, width: int, bits: int, asked: dict[str, Any]) -> Header:
    state = f"{parent.state.rows_seal[:16]} {parent.state.last[:16]}"
    about = {"kind": WHITENED, "dim": width, "of": parent.header.seal, "state": state, **asked}
    return Header(
        rows=rows,
        shard_rows=max(1, SHARD_BYTES // width),
        dim=width,
        sketch=about,
        seed=SEED,
        batch_size=1,
        task="none",
        backend="none",
        parameters=[],
        state=[],
        versions={},
        row_type=next(kind for kind, count in BITS.items() if count == bits),
    )


def _state(place: Location) -> str:
    """Return whether whitened rows are missing, unfinished, damaged or sound, as far as a look at them tells."""
    if not exists(place / HEADER):
        return _MISSING
    try:
        store = Store(place, Header.read(place / HEADER))
        return _UNFINISHED if store.missing() or not index_files.exists(store) else _SOUND
    except DamagedIndexError:
        return _DAMAGED


@contextlib.contextmanager
def _alone(place: Location) -> Iterator[None]:
    """Keep other processes from whitening the same rows; raises IndexExistsError if one does."""
    if not isinstance(place, Path):
        yield
        return
    make_directory(place.parent)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.alone(place.parent))
        except BlockingIOError:
            raise IndexExistsError(f"Another process whitens these rows, in {place}. Wait until it has.") from None
        yield


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def _number(value: object) -> float:
    try:
        found = float("nan") if isinstance(value, bool) else float(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        found = float("nan")
    if not 0 < found < float("inf"):
        raise ValueError(f"damping must be a positive number, got {value!r}.")
    return found


def _begin(place: Location, header: Header) -> Store:
    """Begin the store of whitened rows, or take up one that was begun with the same rows and options."""
    try:
        return Store.create(place, header)
    except (MismatchError, DamagedIndexError):
        remove_tree(place)
        return Store.create(place, header)


def _fill(
    parent: Store,
    rows: NDArray[np.int64],
    store: Store,
    found: Spectrum,
    dampings: tuple[float, ...],
    index: str,
    progress: bool | None,
) -> None:
    write_spectrum(store, found, dampings)
    with progress_bar("Whitening", len(rows), show=progress) as advance:
        _write(parent, rows, store, whitener_of(store), advance)
    with progress_bar("Indexing", len(rows), show=progress) as advance:
        indexing.build(store, index, 0, advance)


def _write(parent: Store, rows: NDArray[np.int64], store: Store, whitener: Whitener, advance: Bar) -> None:
    """Publish the shards of a store of whitened rows that are missing."""
    for number in range(store.header.shards):
        start, stop = store.header.span(number)
        if not store.has(number):
            store.write(number, _shard(parent, rows[start:stop], whitener, RowType(store.header.row_type)))
        advance(stop - start)


def _shard(parent: Store, rows: NDArray[np.int64], whitener: Whitener, kind: RowType) -> Rows:
    kept = np.empty((len(rows), kind.stored(whitener.width)), kind.dtype)
    lengths = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), BLOCK_ROWS):
        here = slice(begin, begin + BLOCK_ROWS)
        white, lengths[here] = whitener(parent.gather(rows[here]), parent.norms[rows[here]])
        kept[here] = kind.quantize(white)
        parent.release()
    return Rows(kept, lengths, parent.ids[rows], {})


def _part(store: Store, parent: Store, rows: int) -> Store:
    """Begin the part of rows that were added since, or take up one that was begun."""
    origin = f"whitened {parent.state.rows_seal} {parent.state.last}"
    first = store.state.positions
    header = dataclasses.replace(store.header, rows=rows, first=first, origin=origin)
    return Store.create(store.path / PARTS / header.part, header)
