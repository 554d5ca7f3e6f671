"""Compaction: what is not removed is written anew, and takes the place of all parts there are at once."""

import dataclasses

import numpy as np
import pyarrow as pa

from gradindex.ann import build as indexing
from gradindex.ann import files as index_files
from gradindex.compute import watch
from gradindex.errors import MismatchError
from gradindex.lifecycle.clean_up import settle
from gradindex.runtime.interrupts import explain_full_disk, stop_on_sigterm
from gradindex.runtime.log import log
from gradindex.runtime.progress import progress_bar
from gradindex.store import Rows, Store, changes
from gradindex.store.changes import Part, State
from gradindex.store.layout import PARTS
from gradindex.store.location import Location


def compact(path: str | Location, *, progress: bool | None = None) -> int:
    """Rewrite a store without the rows that were removed, and its parts as one; see `gradindex.compact`."""
    store = Store.open(path)
    rows = np.arange(len(store)) if store.alive is None else np.flatnonzero(store.alive)
    if len(rows) == len(store) and len(store.state.parts) == 1:
        settle(store)
        return 0
    part = _part(store, len(rows))

    def state() -> str:
        return f"{part.header.shards - len(part.missing())} of {part.header.shards} shards are written"

    with stop_on_sigterm(), explain_full_disk(state):
        with progress_bar("Compacting", len(rows), show=progress) as advance:
            for number in range(part.header.shards):
                here = rows[slice(*part.header.span(number))]
                if not part.has(number):
                    part.write(number, _rows(store, here))
                advance(len(here))
        watch.save(part.path, 0, watch.of_store(store))
        _publish(store, part)
    settle(Store(store.path, store.header))
    return len(store) - len(rows)


def _part(store: Store, rows: int) -> Store:
    """Begin the part that is to replace all those of a state, or take up one that was begun."""
    header = dataclasses.replace(
        store.header, rows=rows, origin=f"compacted {store.state.rows_seal} {store.state.last}"
    )
    return Store.create(store.path / PARTS / header.part, header)


def _rows(store: Store, rows: np.ndarray) -> Rows:
    """Return stored rows as they are, with their columns."""
    tables = []
    for shard in store.shards:
        here = rows[(rows >= shard.start) & (rows < shard.stop)]
        if len(here):
            tables.append(store.table(shard).take(pa.array(here - shard.start)))
    table = pa.concat_tables(tables)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return Rows(store.kept(rows), store.norms[rows], store.ids[rows], columns)


def _publish(store: Store, part: Store) -> None:
    """Put a finished part in the place of those it was made of, behind changes that others make meanwhile."""
    old, number = store.state.parts, store.state.number
    new = Part(part.header.part, part.header.seal, part.header.rows, number)
    change = {"kind": "compact", "part": new.name, "header": new.seal, "rows": new.rows}
    change |= {"at": number, "replaces": [one.name for one in old]}

    def make(state: State) -> dict[str, object] | None:
        if new in state.parts:
            return None
        if state.parts[: len(old)] != old:
            raise MismatchError(f"Another process compacted {store.path} meanwhile.")
        after = Store(store.path, store.header, dataclasses.replace(state, parts=(new, *state.parts[len(old) :])))
        before = Store(store.path, store.header, state)
        if not index_files.exists(after):
            _index(after, index_files.saved_factory(before))
        return change

    changes.commit(store.path, store.header, make)


def _index(store: Store, wanted: str) -> None:
    try:
        indexing.build(store, wanted, store.header.seed)
    except ValueError as error:  # fewer rows than lists
        log.warning("%s; 'auto' is taken instead", error)
        indexing.build(store, "auto", store.header.seed)
