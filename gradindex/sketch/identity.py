"""No compression: the sketch is the gradient itself. For small models and for checking the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch.base import Sketch


@dataclass(frozen=True)
class Identity(Sketch):
    """The gradient, uncompressed, in the model's own order; `dim` is P whatever is given."""

    dim: int = 1
    kind: ClassVar[str] = "identity"

    def bind(self, parameters: Sequence[Parameter], seed: int) -> "_IdentityProjector":
        """Return the projection for these parameters; the seed has no effect."""
        return _IdentityProjector(parameters)


class _IdentityProjector(Projector):
    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._begin: dict[str, int] = {}
        self.dim = 0
        for parameter in parameters:
            self._begin[parameter.name] = self.dim
            self.dim += parameter.size

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the gradients (b, size) to their place in `out` (b, P)."""
        begin = self._begin[parameter.name]
        out[:, begin : begin + parameter.size] += gradients
