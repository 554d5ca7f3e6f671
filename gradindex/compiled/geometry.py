"""Where the patches of a convolution lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np


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

    @property
    def spans(self) -> tuple[int, int, int]:
        """How far all patches together reach along each axis."""
        axes = zip(self.small, self.stride, self.kernel, self.dilation, strict=True)
        return _three([(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in axes])


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
