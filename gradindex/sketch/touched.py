"""Gradients of an embedding table: of each sample only the rows that it looked up."""

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.parameter import Floats

_NUMBERS_AT_ONCE = 1 << 22


class TouchedRows:
    """The gradients of L samples by one table of `width` columns, and their inner products with others'."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._added: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        self._rows, self._samples = np.empty(0, np.int64), np.empty(0, np.int64)
        self._columns = np.empty((0, width), np.float32)

    def add(self, first: int, numbers: NDArray[np.int64], columns: Floats) -> None:
        """Keep row numbers (b, T) and their gradients (b, T, width) of the samples from `first` on."""
        samples = np.repeat(np.arange(first, first + len(numbers)), numbers.shape[1])
        kept = np.array(columns, np.float32).reshape(-1, self._width)
        self._added.append((numbers.astype(np.int64).ravel(), samples, kept))

    def add_formed(self, first: int, gradients: Floats) -> None:
        """Keep formed gradients (b, rows × width)."""
        tables = gradients.reshape(len(gradients), gradients.shape[1] // self._width, self._width)
        samples, rows = np.nonzero(tables.any(axis=2))
        self._added.append((rows, samples + first, np.array(tables[samples, rows], np.float32)))

    def sort(self) -> None:
        """Make ready for products what was added."""
        if self._added:
            rows, samples, columns = (np.concatenate(part) for part in zip(*self._added, strict=True))
            order = np.argsort(rows, kind="stable")
            self._rows, self._samples, self._columns = rows[order], samples[order], columns[order]
            self._added = []

    def scale(self, factors: NDArray[np.float64]) -> None:
        """Multiply each sample's gradient by its factor (L,)."""
        self._columns *= factors[self._samples, None].astype(np.float32)

    def dots(self, numbers: NDArray[np.int64], columns: Floats, count: int) -> NDArray[np.float64]:
        """Return inner products (b, L) with row numbers (b, T) and their gradients (b, T, width); L is `count`."""
        flat, vectors = numbers.ravel(), np.asarray(columns, np.float32).reshape(-1, self._width)
        begins, ends = np.searchsorted(self._rows, flat, "left"), np.searchsorted(self._rows, flat, "right")
        met = np.flatnonzero(ends > begins)
        out = np.zeros(len(numbers) * count)
        if not len(met):
            return out.reshape(len(numbers), count)
        each = ends[met] - begins[met]
        bounds = np.searchsorted(np.cumsum(each), np.arange(0, each.sum(), max(1, _NUMBERS_AT_ONCE // self._width)))
        for begin, end in zip(bounds, [*bounds[1:], len(met)], strict=True):
            some, times = met[begin:end], each[begin:end]
            asked = np.repeat(some, times)
            kept = np.arange(len(asked)) + np.repeat(begins[some] - (np.cumsum(times) - times), times)
            products = np.einsum("ij,ij->i", vectors[asked], self._columns[kept])
            places = asked // numbers.shape[1] * count + self._samples[kept]
            out += np.bincount(places, products, len(out))
        return out.reshape(len(numbers), count)

    def formed_dots(self, gradients: Floats, count: int) -> NDArray[np.float64]:
        """Return inner products (b, L) with formed gradients (b, rows × width)."""
        tables = gradients.reshape(len(gradients), gradients.shape[1] // self._width, self._width)
        distinct = np.unique(self._rows)
        numbers = np.broadcast_to(distinct, (len(tables), len(distinct)))
        return self.dots(numbers, tables[:, distinct], count)

    def gram(self, count: int) -> NDArray[np.float64]:
        """Return the samples' inner products (L, L) with each other."""
        every = self.dots(self._rows[:, None], self._columns[:, None], count)
        out = np.zeros((count, count))
        np.add.at(out, self._samples, every)
        return out
