"""Per-sample gradients of convolutions' kernels, formed from the images themselves: no patches are cut."""

import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.geometry import Geometry
from gradindex.compiled.jit import compiled
from gradindex.compiled.outer_products import add_products
from gradindex.compiled.threads import for_samples

_SHORT = 8  # numbers: so short a row of a patch is not worth a pass of its own over all positions


def form(large: NDArray[np.float32], small: NDArray[np.float32], out: NDArray[np.float32], at: Geometry) -> None:
    """Write the gradients to `out` (n, kernel·C/groups, R), C-contiguous.

    `large` (n, *space, C) is correlated with `small` (n, *positions, R), both C-contiguous float32.
    """
    images = large.reshape(len(large), *at.large[:2], at.large[2] * at.channels)
    deltas = small.reshape(len(small), *at.small, small.shape[-1])
    spans = np.array(at.spans, np.int64)
    place = np.array([at.kernel, at.stride, at.dilation, at.before], np.int64)
    width = at.kernel[2] if at.groups == 1 and at.dilation[2] == 1 else 1
    kernel = _short if width * at.channels // at.groups < _SHORT and at.groups == 1 and at.taps > 1 else _form
    work = at.positions * at.length // at.groups * small.shape[-1] // 50
    for_samples(
        lambda some: kernel(images[some], deltas[some], out[some], spans, place, at.channels, at.groups, width),
        len(out),
        work * len(out),
    )


@compiled()
def _scratch(
    images: NDArray[np.float32], spans: NDArray[np.int64], before: NDArray[np.int64], channels: int
) -> NDArray[np.float32]:
    """Return zeros for all that patches reach, or nothing if that lies within the images."""
    shape = (spans[0], spans[1], spans[2] * channels)
    for axis in range(3):
        if before[axis] or shape[axis] > images.shape[axis + 1]:
            return np.zeros(shape, np.float32)
    return np.zeros((0, 0, 0), np.float32)


@compiled()
def _pad(image: NDArray[np.float32], before: NDArray[np.int64], channels: int, into: NDArray[np.float32]) -> None:
    """Copy an image (depth, height, width·channels) amid zeros, `before` of them on each axis, as far as it fits."""
    depth, height, _ = image.shape
    shift = before[2] * channels
    end = min(image.shape[2], into.shape[2] - shift)
    for d in range(min(depth, into.shape[0] - before[0])):
        for h in range(min(height, into.shape[1] - before[1])):
            source, line = image[d, h], into[d + before[0], h + before[1]]
            for w in range(end):
                line[w + shift] = source[w]


@compiled()
def _form(
    images: NDArray[np.float32],
    deltas: NDArray[np.float32],
    out: NDArray[np.float32],
    spans: NDArray[np.int64],
    place: NDArray[np.int64],
    whole: int,
    groups: int,
    width: int,
) -> None:
    """Take `width` taps of a patch's row at once: with all groups and without dilation they lie side by side."""
    kernel, stride, dilation, before = place[0], place[1], place[2], place[3]
    channels = whole // groups
    n, planes, rows, columns, outputs = deltas.shape
    each = outputs // groups
    scratch = _scratch(images, spans, before, whole)
    for sample in range(n):
        out[sample] = 0
        image = images[sample]
        if scratch.size:
            _pad(image, before, whole, scratch)
            image = scratch
        line = image.shape[2]
        plane = image.shape[1] * line
        source, delta, into = image.ctypes.data, deltas[sample].ctypes.data, out[sample].ctypes.data
        tap = 0
        for a in range(kernel[0]):
            for b in range(kernel[1]):
                for c in range(0, kernel[2], width):
                    for group in range(groups):
                        for i in range(planes):
                            begin = (i * stride[0] + a * dilation[0]) * plane + b * dilation[1] * line
                            begin += c * dilation[2] * whole + group * channels
                            add_products(
                                source + 4 * begin,
                                stride[1] * line,
                                stride[2] * whole,
                                width * channels,
                                delta + 4 * (i * rows * columns * outputs + group * each),
                                columns * outputs,
                                outputs,
                                each,
                                rows,
                                columns,
                                into + 4 * (tap * channels * outputs + group * each),
                                outputs,
                            )
                    tap += width


@compiled()
def _short(
    images: NDArray[np.float32],
    deltas: NDArray[np.float32],
    out: NDArray[np.float32],
    spans: NDArray[np.int64],
    place: NDArray[np.int64],
    whole: int,
    groups: int,
    width: int,
) -> None:
    """Cut the patches after all, since they are short; those of one sample stay in the cache."""
    kernel, stride, dilation, before = place[0], place[1], place[2], place[3]
    n, planes, rows, columns, outputs = deltas.shape
    scratch = _scratch(images, spans, before, whole)
    length = kernel[0] * kernel[1] * kernel[2] * whole
    patches = np.empty((planes, rows, columns, length), np.float32)
    step = stride[2] * whole
    for sample in range(n):
        out[sample] = 0
        image = images[sample]
        if scratch.size:
            _pad(image, before, whole, scratch)
            image = scratch
        at = 0
        for a in range(kernel[0]):
            for b in range(kernel[1]):
                for c in range(kernel[2]):
                    for channel in range(whole):
                        begin = c * dilation[2] * whole + channel
                        for i in range(planes):
                            for j in range(rows):
                                line = image[i * stride[0] + a * dilation[0], j * stride[1] + b * dilation[1]]
                                into = patches[i, j]
                                for k in range(columns):
                                    into[k, at] = line[begin + k * step]
                        at += 1
        add_products(
            patches.ctypes.data, 0, length, length, deltas[sample].ctypes.data, 0, outputs, outputs, 1,
            planes * rows * columns, out[sample].ctypes.data, outputs,
        )  # fmt: skip
