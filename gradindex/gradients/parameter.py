"""A selected parameter, seen as a matrix alike in every framework and memory order."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
CHECKPOINT_STRIDE = 1 << 20
"""Between the positions of a parameter at two checkpoints: more than any model has."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One selected parameter, and how to see it as a matrix (output × input) alike in every framework.

    Flattened in its own memory order, the tensor is a matrix of ``math.prod(shape[:split])`` rows; those rows
    are the output side if `outputs_first` (torch Linear, Conv), else the columns are (Keras Dense, Conv).
    `input_order` and `output_order` name the axes of a side (relative to that side) in torch's order: channel,
    then space.
    """

    name: str
    position: int
    """Place among all trainable parameters of the model. Keys the hashes, so equal models in two frameworks
    (whose names differ) get equal sketches, and a selection of parameters keeps the hashes of the rest."""
    shape: tuple[int, ...]
    dtype: str
    split: int = 1
    outputs_first: bool = True
    input_order: tuple[int, ...] | None = None
    output_order: tuple[int, ...] | None = None

    @property
    def checkpoint(self) -> int:
        """Which checkpoint of a training run it belongs to; 0 if there is but one."""
        return self.position // CHECKPOINT_STRIDE

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the flattened tensor seen as a matrix, in memory order."""
        return math.prod(self.shape[: self.split]), math.prod(self.shape[self.split :])

    @property
    def output_size(self) -> int:
        """Length of the output side."""
        return self.matrix_shape[0 if self.outputs_first else 1]

    @property
    def input_size(self) -> int:
        """Length of the input side."""
        return self.matrix_shape[1 if self.outputs_first else 0]

    def input_index(self) -> NDArray[np.intp]:
        """Return, for each place of the input side in memory order, its place in the canonical order."""
        return _places(self._axes(not self.outputs_first), self.input_order)

    def output_index(self) -> NDArray[np.intp]:
        """Return, for each place of the output side in memory order, its place in the canonical order."""
        return _places(self._axes(self.outputs_first), self.output_order)

    def inner_first(self, inner: int) -> "Parameter":
        """Return the parameter as it lies when its columns, (C, inner) in torch's order, come as (inner, C)."""
        rows, columns = self.matrix_shape
        return replace(self, shape=(rows, inner, columns // inner), split=1, input_order=(1, 0))

    def _axes(self, first: bool) -> tuple[int, ...]:
        return self.shape[: self.split] if first else self.shape[self.split :]

    def canonical(self, gradients: Floats) -> Floats:
        """Return flattened gradients (b, size) reordered to (b, output × input), alike in every framework."""
        matrix = gradients.reshape(len(gradients), *self.matrix_shape)
        if not self.outputs_first:
            matrix = matrix.transpose(0, 2, 1)
        if self.input_order is not None:
            matrix = matrix[:, :, np.argsort(self.input_index())]
        if self.output_order is not None:
            matrix = matrix[:, np.argsort(self.output_index())]
        return matrix.reshape(len(gradients), self.size)


def _places(axes: tuple[int, ...], order: tuple[int, ...] | None) -> NDArray[np.intp]:
    """Return, for each place in memory order of `axes`, its place when they are laid out in `order`."""
    order = order or tuple(range(len(axes)))
    canonical = np.arange(math.prod(axes)).reshape([axes[axis] for axis in order])
    return canonical.transpose(np.argsort(order)).ravel()
