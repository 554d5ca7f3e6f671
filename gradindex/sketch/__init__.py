"""Random projections of gradients: frozen options here, tables bound to a model's parameters elsewhere."""

from gradindex.sketch.base import Sketch, from_json
from gradindex.sketch.countsketch import CountSketch
from gradindex.sketch.dense import Gaussian, Rademacher
from gradindex.sketch.identity import Identity
from gradindex.sketch.sjlt import SJLT

__all__ = ["SJLT", "CountSketch", "Gaussian", "Identity", "Rademacher", "Sketch", "from_json"]
