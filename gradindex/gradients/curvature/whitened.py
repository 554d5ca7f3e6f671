"""Rows of whitened gradients: ∇W times the root of the damped curvature, from factors as the engine hands them out.

Inner products of whitened gradients are ⟨q, (F + d)⁻¹ t⟩. A CountSketch of them keeps little of that: whitening makes
all directions equally long, and the sketch's error is one of that length. `Leading` keeps the coordinates in which
whitened gradients are longest as they are, and needs the eigenvectors of those alone.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.curvature.block import Block, Doubles, power
from gradindex.gradients.curvature.curvature import Curvature
from gradindex.gradients.curvature.factors import factor_rotation_cost, rotation_cost, times
from gradindex.gradients.curvature.sums import Places, column_places, in_order
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector

_BLOCK_NUMBERS = 1 << 21  # of formed gradients
_PER_NS = 15.0  # multiply-adds in a nanosecond of a matrix product


class _Whitening(Projector):
    """A projector of gradients' coordinates in the curvature's eigenvectors."""

    any_order: ClassVar[bool] = True
    one_row: ClassVar[bool] = False
    own_norms: ClassVar[bool] = True

    def __init__(self, curvature: Curvature, damping: float | None) -> None:
        self.curvature = curvature
        self.damping = curvature.damping if damping is None else damping
        self._blocks = {block.parameter.name: block for block in curvature.blocks}

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the row of formed gradients (b, size) to `out` (b, dim), in place."""
        self.add_measured(out, parameter, gradients)


