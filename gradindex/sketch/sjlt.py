"""Sparse Johnson-Lindenstrauss transform: `nonzeros` signed buckets for every gradient entry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch.base import Sketch
from gradindex.sketch.hashing import buckets_and_signs, check_seed, stream

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_PURPOSE = 1 << 15


@dataclass(frozen=True)
class SJLT(Sketch):
    """Every entry goes to `nonzeros` buckets with ±1/√nonzeros (Kane & Nelson 2014, block construction)."""

    nonzeros: int = 4
    kind: ClassVar[str] = "sjlt"
    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonzeros < 1 or self.dim % self.nonzeros:
            raise ValueError(f"nonzeros must divide dim {self.dim}, got {self.nonzeros}.")

    def bind(self, parameters: Sequence[Parameter], seed: int) -> "_SJLTProjector":
        """Return the projection for these parameters and seed."""
        return _SJLTProjector(self, parameters, check_seed(seed))


class _SJLTProjector(Projector):
    def __init__(self, sketch: SJLT, parameters: Sequence[Parameter], seed: int) -> None:
        self.dim = sketch.dim
        self._matrices = {parameter.name: _matrix(sketch, parameter, seed) for parameter in parameters}

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of formed gradients (b, size) to `out` (b, dim), in place."""
        canonical = parameter.canonical(gradients).astype(np.float32, copy=False)
        out += (self._matrices[parameter.name] @ canonical.T).T


def _matrix(sketch: SJLT, parameter: Parameter, seed: int) -> "csr_matrix":
    import scipy.sparse

    block = sketch.dim // sketch.nonzeros
    raw = stream(seed, parameter.position, _PURPOSE).random_raw(parameter.size * sketch.nonzeros)
    buckets, signs = buckets_and_signs(raw, block)
    rows = buckets + np.tile(np.arange(sketch.nonzeros, dtype=np.int32) * block, parameter.size)
    columns = np.repeat(np.arange(parameter.size), sketch.nonzeros)
    values = signs / np.float32(math.sqrt(sketch.nonzeros))
    return scipy.sparse.csr_array((values, (rows, columns)), shape=(sketch.dim, parameter.size))
