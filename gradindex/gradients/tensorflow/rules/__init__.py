"""Per-sample gradients of single layers, one small rule for each kind; importing this registers them."""

from gradindex.gradients.tensorflow.rules import conv, elementwise

__all__ = ["conv", "elementwise"]
