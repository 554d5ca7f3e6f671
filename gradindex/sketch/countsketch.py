"""CountSketch with a product hash, summed over all parameters into one vector.

Weight entry (i, j) goes to bucket (h(i) + h'(j)) mod k with sign s(i)·s'(j). On a rank-one gradient δaᵀ this is
TensorSketch (Pham & Pagh 2013): irfft(rfft(CS δ) ∘ rfft(CS a)), so a layer may be sketched from its factors or
from its formed gradient with the same result. Unbiased: E⟨Sx, Sy⟩ = ⟨x, y⟩ (Charikar et al. 2002).
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.base import Floats, Parameter, Projector
from gradindex.sketch.base import Sketch
from gradindex.sketch.hashing import check_seed, side_hash

# Numba's fallback threading layer aborts the process on concurrent entry.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class CountSketch(Sketch):
    """CountSketch to `dim` buckets; the default. Any model size, no stored matrix, unbiased, foldable."""

    kind: ClassVar[str] = "countsketch"
    foldable: ClassVar[bool] = True

    def bind(self, parameters: Sequence[Parameter], seed: int) -> "CountSketchProjector":
        """Return the projection for these parameters and seed."""
        return CountSketchProjector(self.dim, parameters, check_seed(seed))


@dataclass(frozen=True)
class SideTables:
    """Buckets (int32) and signs (float32) of the rows and columns of a parameter seen as a matrix."""

    row_buckets: NDArray[np.int32]
    row_signs: NDArray[np.float32]
    column_buckets: NDArray[np.int32]
    column_signs: NDArray[np.float32]


class CountSketchProjector(Projector):
    """CountSketch bound to a model's parameters and a seed; memory O(rows + columns) a parameter."""

    def __init__(self, dim: int, parameters: Sequence[Parameter], seed: int) -> None:
        self.dim = dim
        self.tables = {parameter.name: _tables(parameter, seed, dim) for parameter in parameters}

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of formed gradients (b, size) to `out` (b, dim), in place."""
        tables = self.tables[parameter.name]
        matrix = np.ascontiguousarray(gradients).reshape(len(gradients), *parameter.matrix_shape)
        with _one_at_a_time:
            _scatter(
                out,
                matrix,
                tables.row_buckets,
                tables.row_signs,
                tables.column_buckets,
                tables.column_signs,
            )


def fold(sketches: NDArray[Any], dim: int) -> NDArray[Any]:
    """Return the CountSketch of size `dim` from one of a multiple of that size, shape (n, dim).

    Raises
    ------
    ValueError
        If the width of `sketches` is not a multiple of `dim`.
    """
    n, width = sketches.shape
    if width % dim:
        raise ValueError(f"Cannot fold {width} buckets to {dim}: not a multiple.")
    if width == dim:
        return sketches
    folded: NDArray[Any] = sketches.reshape(n, width // dim, dim).sum(axis=1, dtype=np.float32)
    return folded


def _tables(parameter: Parameter, seed: int, dim: int) -> SideTables:
    outputs = _side(seed, parameter, True, parameter.output_index(), dim)
    inputs = _side(seed, parameter, False, parameter.input_index(), dim)
    rows, columns = (outputs, inputs) if parameter.outputs_first else (inputs, outputs)
    return SideTables(*rows, *columns)


def _side(
    seed: int, parameter: Parameter, outputs: bool, places: NDArray[np.intp], dim: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    buckets, signs = side_hash(seed, parameter.position, outputs, len(places), dim)
    return buckets[places], signs[places]


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _scatter(out: Any, matrix: Any, row_buckets: Any, row_signs: Any, column_buckets: Any, column_signs: Any) -> None:
    """Each sample is one thread's work, so the result does not depend on the number of threads."""
    dim = out.shape[1]
    for sample in numba.prange(matrix.shape[0]):
        for row in range(matrix.shape[1]):
            shift = row_buckets[row]
            sign = row_signs[row]
            for column in range(matrix.shape[2]):
                bucket = shift + column_buckets[column]
                if bucket >= dim:
                    bucket -= dim
                out[sample, bucket] += sign * column_signs[column] * matrix[sample, row, column]
