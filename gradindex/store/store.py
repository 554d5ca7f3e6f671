"""The store: a header and published shards, read as one table of rows."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.batches import Ids
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.store import removals
from gradindex.store.columns import as_columns
from gradindex.store.location import Location, is_temporary, listing, locate
from gradindex.store.manifest import Header, publish
from gradindex.store.shard import Rows, Shard, manifest_path, normalise, write_shard

HEADER = "store.json"
SHARDS = "shards"
SHARD_BYTES = 128 << 20
PARTS = {HEADER, SHARDS, "index", "assets", removals.DIRECTORY, "audit.json"}


class Store:
    """Gradient embeddings on disk.

    Use `Store.create` to build one and `Store.open` to read one. A row is a place in the store; its id is the
    dataset position.
    """

    def __init__(self, path: str | Location, header: Header) -> None:
        self.path = locate(path)
        self.header = header

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
        if path.exists() and not path.is_dir():
            raise IndexExistsError(f"{path} is a file; give a directory.")
        strangers = any(not is_temporary(p) for p in listing(path))
        if strangers and not (path / HEADER).exists():
            raise IndexExistsError(f"{path} is not empty and holds no gradindex store; give another directory.")
        path.mkdir(parents=True, exist_ok=True)
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
        (path / SHARDS).mkdir(exist_ok=True)
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
        path = locate(path)
        if not (path / HEADER).exists():
            raise FileNotFoundError(f"{path} holds no gradindex index ({HEADER} is missing).")
        store = cls(path, Header.read(path / HEADER))
        missing = store.missing()
        if missing:
            raise DamagedIndexError(
                f"{path} is incomplete: {len(missing)} of {store.header.shards} shards are missing "
                f"(the first is {SHARDS}/{missing[0]:06d}.json). Run the same build again to continue."
            )
        _ = store.shards, store.alive  # maps every file, after comparing its size; and what is removed by now
        return store

    def __len__(self) -> int:
        return self.header.rows

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not published yet."""
        return [number for number in range(self.header.shards) if not self.has(number)]

    def has(self, number: int) -> bool:
        """Whether a shard is published."""
        return manifest_path(self.path / SHARDS, number).exists()

    def write(self, number: int, rows: Rows) -> None:
        """Publish a shard."""
        write_shard(self.path / SHARDS, number, rows, self.header)

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards in order, mapped into memory."""
        return [Shard(self.path / SHARDS, number, self.header) for number in range(self.header.shards)]

    @cached_property
    def alive(self) -> NDArray[np.bool_] | None:
        """Which rows are not removed, (rows,) bool, as of when this was opened; None if nothing is."""
        ids, files, _ = removals.read(self.path, self.header.seal)
        if not files:
            return None
        mask = np.ones(len(self), bool)
        try:
            mask[self.rows_of(ids)] = False
        except IndexError as error:
            raise DamagedIndexError(f"{self.path / removals.DIRECTORY} is damaged: {error}") from None
        return mask

    def remove(self, ids: Any) -> int:
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
        rows = self.rows_of(np.unique(wanted).astype(np.int64))
        now = Store(self.path, self.header).alive  # others may have removed some since
        mask = np.ones(len(self), bool) if now is None else now
        rows = rows[mask[rows]]
        if len(rows) == mask.sum():
            raise ValueError(f"All {len(self)} samples would be removed; delete {self.path} instead.")
        if len(rows):
            removals.write(self.path, self.header.seal, self.ids[rows])
        self.__dict__.pop("alive", None)  # read anew, with what others have removed
        return len(rows)

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """Exact norms of all gradients, (rows,) float32."""
        return np.concatenate([shard.norms for shard in self.shards])

    @cached_property
    def orders(self) -> dict[tuple[str, float], Ids]:
        """Orders of all rows that searches keep, by kernel and eps."""
        return {}

    @cached_property
    def ids(self) -> Ids:
        """Dataset positions of all rows, (rows,) int64."""
        return np.concatenate([shard.ids for shard in self.shards])

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns that every shard has (loss; label and prediction where they are scalars), each (rows,)."""
        parts = [shard.columns() for shard in self.shards]
        names = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum(shard.bytes for shard in self.shards)

    def blocks(self, size: int = 16384) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, sketches (≤ size, dim) float32) over all rows in order."""
        for shard in self.shards:
            for begin in range(0, len(shard), size):
                stop = min(begin + size, len(shard))
                yield shard.start + begin, shard.read(begin, stop).astype(np.float32)

    def gather(self, rows: Ids) -> NDArray[np.float32]:
        """Return the sketches of some rows, (n, dim) float32."""
        out = np.empty((len(rows), self.header.dim), np.float32)
        number = rows // self.header.shard_rows
        for shard in np.unique(number):
            here = number == shard
            out[here] = self.shards[shard].take(rows[here] - self.shards[shard].start)
        return out

    def rows_of(self, ids: Ids) -> Ids:
        """Return the rows of some ids.

        Raises
        ------
        IndexError
            If an id is not in the store.
        """
        place = np.searchsorted(self.ids, ids, sorter=self._order)
        rows = self._order[np.minimum(place, len(self) - 1)]
        bad = ids[self.ids[rows] != ids]
        if len(bad):
            raise IndexError(f"Ids {bad[:5].tolist()} are out of range for an index of {len(self)} samples.")
        return rows.astype(np.int64)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.ids, kind="stable")

    def check(self) -> None:
        """Compare the sha256 of every file, and look for files that do not belong here.

        Raises
        ------
        DamagedIndexError
            Naming the first file that differs, or that no manifest names.
        """
        for shard in self.shards:
            shard.check()
        known = set().union(*(shard.files for shard in self.shards))
        refuse_extra(self.path / SHARDS, known)
        removals.read(self.path, self.header.seal)
        refuse_extra(self.path, PARTS)

    @classmethod
    def from_arrays(
        cls,
        sketch: NDArray[Any],
        ids: NDArray[Any],
        norms: NDArray[Any],
        path: str | Location,
        *,
        columns: Any = None,
        shard_rows: int | None = None,
    ) -> "Store":
        """Write a store of embeddings that were computed elsewhere.

        Give it an index with `gradindex.index_store`, and open it with `gradindex.load`: it answers `search`,
        `self_influence` and lookups by id; `explain` needs a job, which it does not have.

        Parameters
        ----------
        sketch
            Embeddings (n, dim), any scale; unit-norm rows are stored, in float16.
        ids
            Distinct integers ≥ 0, (n,).
        norms
            Norms of the unprojected gradients, (n,); where unknown, give those of `sketch`.
        path
            A directory, new or empty.
        columns
            More columns of n entries: a mapping of names to sequences, a DataFrame or an Arrow table.
        shard_rows
            Rows of a shard; None: as many as 128 MiB hold.

        Raises
        ------
        ValueError
            If shapes disagree, ids repeat or are negative, or anything holds NaN or infinity.
        IndexExistsError
            If `path` holds anything.
        """
        sketch, ids, norms = np.asarray(sketch), np.asarray(ids), np.asarray(norms)
        _check_arrays(sketch, ids, norms)
        every = as_columns(columns, len(ids))
        header = Header(
            rows=len(ids),
            shard_rows=shard_rows or max(1, SHARD_BYTES // (2 * sketch.shape[1])),
            dim=sketch.shape[1],
            sketch={"kind": "arrays", "dim": sketch.shape[1]},
            seed=0,
            batch_size=1,
            task="none",
            backend="none",
            parameters=[],
            state=[],
            versions={},
            columns=sorted(every),
        )
        if (locate(path) / HEADER).exists():
            raise IndexExistsError(f"{path} already holds a gradindex store; give another directory.")
        store = cls.create(path, header)
        for number in range(header.shards):
            here = slice(*header.span(number))
            rows = normalise(sketch[here]).astype(np.float16)
            some = {name: values[here.start : here.stop] for name, values in every.items()}
            store.write(number, Rows(rows, norms[here].astype(np.float32), ids[here].astype(np.int64), some))
        return cls.open(path)


def _check_arrays(sketch: NDArray[Any], ids: NDArray[Any], norms: NDArray[Any]) -> None:
    if sketch.ndim != 2 or not sketch.size or ids.shape != sketch.shape[:1] or norms.shape != ids.shape:
        raise ValueError(
            "Expected sketch (n, dim), ids (n,) and norms (n,) of at least one row, "
            f"got {sketch.shape}, {ids.shape} and {norms.shape}."
        )
    if ids.dtype.kind not in "iu" or (ids < 0).any() or len(np.unique(ids)) < len(ids):
        raise ValueError("ids must be distinct integers ≥ 0.")
    if not (np.isfinite(sketch).all() and np.isfinite(norms).all()) or (norms < 0).any():
        raise ValueError("sketch and norms must be finite, and norms not negative.")


def refuse_extra(directory: Location, known: set[str]) -> None:
    """Raise DamagedIndexError if there is a file that is neither `known` nor a killed build's temporary one."""
    for path in listing(directory):
        if path.name not in known and not is_temporary(path):
            raise DamagedIndexError(f"{path} belongs to no manifest of this index; gradindex repair removes it.")


