"""Landmarks of every checkpoint of a training run: coordinates side by side, one block a checkpoint.

With g = (g_1, …, g_C) the concatenated gradient, p_c is the orthogonal projection of g_c/‖g‖ onto the leading
directions that the landmarks' gradients span at checkpoint c. (p_1, …, p_C) is that of g/‖g‖ onto all of them, so
that bounds are those of `gradindex.sketch.landmark`.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.parameter import Floats, Parameter
from gradindex.sketch.landmark import LandmarkProjector, Whitening

if TYPE_CHECKING:
    from gradindex.sketch.captured import Recorder
    from gradindex.sketch.landmark_options import Landmark

T = TypeVar("T")


class CheckpointLandmarks(LandmarkProjector):
    """`Landmark(per_checkpoint=True)`: kernel values (b, C·L) become rows (p_1, …, p_C, ρ)."""

    def __init__(self, options: "Landmark", parameters: Sequence[Parameter], seed: int) -> None:
        super().__init__(options, parameters, seed)
        places = sorted({one.checkpoint for one in parameters})
        self._parts = {
            place: LandmarkProjector(options, [one for one in parameters if one.checkpoint == place], seed)
            for place in places
        }
        self._norms: list[NDArray[np.float64]] = []

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Numbers that are added up for a sample."""
        return self.count * len(self._parts)

    @property
    def width(self) -> int:
        """Numbers of a finished row."""
        return self.coordinates + 1

    @property
    def coordinates(self) -> int:
        """Numbers of a finished row that are coordinates."""
        return self.options.dims * len(self._parts)

    def adopt(self, recorder: "Recorder") -> NDArray[np.float64]:
        """Take over recorded landmarks; return the norms (L,) of their covered parts, of all checkpoints."""
        self.count, self.forms = recorder.count, recorder.forms
        self._norms = []
        for part in self._parts.values():
            names = {one.name for one in part.parameters}
            own = copy.copy(recorder)
            own.forms, own.sides = _some(recorder.forms, names), _some(recorder.sides, names)
            own.whole, own.touched = _some(recorder.whole, names), _some(recorder.touched, names)
            self._norms.append(part.adopt(own))
        found: NDArray[np.float64] = np.linalg.norm(np.stack(self._norms), axis=0)
        return found

    def whiten(self, norms: NDArray[np.float64]) -> Whitening:
        """Find the leading directions of the adopted landmarks at each checkpoint, and use them.

        The `matrix` of what is returned is (L, C·dims): the checkpoints' matrices side by side, with zeros behind those
        of fewer directions.
        """
        matrix, squares = np.zeros((self.count, self.coordinates)), 0.0
        for place, (part, own) in enumerate(zip(self._parts.values(), self._norms, strict=True)):
            found = part.whiten(own)
            begin = place * self.options.dims
            matrix[:, begin : begin + found.matrix.shape[1]] = found.matrix
            squares += found.error**2
        white = Whitening(matrix, norms, math.sqrt(squares))
        self.use(white)
        return white

    def drift(self, white: Whitening) -> float:
        """Return how far the adopted landmarks' own coordinates are from those at the time of a whitening."""
        dims, squares = self.options.dims, 0.0
        for place, (part, own) in enumerate(zip(self._parts.values(), self._norms, strict=True)):
            some = Whitening(white.matrix[:, place * dims : (place + 1) * dims], own, white.error)
            squares += part.drift(some) ** 2
        return math.sqrt(squares)

    def use(self, whitening: Whitening) -> None:
        """Finish rows with this whitening from now on."""
        self._whitening = whitening

    def finish(self, sketches: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return rows (p_1, …, p_C, ρ), (b, width), from what was added up (b, dim) and norms (b,)."""
        white, dims = self.whitening, self.options.dims
        values = sketches.astype(np.float64)
        unit = np.divide(values, norms[:, None], out=np.zeros_like(values), where=norms[:, None] > 0)
        out = np.zeros((len(sketches), self.width), np.float32)
        for place in range(len(self._parts)):
            block = slice(place * dims, (place + 1) * dims)
            out[:, block] = unit[:, place * self.count : (place + 1) * self.count] @ white.matrix[:, block]
        known = np.maximum(np.linalg.norm(out[:, :-1].astype(np.float64), axis=1) - white.error, 0)
        out[:, -1] = np.where(norms > 0, np.sqrt(np.maximum(1 - known**2, 0)), 0)
        return out

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add what formed gradients (b, size) come to, to their checkpoint's numbers in `out` (b, dim)."""
        part, values = self._of(out, parameter)
        part.add(values, parameter, gradients)

    def add_factors(self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats) -> None:
        """Add what Σ_t r_t c_tᵀ comes to."""
        part, values = self._of(out, parameter)
        part.add_factors(values, parameter, rows, columns)

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        return self._parts[parameter.checkpoint].cost(parameter)

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        return self._parts[parameter.checkpoint].factor_cost(parameter, positions, touched)

    def _of(self, out: NDArray[np.float32], parameter: Parameter) -> tuple[LandmarkProjector, NDArray[np.float32]]:
        part = self._parts[parameter.checkpoint]
        begin = list(self._parts).index(parameter.checkpoint) * self.count
        return part, out[:, begin : begin + self.count]


def _some(kept: Mapping[str, T], names: set[str]) -> dict[str, T]:
    return {name: value for name, value in kept.items() if name in names}