class Whitened(_Whitening):
    """Another projector's rows of whitened gradients; norms are those of the whitened gradients.

    Parameters
    ----------
    curvature
        If its damping is factored, two products a layer turn the factors into those of the whitened gradient; else the
        gradient is formed in the eigenvectors, and scaled there.
    inner
        What projects them, such as a bound CountSketch.
    damping
        As in `Curvature.power`.
    """

    def __init__(self, curvature: Curvature, inner: Projector, damping: float | None = None) -> None:
        super().__init__(curvature, damping)
        self._inner = inner
        self.dim = inner.dim
        self._sides = {name: self._roots(block) for name, block in self._blocks.items()}
        self._scales = {
            name: curvature.scales(block, self.damping, -0.5).astype(np.float32)
            for name, block in self._blocks.items()
            if not curvature.factored
        }

    @property
    def width(self) -> int:
        """Numbers of a finished row."""
        return self._inner.width

    def finish(self, sketches: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the inner projector's rows (b, width)."""
        return self._inner.finish(sketches, norms)

    def _roots(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what each side is multiplied with: (n, n), or (n,) for a diagonal; with factored scales."""
        rows, columns = (
            [power(values, -0.5) for values in block.halves(self.damping)]
            if self.curvature.factored
            else [np.ones(n) for n in block.shape]
        )
        return _scaled(block.rows.vectors, rows), _scaled(block.columns.vectors, columns)

    def add_measured(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> NDArray[np.float64]:
        """Add the row of formed gradients (b, size) to `out` (b, dim); return the whitened squared norms (b,)."""
        block = self._blocks[parameter.name]
        above, below = self._sides[parameter.name]
        ordered = in_order(gradients, block.parameter, parameter)
        half = _times(ordered.astype(np.float32, copy=False).reshape(len(gradients), *block.shape), below)
        return self._add_half(out, block, half, above)

    def _add_half(
        self, out: NDArray[np.float32], block: Block, half: NDArray[np.float32], above: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        whole = above[:, None] * half if above.ndim == 1 else np.matmul(above.T, half)
        scales = self._scales.get(block.parameter.name)
        if scales is not None:
            whole *= scales
        return self._inner.add_measured(out, block.parameter, whole.reshape(len(out), -1))

    def add_factors(
        self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats
    ) -> NDArray[np.float64]:
        """Add the row of Σ_t r_t c_tᵀ to `out`; return the whitened squared norms (b,)."""
        block = self._blocks[parameter.name]
        above, below = self._sides[parameter.name]
        places = column_places(block.parameter, parameter)
        columns = _times(columns.astype(np.float32, copy=False), below if places is None else below[places])
        if places is not None and below.ndim == 1:
            columns = columns[:, :, np.argsort(places)]
        if rows.ndim == 2:
            return self._add_rows_of_table(out, block, rows, columns, above)
        rows = rows.astype(np.float32, copy=False)
        if rows.shape[1] > 1 or not self.curvature.factored:
            size = max(1, _BLOCK_NUMBERS // block.parameter.size)
            parts = [slice(begin, begin + size) for begin in range(0, len(out), size)]
            halves = (np.matmul(rows[part].transpose(0, 2, 1), columns[part]) for part in parts)
            found = [self._add_half(out[part], block, half, above) for part, half in zip(parts, halves, strict=True)]
            return np.concatenate(found)
        rows = _times(rows, above)
        self._inner.add_factors(out, block.parameter, rows, columns)
        return _squares(rows[:, 0]) * _squares(columns[:, 0])

    def _add_rows_of_table(
        self,
        out: NDArray[np.float32],
        block: Block,
        numbers: NDArray[Any],
        columns: NDArray[np.float32],
        above: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        if not self.curvature.factored:
            columns = columns * self._scales[block.parameter.name][numbers]
        columns = columns * above[numbers][:, :, None]
        self._inner.add_factors(out, block.parameter, numbers, columns)
        inner = np.matmul(columns, columns.transpose(0, 2, 1), dtype=np.float64)
        inner *= numbers[:, :, None] == numbers[:, None, :]
        found: NDArray[np.float64] = np.maximum(inner.sum((1, 2)), 0)
        return found

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        return rotation_cost(self._blocks[parameter.name]) + self._inner.cost(parameter)

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        turned = factor_rotation_cost(self._blocks[parameter.name], positions, touched)
        by_factors = touched or (positions == 1 and self.curvature.factored)
        inner = self._inner.factor_cost(parameter, positions, touched) if by_factors else self._inner.cost(parameter)
        return turned + inner


class Leading(_Whitening):
    """The coordinates of whitened gradients in which they are longest, exactly; norms are those of the rows.

    A coordinate's second moment is λ/(λ + d) where the curvature is of the data's labels, so these are the largest
    eigenvalues'. Of K-FAC and EKFAC alike, a row of one position is r products of coordinates of its factors.

    Parameters
    ----------
    curvature
        What whitens.
    count
        r, numbers of a row; all coordinates if there are fewer.
    damping
        As in `Curvature.power`.

    Raises
    ------
    ValueError
        If `count` is less than 1.
    """

    def __init__(self, curvature: Curvature, count: int, damping: float | None = None) -> None:
        super().__init__(curvature, damping)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        self.dim = min(count, curvature.size)
        self._parts: dict[str, _Part] = {}
        begin = 0
        for block, kept in zip(curvature.blocks, self._chosen(), strict=True):
            if len(kept):
                scales = curvature.scales(block, self.damping, -0.5).ravel()[kept]
                self._parts[block.parameter.name] = _Part(block, kept, scales, begin)
            begin += len(kept)

    def _chosen(self) -> list[NDArray[np.intp]]:
        """Return, for each block, which of its coordinates are among the largest of all, ascending."""
        moments, owners, places = [], [], []
        for number, block in enumerate(self.curvature.blocks):
            found = (block.values * self.curvature.scales(block, self.damping)).ravel()
            best = np.argsort(-found, kind="stable")[: self.dim]
            moments.append(found[best])
            owners.append(np.full(len(best), number))
            places.append(best)
        kept = np.argsort(-np.concatenate(moments), kind="stable")[: self.dim]
        owner, place = np.concatenate(owners)[kept], np.concatenate(places)[kept]
        return [np.sort(place[owner == number]) for number in range(len(moments))]

    def add_measured(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> NDArray[np.float64]:
        """Add the row of formed gradients (b, size) to `out` (b, dim); return its squared norms (b,)."""
        part = self._parts.get(parameter.name)
        if part is None:
            return np.zeros(len(out))
        ordered = in_order(gradients, part.block.parameter, parameter).astype(np.float32, copy=False)
        return part.put(out, part.of_formed(ordered.reshape(len(out), *part.block.shape)))

    def add_factors(
        self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats
    ) -> NDArray[np.float64]:
        """Add the row of Σ_t r_t c_tᵀ to `out` (b, dim); return its squared norms (b,)."""
        part = self._parts.get(parameter.name)
        if part is None:
            return np.zeros(len(out))
        places = column_places(part.block.parameter, parameter)
        columns = columns.astype(np.float32, copy=False)
        return part.put(out, part.of_factors(rows, columns, places))

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        part = self._parts.get(parameter.name)
        return 0.0 if part is None else part.cost()

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        part = self._parts.get(parameter.name)
        return 0.0 if part is None else part.factor_cost(positions, touched)


class _Part:
    """The coordinates of one block that a row has, from place `begin` on."""

    def __init__(self, block: Block, kept: NDArray[np.intp], scales: Doubles, begin: int) -> None:
        self.block, self._begin = block, begin
        rows, columns = np.divmod(kept, block.shape[1])
        self._rows, self._of_row = np.unique(rows, return_inverse=True)
        self._columns, self._of_column = np.unique(columns, return_inverse=True)
        self._scales = scales.astype(np.float32)
        self._above = block.rows.columns(self._rows)
        self._below = block.columns.columns(self._columns)
        self._places = np.full(block.shape[0], -1)  # of a table's rows among those kept
        self._places[self._rows] = np.arange(len(self._rows))
        self._flat = self._of_row * len(self._columns) + self._of_column

    def put(self, out: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Add scaled coordinates (b, r') to their places in `out`; return squared norms (b,)."""
        values *= self._scales
        out[:, self._begin : self._begin + len(self._flat)] += values
        return _squares(values)

    def of_formed(self, matrices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the kept coordinates (b, r') of gradients (b, R, C)."""
        return self._of_half(self._right(matrices, None))

    def of_factors(self, rows: NDArray[Any], columns: NDArray[np.float32], places: Places) -> NDArray[np.float32]:
        """Return the kept coordinates (b, r') of Σ_t r_t c_tᵀ."""
        right = self._right(columns, places)
        if rows.ndim == 2:
            return self._of_table(rows, right)
        rows = rows.astype(np.float32, copy=False)
        if rows.shape[1] > len(self._rows) and rows.shape[1] > 1 and self._above is not None:
            return self._of_half(np.matmul(rows.transpose(0, 2, 1), right))
        left = rows[:, :, self._rows] if self._above is None else times(rows, self._above)
        if rows.shape[1] == 1:
            found: NDArray[np.float32] = left[:, 0, self._of_row]
            found *= right[:, 0, self._of_column]
            return found
        return self._kept(np.matmul(left.transpose(0, 2, 1), right))

    def _right(self, vectors: NDArray[np.float32], places: Places) -> NDArray[np.float32]:
        """Return coordinates (…, k) of vectors (…, C) along the kept columns' eigenvectors."""
        if self._below is None:
            chosen = self._columns if places is None else np.argsort(places)[self._columns]
            return vectors[..., chosen]
        return times(vectors, self._below if places is None else self._below[places])

    def _of_half(self, half: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = half[:, self._rows] if self._above is None else np.matmul(self._above.T, half)
        return self._kept(whole)

    def _kept(self, whole: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the kept ones (b, r') of the coordinates of kept rows and columns."""
        found: NDArray[np.float32] = whole.reshape(len(whole), -1)[:, self._flat]
        return found

    def _of_table(self, numbers: NDArray[Any], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the kept coordinates where each r_t is the unit vector of a row's number."""
        place = self._places[numbers]
        sample, position = np.nonzero(place >= 0)
        table = np.zeros((len(numbers), len(self._rows), right.shape[2]), np.float32)
        np.add.at(table, (sample, place[sample, position]), right[sample, position])
        return self._kept(table)

    def cost(self) -> float:
        """Return about how many nanoseconds a formed gradient takes."""
        rows, columns = self.block.shape
        wide, high = (0 if side is None else side.shape[1] for side in (self._below, self._above))
        return rows * columns * (wide / _PER_NS + 0.1) + rows * high * len(self._columns) / _PER_NS + len(self._flat)

    def factor_cost(self, positions: int, touched: bool) -> float:
        """Return about how many nanoseconds factors of T positions take."""
        rows, columns = self.block.shape
        if self.block.shape != self.block.parameter.matrix_shape or (touched and self._above is not None):
            return np.inf
        wide, high = len(self._columns), len(self._rows)
        cost = positions * columns * (0 if self._below is None else wide) / _PER_NS + len(self._flat)
        if touched:
            return cost + positions * wide + high * wide * 0.2
        cost += (min(positions, high) if positions > 1 else 1) * rows * (0 if self._above is None else high) / _PER_NS
        return cost + (positions * high * wide / _PER_NS if positions > 1 else 0)


def _scaled(vectors: Doubles | None, scales: Doubles) -> NDArray[np.float32]:
    return (scales if vectors is None else vectors * scales).astype(np.float32)


def _times(vectors: NDArray[np.float32], side: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = vectors * side if side.ndim == 1 else times(vectors, side)
    return found


def _squares(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return found
