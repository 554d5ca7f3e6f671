"""The store: a header and published shards, read as one table of rows."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gradindex.data.columns import common_schema
from gradindex.data.source import Ids
from gradindex.data.table import Columns
from gradindex.defaults import BLOCK_ROWS
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.store import changes, location, side_files
from gradindex.store.arrays import as_rows, check_signed
from gradindex.store.changes import Part, State
from gradindex.store.codes import RowType
from gradindex.store.differences import compare, model_differences
from gradindex.store.layout import AUDIT, PARTS, SHARDS, WATCH, strangers
from gradindex.store.location import Location, is_temporary, listing, locate
from gradindex.store.manifest import HEADER, Header, publish, read_json, refuse_extra
from gradindex.store.shard import Rows, Shard, manifest_path, write_shard

_IDS_PER_CHANGE = 1_000_000


class Store:
    """Gradient embeddings on disk.

    Use `Store.create` to build one and `Store.open` to read one. A row is a place in the store; its id is the
    dataset position. A store that is open stays as it was then, whatever others add, remove or compact.

    Parameters
    ----------
    path
        Where it lies.
    header
        Its header.
    state
        The state to see; None: the last one.
    """

    def __init__(self, path: str | Location, header: Header, state: State | None = None) -> None:
        self.path = locate(path)
        self.header = header
        self._given = state

    @classmethod
    def create(cls, path: str | Location, header: Header) -> "Store":
        """Start a store at `path`, or continue the same one.

        Raises
        ------
        IndexExistsError
            If `path` is a file, or holds something that is not a store.
        MismatchError
            If it holds a store of something else; the message names the differences.
        """
        path = locate(path)
        if location.exists(path) and not location.is_directory(path):
            raise IndexExistsError(f"{path} is a file; give a directory.")
        if any(not is_temporary(p) for p in listing(path)) and not location.exists(path / HEADER):
            raise IndexExistsError(f"{path} is not empty and holds no gradindex store; give another directory.")
        location.make_directory(path)
        try:
            publish(path / HEADER, header.to_json())  # first: whatever else is here, a killed build may have left
        except FileExistsError:
            saved = Header.read(path / HEADER)
            differences = compare(saved, header)
            if differences:
                raise MismatchError(
                    f"{path} already holds an index of something else: {'; '.join(differences)}. "
                    "Give another directory, or overwrite it (overwrite=True, --overwrite)."
                ) from None
            header = saved  # shards name the header they were begun with
        location.make_directory(path / SHARDS)
        return cls(path, header)

    @classmethod
    def open(cls, path: str | Location) -> "Store":
        """Open a complete store for reading.

        Raises
        ------
        FileNotFoundError
            If there is none.
        DamagedIndexError
            If it is incomplete, or a file is missing or of another size than its manifest says; `check` compares
            contents.
        """
        given, path = path, locate(path)
        if not location.exists(path / HEADER):
            raise FileNotFoundError(
                f"{given} holds no gradindex index ({HEADER} is missing). Next: gradindex build MODULE:FUNCTION {given}"
            )
        while True:
            store = cls(path, Header.read(path / HEADER))
            try:
                store._map()
                return store
            except DamagedIndexError:
                if store.is_last():  # else a compaction deleted what this state was made of, or the store was replaced
                    raise

    def _map(self) -> None:
        """Map every file, after comparing its size; raises DamagedIndexError."""
        missing = self.missing()
        if missing:
            raise DamagedIndexError(
                f"{self.path} is incomplete: {len(missing)} of {self.header.shards} shards are missing "
                f"(the first is {SHARDS}/{missing[0]:06d}.json). Run the same build again to continue."
            )
        _ = self.shards, self.alive
        if self.header.backend != "none" and not 0 <= self.ids.min() <= self.ids.max() < self.state.positions:
            raise DamagedIndexError(
                f"{self.path} is damaged: it has ids from {self.ids.min()} to {self.ids.max()}, of "
                f"{self.state.positions} samples."
            )

    @cached_property
    def state(self) -> State:
        """What this store was made of and what was removed when it was opened."""
        return self._given or changes.read(self.path, self.header)

    def is_last(self) -> bool:
        """Whether nothing was changed since this was opened, and no other store took its place."""
        if Header.read(self.path / HEADER).seal != self.header.seal:
            return False
        return changes.read(self.path, self.header).number == self.state.number

    def __len__(self) -> int:
        return self.state.rows

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not published yet, of a store that is being built."""
        if self.state.number:  # only what is complete is changed
            return []
        return [number for number in range(self.header.shards) if not self.has(number)]

    def has(self, number: int) -> bool:
        """Whether a shard is published."""
        return location.exists(manifest_path(self.path / SHARDS, number))

    def write(self, number: int, rows: Rows) -> None:
        """Publish a shard."""
        write_shard(self.path / SHARDS, number, rows, self.header)

    def part(self, part: Part) -> "Store":
        """Return a part as a store of its own: rows that were built, added or compacted together.

        Raises
        ------
        DamagedIndexError
            If its header is missing or that of something else.
        """
        alone = State(0, "", (Part("", part.seal, part.rows),), part.rows)
        if not part.name:
            return Store(self.path, self.header, alone)
        path = self.path / PARTS / part.name
        header = Header.read(path / HEADER)
        if (header.seal, header.rows, header.dim) != (part.seal, part.rows, self.header.dim):
            raise DamagedIndexError(f"{path / HEADER} is not the header of that part of this store.")
        return Store(path, header, alone)

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards of all parts in order, mapped into memory."""
        found, offset = [], 0
        for one in map(self.part, self.state.parts):
            found += [Shard(one.path / SHARDS, n, one.header, offset) for n in range(one.header.shards)]
            offset += one.header.rows
        return found

    @cached_property
    def _starts(self) -> Ids:
        return np.array([shard.start for shard in self.shards], np.int64)

    @cached_property
    def alive(self) -> NDArray[np.bool_] | None:
        """Which rows are not removed, (rows,) bool, as of when this was opened; None if all are there."""
        return self._alive(self.state)

    def _alive(self, state: State) -> NDArray[np.bool_] | None:
        mask = ~np.isin(self.ids, state.removed)
        return None if mask.all() else mask

    def remove(self, ids: ArrayLike) -> int:
        """Remove samples: no search finds them any more, here and in stores opened from now on.

        What was opened before keeps finding them. Their rows stay on disk.

        Parameters
        ----------
        ids
            Dataset positions, (c,) integers; those that are removed already are left out.

        Returns
        -------
        int
            How many were removed.

        Raises
        ------
        IndexError
            If an id is not in the store.
        TypeError
            If `ids` are not integers.
        ValueError
            If nothing would be left.
        """
        wanted = np.atleast_1d(np.asarray(ids))
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise TypeError(f"Expected ids (c,) of integers, got {wanted.dtype} of shape {wanted.shape}.")
        check_signed(wanted, len(self))
        wanted = np.setdiff1d(wanted.astype(np.int64), self.state.removed)
        self.rows_of(wanted)
        state, gone = self.state, 0
        for begin in range(0, len(wanted), _IDS_PER_CHANGE):
            new: list[int] = []

            def change(state: State, begin: int = begin, new: list[int] = new) -> dict[str, Any] | None:
                some = wanted[begin : begin + _IDS_PER_CHANGE]
                new[:] = np.setdiff1d(some, state.removed).tolist()  # others may have removed some
                if len(new) + len(state.removed) == state.positions:
                    raise ValueError(f"All {state.positions} samples would be removed; delete {self.path} instead.")
                return {"kind": "remove", "ids": new[:]} if new else None

            state = changes.commit(self.path, self.header, change)
            gone += len(new)
        self.alive = self._alive(state)
        return gone

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """Exact norms of all gradients, (rows,) float32."""
        return np.concatenate([shard.norms for shard in self.shards])

    @cached_property
    def orders(self) -> dict[tuple[str, float], NDArray[Any]]:
        """Orders of all rows, and bounds, that searches keep, by purpose and eps."""
        return {}

    @cached_property
    def ids(self) -> Ids:
        """Dataset positions of all rows, (rows,) int64."""
        return np.concatenate([shard.ids for shard in self.shards])

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that every shard has (loss; label and prediction where they are scalars)."""
        found = common_schema([shard.schema for shard in self.shards])
        if lost := sorted({*self.header.columns} - {*found.names}):
            raise DamagedIndexError(f"{self.path} is damaged: no shard has the columns {lost} that its header names.")
        return found

    def table(self, shard: Shard) -> pa.Table:
        """Return a shard's columns, in the types that those of all shards have."""
        return shard.table().select(self.schema.names).cast(self.schema)

    @cached_property
    def columns(self) -> Columns:
        """The columns that every shard has, each (rows,) when it is asked for; `Columns.table` has them as stored."""
        return Columns(pa.concat_tables(map(self.table, self.shards)).combine_chunks(), (len(self),))

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum(shard.bytes for shard in self.shards)

    def blocks(self, size: int = BLOCK_ROWS, first: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, sketches (≤ size, dim) float32) over all rows in order, or those from `first` on."""
        for shard in self.shards:
            for begin in range(max(0, first - shard.start), len(shard), size):
                stop = min(begin + size, len(shard))
                yield shard.start + begin, shard.read(begin, stop)
            shard.release()  # or a scan would seem to take as much memory as the store

    def release(self) -> None:
        """Let go of the pages of sketches that were read; see `Shard.release`."""
        for shard in self.shards:
            shard.release()

    def gather(self, rows: Ids) -> NDArray[np.float32]:
        """Return the sketches of some rows, (n, dim) float32 of unit norm."""
        out = np.empty((len(rows), self.header.dim), np.float32)
        return RowType(self.header.row_type).dequantize(self.kept(rows), out)

    def kept(self, rows: Ids) -> NDArray[Any]:
        """Return the sketches of some rows (n, …) as they are stored, see `gradindex.store.codes`."""
        kind, numbers = RowType(self.header.row_type), np.searchsorted(self._starts, rows, "right") - 1
        out = np.empty((len(rows), kind.stored(self.header.dim)), kind.dtype)
        for number in np.unique(numbers):
            here, shard = np.flatnonzero(numbers == number), self.shards[number]
            out[here] = shard.take(rows[here] - shard.start)
        return out

    def rows_of(self, ids: Ids) -> Ids:
        """Return the rows of some ids.

        Raises
        ------
        IndexError
            If an id is not in the store.
        """
        check_signed(ids, len(self))
        rows = self._nearest_rows(ids)
        bad = ids[self.ids[rows] != ids]
        if len(bad):
            raise IndexError(f"Ids {bad[:5].tolist()} are out of range for an index of {len(self)} samples.")
        return rows.astype(np.int64)

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Return whether there are rows of these ids, (n,)."""
        return self.ids[self._nearest_rows(ids)] == ids  # type: ignore[no-any-return]

    def _nearest_rows(self, ids: Ids) -> NDArray[np.intp]:
        place = np.searchsorted(self.ids, ids, sorter=self._order)
        return self._order[np.minimum(place, len(self) - 1)]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.ids, kind="stable")

    def check(self) -> None:
        """Compare the sha256 of every file, and look for files that do not belong here.

        Parts that no change names yet are left out: another process may be adding them.

        Raises
        ------
        DamagedIndexError
            Naming the first file that differs, or that no manifest names.
        """
        for shard in self.shards:
            shard.check()
        for one in map(self.part, self.state.parts):
            refuse_extra(one.path / SHARDS, one.files())
            if one.path != self.path:
                refuse_extra(one.path, {HEADER, SHARDS, WATCH})
            records = {manifest_path(one.path / WATCH, number).name for number in range(one.header.shards)}
            refuse_extra(one.path / WATCH, records)
            _ = [read_json(path) for path in listing(one.path / WATCH) if path.name in records]
        if all(part.name for part in self.state.parts):
            refuse_extra(self.path / SHARDS, set())
        last = changes.read(self.path, self.header)
        refuse_extra(self.path / changes.DIRECTORY, {changes.HEAD, *map(changes.name, range(1, last.number + 1))})
        side_files.check(self.path, self.header.seal)
        if location.exists(self.path / AUDIT):
            read_json(self.path / AUDIT)
        if others := strangers(self.path):
            raise DamagedIndexError(f"{others[0]} belongs to no manifest of this index: move it away.")

    def files(self) -> set[str]:
        """Names of all files in the directory of shards that belong there."""
        return set().union(*(shard.files for shard in self.shards))

    @classmethod
    def from_arrays(
        cls,
        sketch: NDArray[np.generic],
        ids: NDArray[np.generic],
        norms: NDArray[np.generic],
        path: str | Location,
        *,
        columns: object = None,
        shard_rows: int | None = None,
    ) -> "Store":
        """Write a store of embeddings that were computed elsewhere; `gradindex.index_store` gives it an index.

        `gradindex.load` then answers `search`, `self_influence` and lookups by id; `explain` needs a job.

        Parameters
        ----------
        sketch, ids, norms
            Embeddings (n, dim) of any scale, stored as float16 rows of unit norm; distinct integers ≥ 0 (n,); norms of
            the unprojected gradients (n,), where unknown those of `sketch`.
        path
            A directory, new or empty.
        columns, shard_rows
            More columns of n entries, as a `gradindex.Job` takes them; rows of a shard, None: as many as 128 MiB hold.

        Raises
        ------
        ValueError
            If shapes disagree, ids repeat, are negative or 2**63 and more, or numbers are not finite in float32.
        IndexExistsError
            If `path` holds anything.
        """
        header, shards = as_rows(sketch, ids, norms, columns, shard_rows)
        if location.exists(locate(path) / HEADER):
            raise IndexExistsError(f"{path} already holds a gradindex store; give another directory.")
        store = cls.create(path, header)
        for number, rows in enumerate(shards):
            store.write(number, rows)
        return cls.open(path)


__all__ = ["HEADER", "Store", "compare", "model_differences", "refuse_extra"]
