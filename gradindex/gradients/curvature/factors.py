"""The sums behind Kronecker factors and EKFAC's eigenvalues.

With the gradient of a sample ∇W = Σ_t r_t c_tᵀ over T positions, the factors of K-FAC's expand setting (Eschenhagen et
al. 2023, https://arxiv.org/abs/2311.00636) are E[Σ_t r_t r_tᵀ] and E[Σ_t c_t c_tᵀ]. Their Kronecker product over the
mean number of positions stands for E[vec(∇W) vec(∇W)ᵀ]: positions count as samples of their own. For T = 1 that is
K-FAC (Martens & Grosse 2015, https://arxiv.org/abs/1503.05671).

Gradients that come formed have E[∇W ∇Wᵀ] and E[∇Wᵀ ∇W] in their place, over the trace (Shampoo's: Gupta et al. 2018,
https://arxiv.org/abs/1802.09568) of the most equal parts of their axes, those of few entries the matrix itself. A
table's rows that were looked up are unit vectors, so their factor is a diagonal of counts; other sides too long for a
matrix keep their diagonal alone.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from gradindex.data.source import Ids
from gradindex.gradients.curvature.block import Block, Doubles, Side
from gradindex.gradients.curvature.sums import Places, Sums, Total
from gradindex.gradients.parameter import Floats, Parameter

EXACT = 2048
"""Entries of a parameter whose block is the matrix itself, if its gradients come formed."""
LONGEST = 4096
"""Entries of a side that has a full factor: the eigenvectors of one take half a minute on one core."""
FACTORS, MATRIX, VECTOR = "factors", "formed", "exact"
_PER_NS = 15.0  # multiply-adds in a nanosecond of a matrix product


class FactorSums(Sums):
    """Adds up the two factors of each parameter."""

    def of_formed(self, parameter: Parameter, gradients: Floats) -> Total:
        """Return Σ g gᵀ of few entries, else Σ ∇W ∇Wᵀ and Σ ∇Wᵀ ∇W."""
        count = len(gradients)
        if parameter.size <= EXACT:
            return Total([_second_moment(gradients), np.array([float(count)])], count, count, VECTOR)
        rows, columns = _halves(parameter)
        matrices = gradients.reshape(count, rows, columns)
        across = matrices.transpose(0, 2, 1).reshape(-1, rows)
        return Total([_second_moment(across), _second_moment(matrices.reshape(-1, columns))], count, count, MATRIX)

    def of_factors(self, parameter: Parameter, rows: Floats | Ids, columns: Floats, places: Places) -> Total:
        """Return Σ_t r_t r_tᵀ and Σ_t c_t c_tᵀ."""
        samples, positions, width = columns.shape
        if rows.ndim == 2:
            above = np.bincount(rows.ravel(), minlength=parameter.matrix_shape[0]).astype(np.float64)
        else:
            above = _second_moment(np.asarray(rows, columns.dtype).reshape(-1, rows.shape[2]))
        below = _second_moment(columns.reshape(-1, width))
        if places is not None:
            turned = np.empty_like(below)
            turned[places if below.ndim == 1 else np.ix_(places, places)] = below
            below = turned
        return Total([above, below], samples, samples * positions, FACTORS)

    def cost(self, parameter: Parameter) -> float:
        """Return so much that factors are taken where there are any."""
        return np.inf

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return nothing: factors are what is wanted."""
        return 0.0


