"""Dense projections: independent Gaussian or ±1 entries, scaled by 1/√dim (Johnson & Lindenstrauss 1984).

The matrix is drawn anew in blocks, never held whole: k × P numbers would not fit. For small models and as the
yardstick of the others.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch.base import Sketch
from gradindex.sketch.hashing import check_seed, stream

_BLOCK = 4096  # gradient entries whose k numbers are drawn at once
_FIRST_PURPOSE = 2  # 0 and 1 are the two sides of the product hash


@dataclass(frozen=True)
class _Dense(Sketch):
    def bind(self, parameters: Sequence[Parameter], seed: int) -> "_DenseProjector":
        """Return the projection for these parameters and seed."""
        return _DenseProjector(self, check_seed(seed))

    @abstractmethod
    def entries(self, bits: np.random.Philox, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Draw unit-variance entries."""


@dataclass(frozen=True)
class Gaussian(_Dense):
    """Entries N(0, 1/dim)."""

    kind: ClassVar[str] = "gaussian"
    is_random: ClassVar[bool] = True

    def entries(self, bits: np.random.Philox, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Draw unit-variance entries."""
        return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Rademacher(_Dense):
    """Entries ±1/√dim with equal probability (Achlioptas 2003)."""

    kind: ClassVar[str] = "rademacher"
    is_random: ClassVar[bool] = True

    def entries(self, bits: np.random.Philox, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Draw unit-variance entries."""
        count = math.prod(shape)
        words = bits.random_raw(-(-count // 64))
        signs = np.unpackbits(np.asarray(words, "<u8").view(np.uint8), count=count)
        return (1.0 - 2.0 * signs.astype(np.float32)).reshape(shape)


class _DenseProjector(Projector):
    def __init__(self, sketch: _Dense, seed: int) -> None:
        self.dim, self._sketch, self._seed = sketch.dim, sketch, seed

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of formed gradients (b, size) to `out` (b, dim), in place."""
        canonical = parameter.canonical(gradients)
        scale = np.float32(1 / math.sqrt(self.dim))
        for block, begin in enumerate(range(0, parameter.size, _BLOCK)):
            part = canonical[:, begin : begin + _BLOCK].astype(np.float32, copy=False)
            bits = stream(self._seed, parameter.position, _FIRST_PURPOSE + block)
            out += (part @ self._sketch.entries(bits, (part.shape[1], self.dim))) * scale