def compare(saved: Header, wanted: Header) -> list[str]:
    """Return what differs between two headers, in words; empty if they describe the same store."""
    return model_differences(saved, wanted) + [
        f"{name} is {getattr(saved, name)!r}, not {getattr(wanted, name)!r}"
        for name in (
            "rows",
            "sketch",
            "seed",
            "shard_rows",
            "batch_size",
            "task",
            "columns",
            "threads",
            "deterministic",
        )
        if getattr(saved, name) != getattr(wanted, name)
    ]


def model_differences(saved: Header, wanted: Header) -> list[str]:
    """Return how two headers' models differ, in words: parameter sets first, then the first changed weight.

    Parameters are compared by their place, as the hashes are keyed: Keras numbers the names it makes up anew.
    """
    before, now = saved.parameters, wanted.parameters
    if [_form(p) for p in before] != [_form(p) for p in now]:
        return _parameter_differences({p["name"]: p for p in before}, {p["name"]: p for p in now})
    changed = [name for (_, old), (name, new) in zip(saved.state, wanted.state, strict=False) if old != new]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return [f"parameter {changed[0]!r}{more} has other values"]
    if len(saved.state) != len(wanted.state):
        return [f"the model has {len(wanted.state)} weights and statistics, not {len(saved.state)}"]
    return []


def _form(parameter: dict[str, Any]) -> tuple[int, list[int]]:
    return parameter["position"], list(parameter["shape"])


def _parameter_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    found = [f"parameter {name!r} is missing" for name in gone[:3]]
    found += [f"parameter {name!r} was not indexed" for name in new[:3]]
    found += [
        f"parameter {name!r} had shape {tuple(before[name]['shape'])}, now {tuple(now[name]['shape'])}"
        for name in before
        if name in now and list(before[name]["shape"]) != list(now[name]["shape"])
    ][:3]
    return found or ["the parameters come in another order, or others are trainable"]
