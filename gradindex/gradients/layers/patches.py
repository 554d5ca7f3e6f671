"""Patches of images, cut by compiled loops into a buffer that is reused.

Nearly all of the time of an im2col into fresh memory is page faults.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradindex.sketch.scatter import for_samples

_ALIGNMENT = 64  # bytes, as TensorFlow wants them


@dataclass(frozen=True)
class Geometry:
    """Where patches lie, in three dimensions of space (those that lack have length one)."""

    large: tuple[int, int, int]
    small: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    before: tuple[int, int, int]
    channels: int
    groups: int

    @property
    def taps(self) -> int:
        """Number of places in the kernel."""
        return int(np.prod(self.kernel))

    @property
    def length(self) -> int:
        """Numbers in a patch."""
        return self.taps * self.channels

    @property
    def positions(self) -> int:
        """Number of patches."""
        return int(np.prod(self.small))


def geometry(
    large: Any,
    small: Any,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Any,
    groups: int = 1,
    depthwise: bool = False,
) -> Geometry:
    """Return the geometry for the shapes of `large` (b, *space, C) and `small` (b, *positions, R).

    `padding` is "SAME", "VALID" or the numbers of zeros (before, after) by axis. "SAME" puts the odd zero after.
    """
    sizes, counts = _three(large[1:-1]), _three(small[1:-1])
    kernel, stride, dilation = _three(kernel), _three(stride), _three(dilation)
    if padding == "VALID":
        before = (0, 0, 0)
    elif padding == "SAME":
        spans = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(counts, stride, kernel, dilation, strict=True)]
        before = _three([max(span - size, 0) // 2 for span, size in zip(spans, sizes, strict=True)])
    else:
        before = _three([pair[0] for pair in padding], 0)
    return Geometry(sizes, counts, kernel, stride, dilation, before, int(large[-1]), groups)


def _three(values: Any, fill: int = 1) -> tuple[int, int, int]:
    a, b, c = ([fill] * 3 + [int(value) for value in values])[-3:]
    return a, b, c


class Buffer:
    """Memory that NumPy and TensorFlow share: an array to write into, and a tensor that shows it."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape))
        raw = np.empty(size + _ALIGNMENT // dtype.itemsize, dtype)
        begin = -raw.ctypes.data % _ALIGNMENT // dtype.itemsize
        self.array: NDArray[Any] = raw[begin : begin + size].reshape(shape)
        self.tensor = tf.experimental.dlpack.from_dlpack(self.array.__dlpack__())

    def __len__(self) -> int:
        return len(self.array)


def cut(large: NDArray[Any], out: NDArray[Any], at: Geometry) -> None:
    """Write the patches of `large` (n, *space, C) to `out` (n, positions, kernel·C)."""
    images = large.reshape(len(large), *at.large, at.channels)
    into = out.reshape(len(out), *at.small, *at.kernel, at.channels)
    place = at.stride, at.dilation, at.before
    for_samples(lambda some: _cut(images[some], into[some], *place), len(out), out.size // 2)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _cut(images: Any, out: Any, stride: Any, dilation: Any, before: Any) -> None:
    """Index whole arrays: views of rows would cost more than the rows (measured: three times)."""
    n, depth, height, width, channels = images.shape
    _, i_size, j_size, k_size, a_size, b_size, c_size, _ = out.shape
    for sample in range(n):
        for i in range(i_size):
            for j in range(j_size):
                for k in range(k_size):
                    for a in range(a_size):
                        d = i * stride[0] + a * dilation[0] - before[0]
                        for b in range(b_size):
                            h = j * stride[1] + b * dilation[1] - before[1]
                            for c in range(c_size):
                                w = k * stride[2] + c * dilation[2] - before[2]
                                if d < 0 or h < 0 or w < 0 or d >= depth or h >= height or w >= width:
                                    for channel in range(channels):
                                        out[sample, i, j, k, a, b, c, channel] = 0
                                else:
                                    for channel in range(channels):
                                        out[sample, i, j, k, a, b, c, channel] = images[sample, d, h, w, channel]


def depthwise(large: NDArray[Any], small: NDArray[Any], at: Geometry) -> NDArray[Any]:
    """Return gradients (n, kernel·C·R/C) of a convolution with a kernel for each channel, formed."""
    images = large.reshape(len(large), *at.large, at.channels)
    deltas = small.reshape(len(small), *at.small, at.channels, -1)
    out = np.zeros((len(large), *at.kernel, at.channels, deltas.shape[-1]), large.dtype)
    place = at.stride, at.dilation, at.before
    for_samples(lambda some: _depthwise(images[some], deltas[some], out[some], *place), len(out), deltas.size)
    return out.reshape(len(out), -1)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _depthwise(images: Any, deltas: Any, out: Any, stride: Any, dilation: Any, before: Any) -> None:
    n, depth, height, width, channels = images.shape
    _, i_size, j_size, k_size, _, multiplier = deltas.shape
    _, a_size, b_size, c_size, _, _ = out.shape
    for sample in range(n):
        for i in range(i_size):
            for j in range(j_size):
                for k in range(k_size):
                    for a in range(a_size):
                        d = i * stride[0] + a * dilation[0] - before[0]
                        for b in range(b_size):
                            h = j * stride[1] + b * dilation[1] - before[1]
                            for c in range(c_size):
                                w = k * stride[2] + c * dilation[2] - before[2]
                                if d < 0 or h < 0 or w < 0 or d >= depth or h >= height or w >= width:
                                    continue
                                source, delta, into = (
                                    images[sample, d, h, w],
                                    deltas[sample, i, j, k],
                                    out[sample, a, b, c],
                                )
                                for channel in range(channels):
                                    for m in range(multiplier):
                                        into[channel, m] += source[channel] * delta[channel, m]
