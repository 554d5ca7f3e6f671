"""One shard: rows `start` to `stop` of the dataset as NumPy and Parquet files and a manifest."""

import hashlib
import io
import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradindex.data.columns import to_arrow
from gradindex.data.source import Ids
from gradindex.errors import DamagedIndexError
from gradindex.store import disk
from gradindex.store.codes import RowType
from gradindex.store.location import Location, temporary
from gradindex.store.manifest import FileEntry, Header, keep, publish, read_entries, read_json
from gradindex.store.mapping import advise, map_file

SHARD_BYTES = 128 << 20
_ARRAYS = ("sketch", "norm", "id")
_BLOCK_BYTES = 1 << 14
"""Bytes of rows under one checksum: looking up scattered rows reads little more than them."""
_FEW_BLOCKS = 64  # not worth another thread
_CHECKED = 1 << 19  # bytes compared before they are converted, so that they are read from memory once


@dataclass(frozen=True)
class Rows:
    """Embeddings of n samples: `sketches` (n, dim) as they are kept, `norms` (n,) float32, `ids` (n,) int64.

    Sketches are of unit norm, see `gradindex.store.codes`. `columns` maps names to arrays (n,), of NumPy's or Arrow's.
    """

    sketches: NDArray[Any]
    norms: NDArray[np.float32]
    ids: Ids
    columns: Mapping[str, Any]


def write_shard(directory: Location, number: int, rows: Rows, header: Header) -> None:
    """Write and publish a shard of `header`'s store into `directory`; what another builder published first stands."""
    arrays: dict[str, NDArray[Any]] = dict(zip(_ARRAYS, (rows.sketches, rows.norms, rows.ids), strict=True))
    names = {kind: f"{number:06d}.<tag>.{kind}" for kind in (*_ARRAYS, "columns")}
    with ThreadPoolExecutor() as beside:  # disks flush several files at once, and hashing takes longer than writing
        sums = beside.submit(_sums_of, rows.sketches)
        written = {
            kind: beside.submit(_write_array, directory, f"{names[kind]}.npy", array, beside)
            for kind, array in arrays.items()
        }
        written["columns"] = beside.submit(_write_columns, directory, f"{names['columns']}.parquet", rows.columns)
        files = {kind: vars(entry.result()) for kind, entry in written.items()}
        blocks = sums.result()
    try:
        place = {"store": header.seal, "shard": number, "rows": len(rows.ids)}
        publish(manifest_path(directory, number), {**place, "blocks": blocks, "files": files})
    except FileExistsError:
        return


def _write_array(directory: Location, name: str, array: NDArray[np.generic], beside: Executor) -> FileEntry:
    pieces = _npy_header(array.dtype, array.shape), np.ascontiguousarray(array).data
    digest = beside.submit(_digest, *pieces)
    with temporary(directory) as part:
        disk.write(part, pieces)  # np.save hides the errno of a full disk
        return keep(part, directory, name, digest.result())


def _write_columns(directory: Location, name: str, columns: Mapping[str, object]) -> FileEntry:
    with temporary(directory) as part:
        pq.write_table(pa.table({name: to_arrow(values) for name, values in columns.items()}), part)
        return keep(part, directory, name)


def manifest_path(directory: Location, number: int) -> Location:
    """Return the path of a shard's manifest."""
    return directory / f"{number:06d}.json"