def _halves(parameter: Parameter) -> tuple[int, int]:
    """Return the two most equal parts into which a parameter's axes can be split, as numbers of entries."""
    splits = [math.prod(parameter.shape[:axis]) for axis in range(1, len(parameter.shape))] or [parameter.size]
    rows = min(splits, key=lambda rows: rows + parameter.size // rows)
    return rows, parameter.size // rows


def _second_moment(vectors: Floats) -> Doubles:
    """Return Σ v vᵀ (n, n) of vectors (m, n) in their own precision, or its diagonal (n,) of long ones."""
    if vectors.shape[1] > LONGEST:
        found: Doubles = np.einsum("ij,ij->j", vectors, vectors, dtype=np.float64)
        return found
    vectors = np.ascontiguousarray(vectors)
    return (vectors.T @ vectors).astype(np.float64)


def blocks_of(totals: Mapping[str, Total], parameters: Iterable[Parameter]) -> dict[str, Block]:
    """Return the K-FAC blocks of parameters, each without its sums, which are let go of.

    A parameter that no sample's loss depends on has a block of zeros.
    """
    found, left = {}, dict(totals)
    for parameter in parameters:
        total = left.pop(parameter.name, None)
        if total is None or not total.samples:
            rows, columns = parameter.matrix_shape
            found[parameter.name] = Block(parameter, Side(np.zeros(rows), None), Side(np.zeros(columns), None), 1.0)
            continue
        above, below = (array / total.samples for array in total.arrays)
        total.arrays.clear()
        if total.form == FACTORS:
            scale = total.samples / max(total.positions, 1)
        else:  # of the exact matrix, whose other side is the number 1, that number
            trace = float(below.sum() if below.ndim == 1 else np.trace(below))
            scale = 1 / trace if trace > 0 else 1.0
        found[parameter.name] = Block(parameter, Side.of(above), Side.of(below), scale)
    return found


class EigenvalueSums(Sums):
    """Adds up the squares of gradients' coordinates in given eigenvectors: EKFAC's eigenvalues.

    George et al. 2018, https://arxiv.org/abs/1806.03884: λ = E[(Q_Rᵀ ∇W Q_C)²], the best diagonal for these vectors. Of
    one position, (r̂ ∘ r̂)(ĉ ∘ ĉ)ᵀ is summed without forming a gradient.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = {block.parameter.name: block for block in blocks}
        super().__init__(block.parameter for block in self._blocks.values())
        self._vectors: dict[tuple[str, bool, Any], NDArray[Any] | None] = {}

    def of_formed(self, parameter: Parameter, gradients: Floats) -> Total:
        """Return Σ (Q_Rᵀ ∇W Q_C)²."""
        block, count = self._blocks[parameter.name], len(gradients)
        coordinates = gradients.reshape(count, *block.shape)
        if (columns := self._side(block, False, gradients.dtype)) is not None:
            coordinates = times(coordinates, columns)
        return Total([self._squared(block, coordinates)], count, 0, "")

    def of_factors(self, parameter: Parameter, rows: Floats | Ids, columns: Floats, places: Places) -> Total:
        """Return Σ (Σ_t r̂_t ĉ_tᵀ)²."""
        block, (count, positions, _) = self._blocks[parameter.name], columns.shape
        vectors = self._side(block, False, columns.dtype)
        if places is not None:
            columns = columns[:, :, np.argsort(places)] if vectors is None else columns
            vectors = None if vectors is None else vectors[places]
        if vectors is not None:
            columns = times(columns, vectors)
        if rows.ndim == 2:
            return Total([self._squared_rows(block, rows, columns)], count, 0, "")
        if positions > 1:
            return Total([self._squared(block, np.matmul(rows.transpose(0, 2, 1), columns))], count, 0, "")
        left, right = rows[:, 0], columns[:, 0]
        if (above := self._side(block, True, rows.dtype)) is not None:
            left = left @ above
        return Total([((left * left).T @ (right * right)).astype(np.float64)], count, 0, "")

    def _squared(self, block: Block, half: Floats) -> Doubles:
        """Return Σ (Q_Rᵀ H)² (R, C) of H (b, R, C)."""
        above = self._side(block, True, half.dtype)
        coordinates = half if above is None else np.matmul(above.T, half)
        found: Doubles = np.einsum("brc,brc->rc", coordinates, coordinates).astype(np.float64)
        return found

    def _squared_rows(self, block: Block, numbers: NDArray[Any], columns: Floats) -> Doubles:
        """Return Σ (Σ_t e_{x_t} ĉ_tᵀ)², a sample's equal rows added up first."""
        (count, positions), height = numbers.shape, block.shape[0]
        keys = numbers + height * np.arange(count)[:, None]
        found, inverse = np.unique(keys, return_inverse=True)
        total = np.arange(count * positions + 1)
        gather = csr_matrix(
            (np.ones(count * positions, columns.dtype), inverse.ravel(), total), (len(total) - 1, len(found))
        )
        squares = (gather.T @ columns.reshape(count * positions, -1)) ** 2
        rows = found % height
        add = csr_matrix((np.ones(len(rows)), rows, np.arange(len(rows) + 1)), (len(rows), height))
        coordinates = np.asarray(add.T @ squares.astype(np.float64))
        above = self._side(block, True, np.dtype(np.float64))
        if above is not None:
            raise TypeError("A table whose rows were looked up has unit vectors there.")
        return coordinates

    def _side(self, block: Block, above: bool, dtype: Any) -> NDArray[Any] | None:
        """Return the eigenvectors of one side in a working precision, made once."""
        key = (block.parameter.name, above, np.dtype(dtype))
        if key not in self._vectors:
            vectors = (block.rows if above else block.columns).vectors
            self._vectors[key] = None if vectors is None else np.ascontiguousarray(vectors, dtype)
        return self._vectors[key]

    def cost(self, parameter: Parameter) -> float:
        """Return the cost of two products with a formed gradient."""
        return rotation_cost(self._blocks.get(parameter.name))

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return the cost of two products with the factors, and of forming their product where T > 1."""
        return factor_rotation_cost(self._blocks.get(parameter.name), positions, touched)


def times(vectors: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the products (…, k) of vectors (…, n) with a matrix (n, k), by one product: NumPy makes one a sample."""
    flat: NDArray[Any] = vectors.reshape(-1, vectors.shape[-1]) @ matrix
    return flat.reshape(*vectors.shape[:-1], matrix.shape[1])


def rotation_cost(block: Block | None) -> float:
    """Return about how many nanoseconds it takes to turn a formed gradient into a block's eigenvectors."""
    if block is None:
        return 0.0
    rows, columns = block.shape
    by_column = 0 if block.columns.vectors is None else columns
    by_row = 0 if block.rows.vectors is None else rows
    return rows * columns * ((by_column + by_row) / _PER_NS + 0.2)


def factor_rotation_cost(block: Block | None, positions: int, touched: bool) -> float:
    """Return about how many nanoseconds it takes to turn factors of T positions into a block's eigenvectors."""
    if block is None:
        return 0.0
    rows, columns = block.shape
    if (rows, columns) != block.parameter.matrix_shape or (touched and block.rows.vectors is not None):
        return np.inf  # a matrix seen as one column; a table whose rows mix
    by_column = 0 if block.columns.vectors is None else columns
    cost = positions * columns * by_column / _PER_NS
    if touched:
        return cost + positions * columns
    if positions == 1:
        return cost + (0 if block.rows.vectors is None else rows * rows / _PER_NS) + rows * columns / _PER_NS
    inner = 0 if block.rows.vectors is None else rows
    return cost + rows * columns * ((positions + inner) / _PER_NS + 0.2)
