"""A random projection of gradients, tied to a model's parameters and a seed."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Device
from gradindex.gradients.parameter import Floats, Parameter


class Projector(ABC):
    """A random projection of gradients to k numbers, tied to a model's parameters and a seed."""

    dim: int
    any_order: ClassVar[bool] = False
    """Whether a parameter may come with another order of its axes, as its `input_order` says."""
    one_row: ClassVar[bool] = True
    """Whether what all samples' gradients have in common may be given as one row, outside the batch."""
    own_norms: ClassVar[bool] = False
    """Whether `add_measured` and `add_factors` return squared norms (b,) that take the place of the gradients'. All
    factors of a parameter then come in one call, with the positions of all its uses."""
    bounds_cosine: ClassVar[bool] = False
    """Whether two finished rows bound the cosine of their gradients, so that answers can be proved: it is at most the
    inner product of their `coordinates` numbers plus the product of their `lengths_left`, up to `coordinate_error`."""

    @property
    def coordinates(self) -> int:
        """Numbers of a finished row that are coordinates."""
        return self.width

    @property
    def coordinate_error(self) -> float:
        """How far a finished row's coordinates may be from those of exact arithmetic, as a length."""
        return 0.0

    @property
    def inner_product_bounds(self) -> bool:
        """Whether the inner product of two finished rows, with nothing added, bounds the cosine of their gradients."""
        return False

    def lengths_left(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the lengths (n,) of what the coordinates of unit-norm rows (n, width) leave out."""
        return np.zeros(len(rows), np.float32)

    @property
    def width(self) -> int:
        """Numbers of a finished row."""
        return self.dim

    def finish(self, sketches: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return rows (b, width) from what was added up (b, dim) and the gradients' exact norms (b,)."""
        return sketches

    def opposite(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the finished rows of the negative gradients."""
        return -rows

    @abstractmethod
    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of one parameter's per-sample gradients (b, size) to `out` (b, dim), in place."""

    def add_measured(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> NDArray[np.float64]:
        """Do `add`, and return the gradients' squared norms (b,)."""
        self.add(out, parameter, gradients)
        squares: NDArray[np.float64] = np.einsum("ij,ij->i", gradients, gradients, dtype=np.float64)
        return squares

    def on_device(self, device: Device) -> Any:
        """Return a twin whose `add_measured` and `add_factors` take torch tensors on that device, else None."""
        return None

    def add_factors(
        self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats
    ) -> NDArray[np.float64] | None:
        """Add the sketch of Σ_t r_t c_tᵀ, of the parameter seen as a matrix in memory order, to `out`.

        `columns` is (b, T, C); `rows` is (b, T, R), or (b, T) integers where each r_t is one-hot. This default
        forms the gradient. Returns squared norms (b,) if `own_norms`, else None.
        """
        if rows.ndim == 2:
            rows = np.eye(parameter.matrix_shape[0], dtype=columns.dtype)[rows]
        formed = np.einsum("btr,btc->brc", rows, columns).reshape(len(out), -1)
        if self.own_norms:
            return self.add_measured(out, parameter, formed)
        self.add(out, parameter, formed)
        return None

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        return float(parameter.size)

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions.

        `touched`: the row factors are one-hot, given as numbers.
        """
        return math.inf

    def add_all(
        self, out: NDArray[np.float32], parameters: Sequence[Parameter], gradients: Floats
    ) -> NDArray[np.float64]:
        """Add the sketches of flattened gradients (b, P) to `out` (b, dim), in place; return squared norms (b,)."""
        if not self.own_norms:
            out += self(parameters, gradients)
            squares: NDArray[np.float64] = np.einsum("ij,ij->i", gradients, gradients, dtype=np.float64)
            return squares
        total, begin = np.zeros(len(out), np.float64), 0
        for parameter in parameters:
            total += self.add_measured(out, parameter, gradients[:, begin : begin + parameter.size])
            begin += parameter.size
        return total

    def __call__(self, parameters: Sequence[Parameter], gradients: Floats) -> NDArray[np.float32]:
        """Sketch flattened gradients (b, P) to (b, dim) float32."""
        out = np.zeros((len(gradients), self.dim), np.float32)
        begin = 0
        for parameter in parameters:
            self.add(out, parameter, gradients[:, begin : begin + parameter.size])
            begin += parameter.size
        return out
