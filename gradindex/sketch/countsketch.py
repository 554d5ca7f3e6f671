"""CountSketch with a product hash, summed over all parameters into one vector.

Weight entry (i, j) goes to bucket (h(i) + h'(j)) mod k with sign s(i)·s'(j). On a rank-one gradient δaᵀ this is
TensorSketch (Pham & Pagh 2013): irfft(rfft(CS δ) ∘ rfft(CS a)), so a layer may be sketched from its factors or
from its formed gradient with the same result. Unbiased: E⟨Sx, Sy⟩ = ⟨x, y⟩ (Charikar et al. 2002).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.emit import LANES
from gradindex.compiled.threads import for_samples
from gradindex.data.names import Device
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch import tensor_sketch
from gradindex.sketch.base import Sketch
from gradindex.sketch.hashing import check_seed, side_hash
from gradindex.sketch.scatter import count, count_across, multiply_sum, rotate_sum, scatter, scatter_touched

if TYPE_CHECKING:
    from gradindex.sketch.countsketch_torch import TorchCountSketch

# Nanoseconds on two cores, measured: a number scattered; one counted; a bucket's share of a transform; the last two
# where the sketch's size is no power of two.
_SCATTER, _COUNT, _SPECTRUM = 0.1, 0.1, 0.25
_SLOW_COUNT, _SLOW_SPECTRUM = 0.25, 1.1
_ROTATE, _FEW_ROWS = 0.06, 4  # a number of a vector added in another rotation: so few rows need no spectrum
_LONG = 1 << 16  # numbers of a gradient that cost more to copy than several samples at once save
_BLOCK_BYTES = 96 << 10  # vectors transformed at once; the order of their sums, so part of a row's bits


@dataclass(frozen=True)
class CountSketch(Sketch):
    """CountSketch to `dim` buckets; the default. Any model size, no stored matrix, unbiased, foldable."""

    kind: ClassVar[str] = "countsketch"
    foldable: ClassVar[bool] = True
    is_random: ClassVar[bool] = True

    def bind(self, parameters: Sequence[Parameter], seed: int) -> "CountSketchProjector":
        """Return the projection for these parameters and seed."""
        return CountSketchProjector(self.dim, parameters, check_seed(seed))


@dataclass(frozen=True)
class SideTables:
    """Buckets and signs (float32) of the rows and columns of a parameter seen as a matrix.

    Unsigned buckets spare the compiled loops a test for negative indices, a third of their time. Behind each array,
    in its memory, lie LANES zeros, so that whole vectors may be read.
    """

    row_buckets: NDArray[np.uint32]
    row_signs: NDArray[np.float32]
    column_buckets: NDArray[np.uint32]
    column_signs: NDArray[np.float32]


class CountSketchProjector(Projector):
    """CountSketch bound to a model's parameters and a seed; memory O(rows + columns) a parameter."""

    any_order: ClassVar[bool] = True

    def __init__(self, dim: int, parameters: Sequence[Parameter], seed: int) -> None:
        self.dim = dim
        self._seed = seed
        self.tables = {parameter.name: _tables(parameter, seed, dim) for parameter in parameters}
        self._reordered: dict[Parameter, SideTables] = {}
        self._orders = {parameter.name: parameter.input_order for parameter in parameters}

    def _table(self, parameter: Parameter) -> SideTables:
        if parameter.input_order == self._orders[parameter.name]:
            return self.tables[parameter.name]
        if parameter not in self._reordered:
            self._reordered[parameter] = _tables(parameter, self._seed, self.dim)
        return self._reordered[parameter]

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of formed gradients (b, size) to `out` (b, dim), in place."""
        self.add_measured(out, parameter, gradients)

    def add_measured(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> NDArray[np.float64]:
        """Do `add`, and return the gradients' squared norms (b,) from the same pass over memory."""
        if not gradients.flags.c_contiguous and parameter.size >= _LONG:  # one parameter's part of whole gradients
            parts = [self.add_measured(out[i : i + 1], parameter, gradients[i : i + 1]) for i in range(len(out))]
            return np.concatenate(parts)
        t = self._table(parameter)
        matrix = np.ascontiguousarray(gradients, np.float32).reshape(len(gradients), *parameter.matrix_shape)
        rows, columns = (t.row_buckets, t.row_signs), (t.column_buckets, t.column_signs)
        if matrix.shape[2] == 1:  # a bias: the long side inside
            matrix, rows, columns = matrix.transpose(0, 2, 1), columns, rows
        squares = np.zeros(len(matrix), np.float64)

        def work(some: slice) -> None:
            scatter(out[some], squares[some], matrix[some], *rows, *columns)

        for_samples(work, len(out), matrix.size)
        return squares

    def add_factors(self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats) -> None:
        """Add the sketch of Σ_t r_t c_tᵀ to `out` by TensorSketch, or row by touched row."""
        t = self._table(parameter)
        if rows.ndim == 2:
            columns = np.ascontiguousarray(columns, np.float32)
            buckets = t.row_buckets, t.row_signs, t.column_buckets, t.column_signs
            for_samples(
                lambda some: scatter_touched(out[some], rows[some], columns[some], *buckets),
                len(out),
                columns.size,
            )
            return
        work = int(self.factor_cost(parameter, rows.shape[1]) / _SCATTER * len(out))
        if tensor_sketch.serves(self.dim, len(out)) and rows.shape[2] > _FEW_ROWS:
            rows, columns = (np.ascontiguousarray(side, np.float32) for side in (rows, columns))
            buckets = t.row_buckets, t.row_signs, t.column_buckets, t.column_signs
            turns = tensor_sketch.twiddles(self.dim)
            for_samples(
                lambda some: tensor_sketch.tensor_sketch(out[some], rows[some], columns[some], *buckets, turns),
                len(out),
                work,
            )
            return
        for_samples(lambda some: _tensor_sketch(out[some], t, rows[some], columns[some]), len(out), work)

    def on_device(self, device: Device) -> "TorchCountSketch":
        """Return the same projection in torch operations on that device."""
        from gradindex.sketch.countsketch_torch import TorchCountSketch

        return TorchCountSketch(self, device)

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        return parameter.size * _SCATTER

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        rows, columns = parameter.matrix_shape
        if touched:
            return positions * columns * _COUNT
        if rows <= _FEW_ROWS:
            return positions * (columns * _SLOW_COUNT + rows * self.dim * _ROTATE)
        if tensor_sketch.serves(self.dim, LANES):
            return positions * (rows + columns) * _COUNT + (positions + 1) * self.dim * _SPECTRUM
        return (positions + 0.5) * ((rows + columns) * _SLOW_COUNT + self.dim * _SLOW_SPECTRUM)


