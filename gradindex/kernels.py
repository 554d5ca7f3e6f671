"""The three gradient kernels, and how each one becomes a search over unit-norm rows.

With q the gradient of the query and t that of a training sample (Charpiat et al. 2019,
"Input Similarity from the Neural Network Perspective"):

====================  ==============================
``grad_dot``          ⟨q, t⟩
``grad_cos``          ⟨q, t⟩ / (‖q‖‖t‖ + eps)
``grad_asym_dot``     ⟨q, t⟩ / (‖t‖² + eps)
====================  ==============================

Each kernel equals cos(q, t) times a weight that depends on the two norms alone, so one index of
unit-norm rows plus the exact norms serves all three.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.words import Task as Task  # pickled jobs name it here


class Kernel(StrEnum):
    """Name of a gradient kernel."""

    DOT = "grad_dot"
    COS = "grad_cos"
    ASYM_DOT = "grad_asym_dot"


class WhiteKernel(StrEnum):
    """Name of a kernel of whitened rows, see `gradindex.sketch.whitening`: what removing samples would do."""

    DOT = "white_dot"
    COS = "white_cos"

    @property
    def plain(self) -> Kernel:
        """The kernel that it is of the whitened rows, seen as gradients."""
        return Kernel.DOT if self is WhiteKernel.DOT else Kernel.COS


class KernelName(StrEnum):
    """Every kernel that an index of gradients may be asked for."""

    DOT = Kernel.DOT.value
    COS = Kernel.COS.value
    ASYM_DOT = Kernel.ASYM_DOT.value
    WHITE_DOT = WhiteKernel.DOT.value
    WHITE_COS = WhiteKernel.COS.value


def white(name: str | None) -> WhiteKernel | None:
    """Return the kernel of whitened rows that has this name; None if it is another kernel's, or none."""
    return WhiteKernel(name) if name in tuple(WhiteKernel) else None


def values(
    kernel: Kernel, dots: NDArray[Any], query_norms: NDArray[Any], train_norms: NDArray[Any], eps: float = 0.0
) -> NDArray[np.float64]:
    """Kernel values from inner products of gradients.

    Parameters
    ----------
    kernel
        Which kernel.
    dots
        Inner products ⟨q, t⟩, shape (m, n).
    query_norms, train_norms
        Norms ‖q‖, shape (m,), and ‖t‖, shape (n,) or (m, n).
    eps
        Added to the denominator. With ``eps=0`` a gradient of zero has the value 0, never NaN.

    Returns
    -------
    numpy.ndarray
        Shape (m, n), float64.
    """
    dots = np.asarray(dots, np.float64)
    train = np.asarray(train_norms, np.float64)
    if kernel is Kernel.DOT:
        return dots
    if kernel is Kernel.COS:
        denominator = np.asarray(query_norms, np.float64)[:, None] * train
    else:
        denominator = np.broadcast_to(train**2, dots.shape)
    return _divide(dots, denominator + eps)


def weights(kernel: Kernel, query_norm: float, train_norms: NDArray[Any], eps: float = 0.0) -> NDArray[np.float64]:
    """Return w, shape (n,), with kernel(q, t) = cos(q, t) · w(t); so |kernel(q, t)| ≤ w(t) (Cauchy-Schwarz)."""
    train = np.asarray(train_norms, np.float64)
    product = query_norm * train
    if kernel is Kernel.DOT:
        return product
    if kernel is Kernel.COS:
        return _divide(product, product + eps)
    return _divide(product, train**2 + eps)


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)
