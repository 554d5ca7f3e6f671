"""The loops of CountSketch, compiled."""

import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.jit import compiled
from gradindex.compiled.squares import square


@compiled(fastmath=True)
def scatter(
    out: NDArray[np.float32],
    squares: NDArray[np.float64],
    matrix: NDArray[np.float32],
    rows: NDArray[np.uint32],
    row_signs: NDArray[np.float32],
    columns: NDArray[np.uint32],
    column_signs: NDArray[np.float32],
) -> None:
    """Add formed gradients (n, R, C) to `out` (n, dim): entry (r, c) to bucket (rows[r] + columns[c]) mod dim.

    Their squared norms are added to `squares` (n,) float64 in the same pass over memory. Sums run over 2·dim
    buckets, so that the modulo is taken once, at the end.
    """
    n, dim = out.shape
    if 2 * matrix.shape[1] * matrix.shape[2] <= dim:
        _scatter_few(out, squares, matrix, rows, row_signs, columns, column_signs)
        return
    sums = np.empty(2 * dim, np.float32)
    for sample in range(n):
        sums[:] = 0
        for row in range(matrix.shape[1]):
            here, sign, values = sums[rows[row] :], row_signs[row], matrix[sample, row]
            for column in range(matrix.shape[2]):
                here[columns[column]] += sign * column_signs[column] * values[column]
            squares[sample] += square(values)
        for bucket in range(dim):
            out[sample, bucket] += sums[bucket] + sums[bucket + dim]


@compiled(fastmath=True)
def _scatter_few(
    out: NDArray[np.float32],
    squares: NDArray[np.float64],
    matrix: NDArray[np.float32],
    rows: NDArray[np.uint32],
    row_signs: NDArray[np.float32],
    columns: NDArray[np.uint32],
    column_signs: NDArray[np.float32],
) -> None:
    """Add fewer numbers than there are buckets where they belong: a bias of 16 takes 4 µs for 128 samples, not 78."""
    dim = out.shape[1]
    for sample in range(matrix.shape[0]):
        for row in range(matrix.shape[1]):
            first, sign, values = np.int64(rows[row]), row_signs[row], matrix[sample, row]
            for column in range(matrix.shape[2]):
                bucket = first + np.int64(columns[column])
                bucket -= dim if bucket >= dim else 0
                out[sample, bucket] += sign * column_signs[column] * values[column]
            squares[sample] += square(values)


@compiled(fastmath=True)
def scatter_touched(
    out: NDArray[np.float32],
    touched: NDArray[np.uint32],
    values: NDArray[np.float32],
    rows: NDArray[np.uint32],
    row_signs: NDArray[np.float32],
    columns: NDArray[np.uint32],
    column_signs: NDArray[np.float32],
) -> None:
    """Add rows `touched` (n, T) of a matrix, each with gradient `values` (n, T, C), to `out` (n, dim)."""
    dim = np.uint32(out.shape[1])
    for sample in range(out.shape[0]):
        for position in range(touched.shape[1]):
            row = touched[sample, position]
            shift, sign = rows[row], row_signs[row]
            for column in range(values.shape[2]):
                bucket = shift + columns[column]
                if bucket >= dim:
                    bucket -= dim
                out[sample, bucket] += sign * column_signs[column] * values[sample, position, column]


@compiled(fastmath=True)
def count(
    out: NDArray[np.float32],
    values: NDArray[np.float32],
    first: int,
    buckets: NDArray[np.uint32],
    signs: NDArray[np.float32],
) -> None:
    """Add vectors (n, T, size), from position `first` on, to their plain CountSketches `out` (n, t, dim)."""
    for sample in range(out.shape[0]):
        for position in range(out.shape[1]):
            into, vector = out[sample, position], values[sample, first + position]
            for i in range(values.shape[2]):
                into[buckets[i]] += signs[i] * vector[i]


@compiled(fastmath=True)
def count_across(
    out: NDArray[np.float32],
    values: NDArray[np.float32],
    first: int,
    buckets: NDArray[np.uint32],
    signs: NDArray[np.float32],
) -> None:
    """Do what `count` does for vectors that lie across memory, `values` (n, size, T)."""
    for sample in range(values.shape[0]):
        into = out[sample]
        for i in range(values.shape[1]):
            bucket, sign, across = buckets[i], signs[i], values[sample, i]
            for position in range(out.shape[1]):
                into[position, bucket] += sign * across[first + position]


@compiled(fastmath=True)
def rotate_sum(
    out: NDArray[np.float32],
    counts: NDArray[np.float32],
    values: NDArray[np.float32],
    first: int,
    buckets: NDArray[np.uint32],
    signs: NDArray[np.float32],
) -> None:
    """Add Σ_t Σ_r s_r·v_tr·counts_t rotated by h_r to `out` (n, dim): a circular convolution with few numbers."""
    dim = out.shape[1]
    for sample in range(out.shape[0]):
        for position in range(counts.shape[1]):
            vector = counts[sample, position]
            for row in range(values.shape[2]):
                shift, factor = buckets[row], signs[row] * values[sample, first + position, row]
                if factor != 0:
                    end, begin = out[sample, shift:], out[sample, :shift]
                    for i in range(len(end)):
                        end[i] += factor * vector[i]
                    rest = vector[dim - shift :]
                    for i in range(len(begin)):
                        begin[i] += factor * rest[i]


@compiled(fastmath=True)
def multiply_sum(out: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """Add Σ_t left_t ∘ right_t of spectra (n, T, m) to `out` (n, m)."""
    for sample in range(left.shape[0]):
        for position in range(left.shape[1]):
            for i in range(left.shape[2]):
                out[sample, i] += left[sample, position, i] * right[sample, position, i]
