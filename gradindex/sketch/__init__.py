"""Random projections of gradients: frozen options here, tables bound to a model's parameters elsewhere."""

from gradindex.defaults import SKETCH_DIM
from gradindex.sketch.base import Sketch, bounds_cosine, from_json
from gradindex.sketch.countsketch import CountSketch
from gradindex.sketch.dense import Gaussian, Rademacher
from gradindex.sketch.groups import Groups
from gradindex.sketch.identity import Identity
from gradindex.sketch.landmark_options import Landmark
from gradindex.sketch.sjlt import SJLT

__all__ = [
    "SJLT",
    "CountSketch",
    "Gaussian",
    "Groups",
    "Identity",
    "Landmark",
    "Rademacher",
    "Sketch",
    "bounds_cosine",
    "from_json",
    "widest",
]

_WIDE = 4096  # numbers a sample, where there are few samples
_FEW = 20_000


def widest(size: int, rows: int) -> Sketch:
    """Return the sketch for an index that few rows let be wide, of gradients of `size` numbers."""
    if size <= _WIDE:
        return Identity()
    return CountSketch(_WIDE if rows <= _FEW else SKETCH_DIM)
