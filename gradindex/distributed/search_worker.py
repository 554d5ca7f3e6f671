"""A part of an index: a range of its rows, mapped into memory by one actor, searched as the whole is."""

import contextlib
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.ann import files as index_files
from gradindex.ann.operating_point import Point
from gradindex.ann.searcher import Searcher
from gradindex.ann.selection import Selection
from gradindex.data.source import Ids
from gradindex.distributed.job_sender import Recipe
from gradindex.errors import DamagedIndexError
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel
from gradindex.search import norm_scan
from gradindex.store import Header, Store
from gradindex.store.changes import State
from gradindex.store.layout import SHARDS
from gradindex.store.location import Location, locate
from gradindex.store.shard import Shard
from gradindex.store.store import HEADER

if TYPE_CHECKING:
    from ray import ObjectRef

Found = tuple[NDArray[Any], NDArray[np.int64]]
_ALIGNED = 1024  # rows; FAISS's matrix products take as many at a time


def ranges(rows: int, parts: int) -> list[tuple[int, int]]:
    """Return first and last + 1 row of at most `parts` parts of about the same size."""
    step = -(-rows // parts)
    if step > _ALIGNED:
        step = -(-step // _ALIGNED) * _ALIGNED
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


class StorePart(Store):
    """Rows `first` to `last` of a store, numbered from 0; only their shards are opened."""

    def __init__(self, path: str | Location, header: Header, state: State, first: int, last: int) -> None:
        super().__init__(path, header, state)
        self.first, self.last = first, last

    def __len__(self) -> int:
        return self.last - self.first

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards that hold these rows."""
        found, offset = [], 0
        for one in map(self.part, self.state.parts):
            for number in range(one.header.shards):
                start, stop = (offset + place for place in one.header.span(number))
                if start < self.last and stop > self.first:
                    found.append(Shard(one.path / SHARDS, number, one.header, offset))
            offset += one.header.rows
        return found

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """Exact norms of these rows' gradients."""
        return self._cut("norms")

    @cached_property
    def ids(self) -> Ids:
        """Dataset positions of these rows."""
        return self._cut("ids")

    def kept(self, rows: Ids) -> NDArray[Any]:
        """Return the sketches of some of these rows as they are stored."""
        return super().kept(rows + self.first)

    def _cut(self, name: str) -> NDArray[Any]:
        begin = self.shards[0].start
        return np.concatenate([getattr(shard, name) for shard in self.shards])[self.first - begin : self.last - begin]


class IndexPart:
    """The actor: searches rows `first` to `last`, and evaluates candidates exactly if there is a `recipe` for the job.

    Rows in arguments and results are those of the whole index; masks (packed bits) those of the part. Everything is
    mapped at once, and stays readable whatever others add, remove or compact.
    """

    def __init__(self, path: str, state: State, first: int, last: int, recipe: Recipe | None) -> None:
        header = Header.read(locate(path) / HEADER)
        self._store = StorePart(path, header, state, first, last)
        self._whole = Store(path, header, state)
        self._recipe = recipe
        with contextlib.suppress(DamagedIndexError):  # whoever asks something gets it
            _ = self._mapped

    def process(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def search(
        self,
        sketches: NDArray[np.float32],
        k: int,
        mask: NDArray[np.uint8] | None,
        everywhere: bool,
        point: Point | None = None,
    ) -> Found:
        """Return inner products and rows (m, k) of the nearest vectors by FAISS; missing rows are −1."""
        store, searcher = self._mapped
        if mask is None:
            chosen: Any = faiss.IDSelectorRange(store.first, store.last, True)
            return searcher.search(sketches, k, point=point, chosen=chosen)
        every = np.zeros(searcher.index.ntotal, bool)
        every[store.first : store.last] = unpacked(mask, len(store))
        return searcher.search(sketches, k, Selection(every, everywhere), point)

    def scan(
        self,
        sketches: NDArray[np.float32],
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        eps: float,
        mask: NDArray[np.uint8] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return what `norm_scan.scan` finds among these rows, and rows scanned (m,)."""
        store, _ = self._mapped
        selection = None if mask is None else Selection(unpacked(mask, len(store)))
        best, rows, scanned = norm_scan.scan(store, sketches, norms, kernel, k, eps, selection)
        return best, np.where(rows < 0, -1, rows + store.first), scanned

    def dots(self, queries: "tuple[ObjectRef]", candidates: Ids) -> Any:
        """Return exact inner products of query gradients (m, P), which `queries` refers to, with candidates (m, c)."""
        import ray

        from gradindex.compute import exact

        gradients: Floats = ray.get(queries[0])
        return exact.candidate_dots(self._job.engine, self._job.source, None, gradients, candidates)

    @cached_property
    def _mapped(self) -> tuple[StorePart, Searcher]:
        """These rows and the FAISS index; raises DamagedIndexError if their files are damaged, or gone by now."""
        try:
            _ = self._store.shards
            return self._store, index_files.load(self._whole)
        except DamagedIndexError:
            if self._whole.is_last():
                raise
            raise DamagedIndexError(
                f"{self._whole.path} was added to or compacted after it was opened, and a worker that came later does "
                "not find those rows any more."
            ) from None

    @cached_property
    def _job(self) -> Any:
        if self._recipe is None:
            raise ValueError("This index was opened without a job.")
        from gradindex.lifecycle.header import check_job

        job = self._recipe.make()
        check_job(self._whole, job)
        return job


def packed(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as bits."""
    return np.packbits(mask)


def unpacked(bits: NDArray[np.uint8], rows: int) -> NDArray[np.bool_]:
    """Return the mask of `packed`."""
    return np.unpackbits(bits, count=rows).astype(bool)
