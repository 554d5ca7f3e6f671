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

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Wording:
    """What people read of a kernel: its `title`, what it `finds`, which samples its `proponents` and `opponents` are.

    `estimated` says that its values are never exact.
    """

    title: str
    finds: str
    proponents: str
    opponents: str
    estimated: bool = False

    @property
    def sentence(self) -> str:
        """Which question it answers."""
        return f"The {self.title} {self.finds}."


_STEP = "a step on these would make the query's loss smaller", "a step on these would make it larger"
_GONE = "without these the query's loss would be larger", "without these it would be smaller"
WORDING = {
    KernelName.COS: Wording("gradient cosine", "finds samples that are alike to the model", *_STEP),
    KernelName.DOT: Wording(
        "gradient inner product", "finds samples on which a training step does most to the query", *_STEP
    ),
    KernelName.ASYM_DOT: Wording(
        "asymmetric gradient product",
        "finds samples on which a training step does most to the query for what it does to the sample itself",
        *_STEP,
    ),
    KernelName.WHITE_DOT: Wording(
        "whitened product",
        "estimates which samples' removal from the training set would change the query most",
        *_GONE,
        estimated=True,
    ),
    KernelName.WHITE_COS: Wording(
        "whitened cosine",
        "estimates which samples' removal would move the model most in the query's direction, whatever their size",
        *_GONE,
        estimated=True,
    ),
}
"""Every kernel in words."""


def title(name: str) -> str:
    """Return a kernel's name in words; any other name as it is."""
    return WORDING[KernelName(name)].title if name in tuple(KernelName) else name


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
