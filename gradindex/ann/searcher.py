"""A FAISS index that is open, and how it is searched."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gradindex.ann import blas, operating_point
from gradindex.ann.operating_point import Point
from gradindex.ann.selection import Selection
from gradindex.errors import DamagedIndexError
from gradindex.sketch.unit_rows import fold, normalise

library: Any = faiss


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
        chosen: faiss.IDSelector | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return inner products and rows (m, k) of the nearest vectors, descending; missing rows are −1.

        `selection`, or FAISS's own selector `chosen`, need an index that `filters`; `point` names search-time
        parameters.
        """
        queries = as_vectors(sketches, self.dim)
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
        lists = [] if ivf is None else [ivf.invlists.list_size(number) for number in range(ivf.nlist)]
        return np.array([*lists, 0], np.int64)

    def scanned(self, sketches: NDArray[np.float32], point: Point | None = None) -> NDArray[np.int64]:
        """Return how many vectors a search for each of these compares (m,), −1 where FAISS does not tell."""
        ivf = inverted(self.index)
        if ivf is not None:
            queries = as_vectors(sketches, self.dim)
            index = library.downcast_index(self.index)
            if isinstance(index, library.IndexRefine):
                index = library.downcast_index(index.base_index)
            for i in range(index.chain.size() if hasattr(index, "chain") else 0):
                queries = index.chain.at(i).apply(queries)
            _, lists = ivf.quantizer.search(queries, int((point or {}).get("nprobe", ivf.nprobe)))
            compared: NDArray[np.int64] = self._list_sizes[lists].sum(axis=1)
            return compared
        exhaustive = isinstance(self.index, faiss.IndexFlatCodes)
        return np.full(len(sketches), self.index.ntotal if exhaustive else -1, np.int64)


def as_vectors(rows: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return sketches as the index takes them: folded to `dim` numbers, of unit norm."""
    return np.ascontiguousarray(normalise(fold(rows, dim)))


def inverted(index: faiss.Index) -> Any:
    """Return the inverted file within an index, else None; FAISS's own types lack half of its methods."""
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None
