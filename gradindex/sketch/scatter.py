"""The loops of CountSketch, compiled, and the threads they run in.

Plain compiled loops that release the interpreter's lock, in a thread pool of our own: numba's OpenMP pool, when
its threads have to share cores with torch's, waits milliseconds at its barriers (measured: 7 ms a call), and
its other pool aborts the process on concurrent entry.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.emit import LANES
from gradindex.compiled.jit import compiled
from gradindex.sketch.lanes import add_lanes, count_lanes

_alone = threading.local()
_WORTH_A_THREAD = 200_000  # numbers; below this, handing work to a thread costs more than it saves


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, "gradindex-sketch")


def use_one_thread() -> None:
    """Let `for_samples`, when this thread calls it, use no other: the others have parts of their own."""
    _alone.here = True


def for_samples(work: Callable[[slice], None], samples: int, numbers: int) -> None:
    """Run `work` on slices that make up all samples, in as many threads as `numbers` of work are worth.

    A sample is one thread's work, so the result does not depend on the number of threads, which is
    ``NUMBA_NUM_THREADS``.
    """
    threads = min(numba.config.NUMBA_NUM_THREADS, samples, 1 + numbers // _WORTH_A_THREAD)
    if threads <= 1 or getattr(_alone, "here", False):
        work(slice(0, samples))
        return
    step = -(-samples // threads)
    step = -(-step // LANES) * LANES if samples >= LANES else step
    parts = [slice(begin, min(begin + step, samples)) for begin in range(0, samples, step)]
    others = [_pool(os.getpid()).submit(work, part) for part in parts[1:]]
    work(parts[0])
    for other in others:
        other.result()


@compiled(fastmath=True)
def scatter(out: Any, squares: Any, matrix: Any, rows: Any, row_signs: Any, columns: Any, column_signs: Any) -> None:
    """Add formed gradients (n, R, C) to `out` (n, dim): entry (r, c) to bucket (rows[r] + columns[c]) mod dim.

    Their squared norms are added to `squares` (n,) float64 in the same pass over memory. Sums run over 2·dim
    buckets, so that the modulo is taken once, at the end. The columns' tables go on, with signs 0, for LANES numbers.
    """
    n, dim = out.shape
    if 2 * matrix.shape[1] * matrix.shape[2] <= dim:
        _scatter_few(out, squares, matrix, rows, row_signs, columns, column_signs)
        return
    whole = n // LANES * LANES
    for begin in range(0, whole, LANES):
        _scatter_lanes(
            out[begin : begin + LANES],
            squares[begin : begin + LANES],
            matrix[begin : begin + LANES],
            rows,
            row_signs,
            columns,
            column_signs,
        )
    sums = np.empty(2 * dim, np.float32)
    for sample in range(whole, n):
        sums[:] = 0
        for row in range(matrix.shape[1]):
            here, sign, values = sums[rows[row] :], row_signs[row], matrix[sample, row]
            for column in range(matrix.shape[2]):
                here[columns[column]] += sign * column_signs[column] * values[column]
            squares[sample] += _square(values)
        for bucket in range(dim):
            out[sample, bucket] += sums[bucket] + sums[bucket + dim]


@compiled(fastmath=True)
def _scatter_few(
    out: Any, squares: Any, matrix: Any, rows: Any, row_signs: Any, columns: Any, column_signs: Any
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
            squares[sample] += _square(values)


@compiled(fastmath=True)
def _scatter_lanes(
    out: Any, squares: Any, matrix: Any, rows: Any, row_signs: Any, columns: Any, column_signs: Any
) -> None:
    """Do as many samples at once as a vector has lanes."""
    dim, width = out.shape[1], matrix.shape[2]
    sums, factors = np.zeros((2 * dim, LANES), np.float32), np.empty(LANES, np.float32)
    step = 4 * matrix.shape[1] * width
    for row in range(matrix.shape[1]):
        factors[:] = row_signs[row]
        into = sums[rows[row]].ctypes.data
        count_lanes(matrix[0, row].ctypes.data, step, width, columns, column_signs, factors, into)
        for lane in range(LANES):
            squares[lane] += _square(matrix[lane, row])
    for bucket in range(dim):
        for lane in range(LANES):
            sums[bucket, lane] += sums[bucket + dim, lane]
    add_lanes(sums[:dim], np.float32(1), out)


def squares(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return ‖v_i‖² (n,) of vectors (n, size)."""
    out = np.empty(len(values), np.float64)
    values = np.ascontiguousarray(values)
    for_samples(lambda some: _squares(values[some], out[some]), len(out), values.size // 8)
    return out


@compiled(fastmath=True)
def _squares(values: Any, out: Any) -> None:
    for row in range(values.shape[0]):
        out[row] = _square(values[row])


@compiled(fastmath=True)
def _square(values: Any) -> Any:
    """Square in double precision: in single, norms below 1e-19 vanish; and compiled it is the faster one."""
    total = np.float64(0)
    for i in range(len(values)):
        value = np.float64(values[i])
        total += value * value
    return total


@compiled(fastmath=True)
def scatter_touched(
    out: Any, touched: Any, values: Any, rows: Any, row_signs: Any, columns: Any, column_signs: Any
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
def count(out: Any, values: Any, first: int, buckets: Any, signs: Any) -> None:
    """Add vectors (n, T, size), from position `first` on, to their plain CountSketches `out` (n, t, dim)."""
    for sample in range(out.shape[0]):
        for position in range(out.shape[1]):
            into, vector = out[sample, position], values[sample, first + position]
            for i in range(values.shape[2]):
                into[buckets[i]] += signs[i] * vector[i]


@compiled(fastmath=True)
def count_across(out: Any, values: Any, first: int, buckets: Any, signs: Any) -> None:
    """Do what `count` does for vectors that lie across memory, `values` (n, size, T)."""
    for sample in range(values.shape[0]):
        into = out[sample]
        for i in range(values.shape[1]):
            bucket, sign, across = buckets[i], signs[i], values[sample, i]
            for position in range(out.shape[1]):
                into[position, bucket] += sign * across[first + position]


@compiled(fastmath=True)
def rotate_sum(out: Any, counts: Any, values: Any, first: int, buckets: Any, signs: Any) -> None:
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
def multiply_sum(out: Any, left: Any, right: Any) -> None:
    """Add Σ_t left_t ∘ right_t of spectra (n, T, m) to `out` (n, m)."""
    for sample in range(left.shape[0]):
        for position in range(left.shape[1]):
            for i in range(left.shape[2]):
                out[sample, i] += left[sample, position, i] * right[sample, position, i]
