"""The options of a landmark sketch; see `gradindex.sketch.landmark` for what it computes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradindex.defaults import LANDMARK_DIMS, LANDMARK_RESIDUAL, LANDMARKS
from gradindex.gradients.parameter import Parameter
from gradindex.sketch.base import Sketch
from gradindex.sketch.hashing import check_seed
from gradindex.sketch.landmark import BY_NORM, UNIFORM, LandmarkProjector
from gradindex.sketch.landmark_checkpoints import CheckpointLandmarks


@dataclass(frozen=True)
class Landmark(Sketch):
    """Rows (p, ρ) of `dims` + 1 numbers and unit norm, whose inner products are upper bounds of the cosine.

    With `residual`, rows (p, s) of `dims` + `residual` numbers: s is a CountSketch of what p leaves out, scaled to the
    length ρ. Their inner products estimate the cosine far better than a CountSketch of as many numbers, and bound it
    by the lengths of s. The sketch that ``explain(..., certify=True)`` proves its answers with. `dim`, the width of a
    row, follows from both.

    Parameters
    ----------
    landmarks
        How many training samples, drawn by the seed; all of them if there are fewer.
    dims
        Coordinates kept. Fewer directions than this leave zeros.
    memory
        Bytes that the landmarks' gradients may take. Parameters are covered in the order of their size; those that
        do not fit have no coordinates and are part of ρ, which leaves every bound valid.
    residual
        Numbers for a sketch of what the coordinates leave out; 0: its length alone is kept.
    draw
        ``"uniform"``, or ``"norm"``: in proportion to the norms of the gradients, of 8 times as many samples drawn
        uniformly, whose norms are computed first. Directions are then those of the second moment of the gradients as
        they are, not of unit norm, so that fewer coordinates do for whitening (`gradindex.sketch.whitening`).
    per_checkpoint
        Of a job with checkpoints: `dims` coordinates for each of them, side by side, in the span of the landmarks'
        gradients there, so that each is whitened by its own second moment. Without `residual`.
    """

    dim: int = field(init=False, default=1)
    landmarks: int = LANDMARKS
    dims: int = LANDMARK_DIMS
    memory: int = 1 << 30
    residual: int = LANDMARK_RESIDUAL
    draw: str = UNIFORM
    per_checkpoint: bool = False
    kind: ClassVar[str] = "landmark"
    bounds_cosine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("landmarks", "dims", "memory"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if not isinstance(self.residual, int) or self.residual < 0:
            raise ValueError(f"residual must be an integer of 0 or more, got {self.residual!r}.")
        if self.per_checkpoint and self.residual:
            raise ValueError("per_checkpoint keeps no sketch of what coordinates leave out: give residual=0 with it.")
        if self.draw not in (UNIFORM, BY_NORM):
            raise ValueError(f"Unknown draw {self.draw!r}. Expected one of: {UNIFORM!r} | {BY_NORM!r}.")
        if self.dims > self.landmarks:
            raise ValueError(f"dims is {self.dims}, but {self.landmarks} landmarks span at most as many directions.")
        object.__setattr__(self, "dim", self.dims + (self.residual or 1))

    def blocks(self, width: int) -> tuple[int, ...]:
        """Return the numbers of coordinates, with the residual's sketch; the length left out is not linear."""
        if self.per_checkpoint:
            return (self.dims,) * ((width - 1) // self.dims)
        return (self.dims + self.residual,)

    def bind(self, parameters: Sequence[Parameter], seed: int) -> "LandmarkProjector":
        """Return the projection, which needs its landmarks before use; see `gradindex.compute.landmarks`."""
        if self.per_checkpoint:
            return CheckpointLandmarks(self, parameters, check_seed(seed))
        return LandmarkProjector(self, parameters, check_seed(seed))

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        options = {"kind": self.kind, "landmarks": self.landmarks, "dims": self.dims, "memory": self.memory}
        more = {"residual": self.residual, "draw": self.draw, "per_checkpoint": self.per_checkpoint}
        return options | {name: value for name, value in more.items() if value not in (0, UNIFORM)}
