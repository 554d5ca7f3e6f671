"""Patches of images, cut by compiled loops, and gradients of depthwise convolutions."""

import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.geometry import Geometry, geometry
from gradindex.compiled.jit import compiled
from gradindex.compiled.threads import for_samples

__all__ = ["Geometry", "cut", "depthwise", "geometry"]


def cut(large: NDArray[np.floating], out: NDArray[np.floating], at: Geometry) -> None:
    """Write the patches of `large` (n, *space, C) to `out` (n, positions, kernel·C)."""
    images = large.reshape(len(large), *at.large, at.channels)
    into = out.reshape(len(out), *at.small, *at.kernel, at.channels)
    place = at.stride, at.dilation, at.before
    for_samples(lambda some: _cut(images[some], into[some], *place), len(out), out.size // 2)


@compiled()
def _cut(
    images: NDArray[np.floating],
    out: NDArray[np.floating],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    before: tuple[int, ...],
) -> None:
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


def depthwise(large: NDArray[np.floating], small: NDArray[np.floating], at: Geometry) -> NDArray[np.floating]:
    """Return gradients (n, kernel·C·R/C) of a convolution with a kernel for each channel, formed."""
    images = large.reshape(len(large), *at.large, at.channels)
    deltas = small.reshape(len(small), *at.small, at.channels, -1)
    out = np.zeros((len(large), *at.kernel, at.channels, deltas.shape[-1]), large.dtype)
    place = at.stride, at.dilation, at.before
    for_samples(lambda some: _depthwise(images[some], deltas[some], out[some], *place), len(out), deltas.size)
    return out.reshape(len(out), -1)


@compiled()
def _depthwise(
    images: NDArray[np.floating],
    deltas: NDArray[np.floating],
    out: NDArray[np.floating],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    before: tuple[int, ...],
) -> None:
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