class Shard:
    """A published shard, mapped into memory: rows `start` to `stop` of its store, `offset` of them in earlier parts.

    Raises
    ------
    DamagedIndexError
        If a file is missing or not what the manifest and the header say.
    """

    def __init__(self, directory: Location, number: int, header: Header, offset: int = 0) -> None:
        path = manifest_path(directory, number)
        saved = read_json(path)
        self.start, self.stop = (offset + place for place in header.span(number))
        if (saved.get("store"), saved.get("shard")) != (header.seal, number):
            raise DamagedIndexError(f"{path} is not the manifest of shard {number} of this store.")
        if saved.get("rows") != len(self):
            raise DamagedIndexError(f"{path} is damaged: expected {len(self)} rows, found {saved.get('rows')}.")
        self._directory, self._manifest = directory, path
        self._entries = read_entries(saved, path, {*_ARRAYS, "columns"})
        # Everything is mapped now: what is deleted later, by a compaction, stays readable here.
        self._columns = _mapped(self._entries["columns"].local(directory, checked=False))
        self._row_type, self._dim = RowType(header.row_type), header.dim
        shape = len(self), self._row_type.stored(header.dim)
        self.sketches = self._map("sketch", self._row_type.dtype, shape)  # checked when first read
        self._block_rows, self._sums = _block_sums(saved, len(self), path)
        self._good = np.zeros(len(self._sums), bool)
        self.norms = self._map("norm", np.float32, (len(self),))
        self.ids = self._map("id", np.int64, (len(self),))

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def bytes(self) -> int:
        """Size of the shard's files on disk."""
        return sum(entry.bytes for entry in self._entries.values())

    def read(self, begin: int, stop: int) -> NDArray[np.float32]:
        """Return sketches `begin` to `stop` (places in the shard) as float32, checked; raises DamagedIndexError."""
        out = np.empty((stop - begin, self._dim), np.float32)
        step = max(1, _CHECKED // self.sketches.strides[0] // self._block_rows) * self._block_rows
        pieces = [
            slice(max(low, begin), min(low + step, stop)) for low in range(begin - begin % self._block_rows, stop, step)
        ]
        for here, _ in zip(pieces, self._checks(pieces), strict=True):
            self._row_type.dequantize(self.sketches[here], out[here.start - begin : here.stop - begin])
        return out

    def _checks(self, pieces: list[slice]) -> Iterator[None]:
        """Yield as each piece of rows is found to be as it was written.

        What was not read before is checked by another thread while this one converts.
        """
        blocks = [np.arange(p.start // self._block_rows, -(-p.stop // self._block_rows)) for p in pieces]
        if not blocks or self._good[blocks[0][0] : blocks[-1][-1] + 1].all():
            yield from (None for _ in pieces)
            return
        with ThreadPoolExecutor(1) as beside:
            for check in [beside.submit(self._check_blocks, some) for some in blocks]:
                yield check.result()

    def release(self) -> None:
        """Let go of the pages of sketches that were read; the system keeps them in its cache while there is room."""
        advise(self.sketches, mmap.MADV_DONTNEED)

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Return the sketches at some places in the shard as they are kept, checked; raises DamagedIndexError."""
        blocks = places // self._block_rows
        new = np.unique(blocks[~self._good[blocks]])
        if len(new) < _FEW_BLOCKS:
            self._check_blocks(new)
        else:
            with ThreadPoolExecutor(1) as beside:
                other = beside.submit(self._check_blocks, new[: len(new) // 2])
                self._check_blocks(new[len(new) // 2 :])
                other.result()
        return self.sketches[places]

    def _check_blocks(self, blocks: NDArray[np.int64]) -> None:
        new = blocks[~self._good[blocks]]
        for block in new.tolist():
            first = block * self._block_rows
            if zlib.crc32(self.sketches[first : first + self._block_rows].data) != self._sums[block]:
                path = self._directory / self._entries["sketch"].name
                raise DamagedIndexError(f"{path} is damaged: rows from {first} on fail their checksum.")
        self._good[new] = True

    @property
    def files(self) -> set[str]:
        """Names of the shard's files, its manifest's included."""
        return {self._manifest.name, *(entry.name for entry in self._entries.values())}

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; raises DamagedIndexError."""
        return self._read_columns(lambda file: file.schema_arrow)

    def table(self) -> pa.Table:
        """Read the Parquet columns; raises DamagedIndexError."""
        # Arrow's threads may let go of the mapped bytes after Python ends: abort
        return self._read_columns(lambda file: file.read(use_threads=False))

    def _read_columns(self, read: Callable[[pq.ParquetFile], Any]) -> Any:
        path, data = self._directory / self._entries["columns"].name, self._columns
        if hashlib.sha256(data.data).hexdigest() != self._entries["columns"].sha256:
            raise DamagedIndexError(f"{path} is damaged: its contents do not match the sha256 in its manifest.")
        try:
            file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)))
            if file.metadata.num_columns and file.metadata.num_rows != len(self):
                raise ValueError(f"expected {len(self)} rows, found {file.metadata.num_rows}")
            return read(file)
        except (pa.ArrowException, ValueError, OSError) as error:  # of bytes in memory
            raise DamagedIndexError(f"{path} is damaged: {error}") from None

    def check(self) -> None:
        """Compare the sha256 of every file; raises DamagedIndexError naming the first that differs."""
        for entry in self._entries.values():
            entry.check_contents(self._directory)

    def _map(self, kind: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        path = self._entries[kind].local(self._directory, checked=kind != "sketch")
        header = _npy_header(dtype, shape)
        data = _mapped(path)  # one opening: a compaction may delete the file at any moment
        if data[: len(header)].tobytes() != header or len(data) != len(header) + np.dtype(dtype).itemsize * prod(shape):
            raise DamagedIndexError(f"{path} is damaged: expected the .npy header of {np.dtype(dtype)} {shape}.")
        found: NDArray[Any] = data[len(header) :].view(dtype).reshape(shape)
        return found


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        return map_file(path)
    except FileNotFoundError:
        raise DamagedIndexError(f"{path} is missing.") from None


def _digest(*pieces: Any) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _sums_of(sketches: NDArray[Any]) -> dict[str, Any]:
    """Return the checksums of blocks of rows, as the manifest has them."""
    rows = np.ascontiguousarray(sketches)
    step = max(1, _BLOCK_BYTES // rows.strides[0])
    return {"rows": step, "crc32": [zlib.crc32(rows[at : at + step].data) for at in range(0, len(rows), step)]}


def _block_sums(saved: dict[str, object], rows: int, path: Location) -> tuple[int, list[int]]:
    blocks = saved.get("blocks")
    step, sums = (blocks.get("rows"), blocks.get("crc32")) if isinstance(blocks, dict) else (None, None)
    if type(step) is not int or step < 1 or not isinstance(sums, list) or len(sums) != -(-rows // step):
        raise DamagedIndexError(f"{path} is damaged: expected checksums of its {rows} rows by blocks.")
    return step, sums


def _npy_header(dtype: Any, shape: tuple[int, ...]) -> bytes:
    """Return the bytes with which NumPy saves such an array: compared, not parsed, they cannot mislead a reader."""
    buffer = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()