def _tensor_sketch(out: NDArray[np.float32], tables: SideTables, rows: Floats, columns: Floats) -> None:
    """Add irfft(Σ_t rfft(CS r_t) ∘ rfft(CS c_t)) to `out`, a few vectors at a time."""
    (n, dim), positions = out.shape, rows.shape[1]
    vectors = max(1, _BLOCK_BYTES // (4 * dim))
    some_positions = min(positions, vectors)
    step = max(1, vectors // positions)
    few = rows.shape[2] <= _FEW_ROWS
    if not few:
        from scipy import fft  # where it is needed alone: a command's start is a third of a second shorter without
    rows = np.ascontiguousarray(rows, np.float32) if few else rows
    # A line's offset between vectors: at a multiple of 4 KiB they would all fall into one set of the cache.
    counts = np.empty((step, some_positions, dim + 16), np.float32)[:, :, :dim]
    row_side, column_side = (tables.row_buckets, tables.row_signs), (tables.column_buckets, tables.column_signs)
    for begin in range(0, n, step):
        some = slice(begin, begin + step)
        total = np.zeros((min(step, n - begin), dim // 2 + 1), np.complex64)
        for first in range(0, positions, some_positions):
            counted = _counts(counts, columns[some], first, *column_side)
            if few:
                rotate_sum(out[some], counted, rows[some], first, *row_side)
            else:
                right = fft.rfft(counted)  # transforms several vectors at a time, unlike NumPy's
                left = fft.rfft(_counts(counts, rows[some], first, *row_side))
                multiply_sum(total, left, right)
        if not few:
            out[some] += fft.irfft(total, dim)


def _counts(
    counts: NDArray[np.float32],
    values: Floats,
    first: int,
    buckets: NDArray[np.uint32],
    signs: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return CS v_t of the vectors (n, T, size) from position `first` on, as many as `counts` holds."""
    counts = counts[: len(values), : values.shape[1] - first]
    counts[:] = 0
    across = values.transpose(0, 2, 1)
    if across.flags.c_contiguous and not values.flags.c_contiguous:
        count_across(counts, np.asarray(across, np.float32), first, buckets, signs)
    else:
        count(counts, np.ascontiguousarray(values, np.float32), first, buckets, signs)
    return counts


def _tables(parameter: Parameter, seed: int, dim: int) -> SideTables:
    outputs = _side(seed, parameter, True, parameter.output_index(), dim)
    inputs = _side(seed, parameter, False, parameter.input_index(), dim)
    rows, columns = (outputs, inputs) if parameter.outputs_first else (inputs, outputs)
    return SideTables(*rows, *columns)


def _side(
    seed: int, parameter: Parameter, outputs: bool, places: NDArray[np.intp], dim: int
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    found = side_hash(seed, parameter.position, outputs, len(places), dim)
    buckets, signs = np.zeros(len(places) + LANES, np.uint32), np.zeros(len(places) + LANES, np.float32)
    for whole, values in zip((buckets, signs), found, strict=True):
        whole[: len(places)] = values[places]
    return buckets[: len(places)], signs[: len(places)]
