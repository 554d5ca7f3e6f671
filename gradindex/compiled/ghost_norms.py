"""Norms of per-sample gradients from their factors, without the gradients: Σ_{t,u} ⟨r_t, r_u⟩⟨c_t, c_u⟩.

Ghost norms (Goodfellow 2015, https://arxiv.org/abs/1510.01799; Li et al. 2022, https://arxiv.org/abs/2110.05679).
Patches overlap, so the Gram matrix of patches is a sum of shifted Gram matrices of pixels, which have `taps` times
fewer products.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.geometry import Geometry
from gradindex.compiled.jit import compiled
from gradindex.compiled.outer_products import add_products
from gradindex.compiled.threads import for_samples

# Nanoseconds on two cores: a multiply-add, a number transposed, an entry of two Gram matrices multiplied.
_MULTIPLY, _COPY, _JOIN = 0.008, 0.5, 0.15


def cost(positions: int, height: int, width: int) -> float:
    """Return about how many nanoseconds `squared` takes for one sample."""
    if positions == 1:
        return (height + width) * _MULTIPLY
    return (height + width) * positions * (positions * _MULTIPLY + _COPY) + positions**2 * _JOIN


def convolution_cost(at: Geometry, outputs: int) -> float:
    """Return about how many nanoseconds `of_convolution` takes for one sample."""
    pixels, positions = int(np.prod(at.spans)), at.positions
    grams = pixels * at.channels * (pixels * _MULTIPLY + _COPY) + positions * outputs * (positions * _MULTIPLY + _COPY)
    return grams + at.taps * positions**2 * _JOIN * 2


def squared(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ‖Σ_t r_t c_tᵀ‖² (n,), given rows (n, T, R) and columns (n, T, C), C-contiguous float32."""
    out = np.zeros(len(rows), np.float64)
    work = int(cost(rows.shape[1], rows.shape[2], columns.shape[2]) * 2 * len(out))
    for_samples(lambda some: _squared(rows[some], columns[some], out[some]), len(out), work)
    return out


def of_convolution(large: NDArray[np.float32], small: NDArray[np.float32], at: Geometry) -> NDArray[np.float64]:
    """Return squared norms (n,) of the kernel's gradients, given `large` (n, *space, C) and `small` (n, …, R).

    For convolutions without groups; both arrays are C-contiguous float32.
    """
    images = large.reshape(len(large), *at.large, at.channels)
    deltas = small.reshape(len(small), at.positions, small.shape[-1])
    pixels, shifts = _places(at)
    before, spans = np.array(at.before), np.array(at.spans)
    out = np.zeros(len(large), np.float64)
    for_samples(
        lambda some: _of_convolution(images[some], deltas[some], out[some], before, spans, pixels, shifts),
        len(out),
        int(convolution_cost(at, deltas.shape[2]) * 2 * len(out)),
    )
    return out


def _places(at: Geometry) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the padded image's pixel under each patch's first tap, and of each tap beyond that."""
    grid = np.arange(int(np.prod(at.spans)), dtype=np.int64).reshape(at.spans)
    starts = [np.arange(n) * step for n, step in zip(at.small, at.stride, strict=True)]
    taps = [np.arange(n) * step for n, step in zip(at.kernel, at.dilation, strict=True)]
    return grid[np.ix_(*starts)].ravel(), grid[np.ix_(*taps)].ravel()


@compiled()
def _gram(vectors: NDArray[np.float32], turned: NDArray[np.float32], out: NDArray[np.float32]) -> float:
    """Write the inner products of vectors (T, n), each divided by their largest number, and return that.

    Without the division, products of small numbers would vanish in single precision.
    """
    count, size = vectors.shape
    largest = np.float32(0)
    for t in range(count):
        for i in range(size):
            largest = max(largest, abs(vectors[t, i]))
    out[:] = 0
    if largest > 0:
        for t in range(count):
            for i in range(size):
                turned[i, t] = vectors[t, i] / largest
        here = turned.ctypes.data
        add_products(here, 0, count, count, here, 0, count, count, 1, size, out.ctypes.data, count)
    return np.float64(largest)


@compiled()
def _squared(rows: NDArray[np.float32], columns: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    n, positions, height = rows.shape
    width = columns.shape[2]
    if positions == 0 or height == 0 or width == 0:
        return
    first, second = np.empty((positions, positions), np.float32), np.empty((positions, positions), np.float32)
    turned, other = np.empty((height, positions), np.float32), np.empty((width, positions), np.float32)
    for sample in range(n):
        scale = _gram(rows[sample], turned, first) * _gram(columns[sample], other, second)
        total = 0.0
        for t in range(positions):
            for u in range(positions):
                total += np.float64(first[t, u]) * np.float64(second[t, u])
        out[sample] = 0.0 if total < 0 else total * scale * scale  # a NaN stays


@compiled()
def _of_convolution(
    images: NDArray[np.float32],
    deltas: NDArray[np.float32],
    out: Any,
    before: NDArray[np.int64],
    spans: NDArray[np.int64],
    pixels: NDArray[np.int64],
    shifts: NDArray[np.int64],
) -> None:
    n, positions, outputs = deltas.shape
    channels = images.shape[4]
    padded = np.zeros((spans[0], spans[1], spans[2], channels), np.float32)
    count = spans[0] * spans[1] * spans[2]
    first, second = np.empty((count, count), np.float32), np.empty((positions, positions), np.float32)
    turned, other = np.empty((channels, count), np.float32), np.empty((outputs, positions), np.float32)
    for sample in range(n):
        image = images[sample]
        for d in range(min(image.shape[0], spans[0] - before[0])):
            for h in range(min(image.shape[1], spans[1] - before[1])):
                for w in range(min(image.shape[2], spans[2] - before[2])):
                    for channel in range(channels):
                        padded[d + before[0], h + before[1], w + before[2], channel] = image[d, h, w, channel]
        scale = _gram(padded.reshape(count, channels), turned, first) * _gram(deltas[sample], other, second)
        total = 0.0
        for shift in shifts:
            for t in range(positions):
                line, weights = first[pixels[t] + shift], second[t]
                for u in range(positions):
                    total += np.float64(line[pixels[u] + shift]) * np.float64(weights[u])
        out[sample] = 0.0 if total < 0 else total * scale * scale  # a NaN stays
