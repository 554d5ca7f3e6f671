"""What every gradient engine offers, whatever the framework behind it.

The gradient of one sample is the derivative of ITS loss with respect to the selected trainable parameters,
flattened and concatenated in the model's own order: P numbers. A loss that reduces over the batch sees a batch
of one, so a mean does not rescale.
"""

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.batches import Tree, index, leaves, length
from gradindex.gradients import loop

log = logging.getLogger("gradindex")
Floats = NDArray[np.floating[Any]]


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


@dataclass(frozen=True)
class PerSample:
    """Per-sample results of one batch of b samples.

    `gradients` (b, P), `losses` (b,), `outputs` (b, …) of the model in inference mode (None where the model's
    output is not one array).
    """

    gradients: Floats
    losses: Floats
    outputs: Floats | None


@dataclass(frozen=True)
class Embedded:
    """Per-sample embeddings of one batch of b samples.

    `sketches` (b, k) float32, not normalised; `norms` (b,) float64, exact ‖g‖ of the unprojected gradients;
    `losses` (b,) and `outputs` (b, …) as in `PerSample`.
    """

    sketches: NDArray[np.float32]
    norms: NDArray[np.float64]
    losses: Floats
    outputs: Floats | None


class Engine(ABC):
    """Per-sample gradients of one model, loss and selection of parameters.

    The model leaves every call as it came: weights, mode of every submodule, ``.grad``, statistics, random
    state. BatchNorm and dropout run in inference mode.

    A framework fills in the abstract methods; this class holds the ladder: the first batch is compared with
    the plain loop, and what does not agree (or does not run) goes through the loop, with a warning.
    """

    backend: ClassVar[str]
    class_axis: ClassVar[int]
    """Axis of the outputs that holds the classes."""
    fast_path: ClassVar[str]
    """Name of the batched path in `paths`."""
    parameters: tuple[Parameter, ...]
    frozen: tuple[str, ...]
    """Names of the model's parameters that are not trainable and therefore have no gradient."""
    dtype: np.dtype[Any]
    """The model's floating type, which is that of gradients, losses and outputs."""

    def __init__(self) -> None:
        self._path: str | None = None  # decided by the first batch

    @property
    def size(self) -> int:
        """P, the number of selected scalars."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def paths(self) -> dict[str, str]:
        """How each parameter's gradient is computed: 'factored', 'vmap', 'loop' or 'undecided'."""
        return {parameter.name: self._path or "undecided" for parameter in self.parameters}

    @abstractmethod
    def outputs(self, x: Tree) -> Floats:
        """Return the model's outputs (b, …) in inference mode.

        Raises
        ------
        TypeError
            If the output is not one array (nor an object whose ``logits`` is).
        """

    @abstractmethod
    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""

    @abstractmethod
    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients of a whole batch at once; may fail on models it does not understand."""

    @abstractmethod
    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the gradient of a batch of ONE sample, (1, P), by one plain backward pass."""

    @abstractmethod
    def unused(self, x: Tree, y: Tree) -> list[str]:
        """Return the names of selected parameters on which the loss of this one sample does not depend."""

    @abstractmethod
    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return ⟨direction, g_i⟩ (b,) for a direction (P,), by one forward-mode pass, and the losses (b,).

        May fail where the model has an operation without forward mode.
        """

    @abstractmethod
    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every parameter and statistic of the model by name."""

    def gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients (b, P), losses and outputs, by the path that the first batch chose."""
        if self._path is None and length(x):
            self._choose_path(x, y)
        if self._path == "loop" or any(isinstance(leaf, list) for leaf in leaves(x)):
            return loop.gradients(self, x, y)
        return self.batched_gradients(x, y)

    def embed(self, x: Tree, y: Tree, projector: "Projector") -> Embedded:
        """Return sketches, exact norms, losses and outputs of a batch."""
        found = self.gradients(x, y)
        norms = np.sqrt(np.einsum("ij,ij->i", found.gradients, found.gradients, dtype=np.float64))
        return Embedded(projector(self.parameters, found.gradients), norms, found.losses, found.outputs)

    def _choose_path(self, x: Tree, y: Tree, samples: int = 2) -> None:
        """Compare the batched path with the loop on the first samples; warn about what is not as expected."""
        head = slice(0, samples)
        x, y = index(x, head), None if y is None else index(y, head)
        first = slice(0, 1)
        unused = self.unused(index(x, first), None if y is None else index(y, first))
        if unused:
            warnings.warn(
                f"The loss does not depend on {len(unused)} parameters: {', '.join(unused[:5])}"
                f"{', …' if len(unused) > 5 else ''}. Their gradients count as zeros.",
                UserWarning,
                stacklevel=2,
            )
        truth = loop.gradients(self, x, y)
        if any(isinstance(leaf, list) for leaf in leaves(x)):
            self._path = "loop"  # objects cannot be batched
            return
        try:
            fast = self.batched_gradients(x, y)
        except Exception as error:
            log.warning("batched gradients failed, using the one-sample loop: %s", error)
            self._path = "loop"
            return
        for parameter, place in self.slices():
            want, got = truth.gradients[:, place], fast.gradients[:, place]
            scale = np.abs(want).max(initial=0.0)
            tolerance = 1e-3 if self.dtype.itemsize > 2 else 5e-2
            if (
                np.isfinite(want).all()
                and not np.abs(got - want).max(initial=0.0) <= tolerance * scale + 1e-12
            ):
                warnings.warn(
                    f"Batched gradients of {parameter.name!r} differ from the one-sample loop by more than "
                    f"{tolerance:g} (does the model mix samples of a batch?); using the loop, which is slower.",
                    UserWarning,
                    stacklevel=2,
                )
                self._path = "loop"
                return
        self._path = self.fast_path

    def slices(self) -> Iterator[tuple[Parameter, slice]]:
        """Yield each parameter with its place in the flattened gradient."""
        begin = 0
        for parameter in self.parameters:
            yield parameter, slice(begin, begin + parameter.size)
            begin += parameter.size


class Projector(ABC):
    """A random projection of gradients to k numbers, tied to a model's parameters and a seed."""

    dim: int

    @abstractmethod
    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of one parameter's per-sample gradients (b, size) to `out` (b, dim), in place."""

    def __call__(self, parameters: Sequence[Parameter], gradients: Floats) -> NDArray[np.float32]:
        """Sketch flattened gradients (b, P) to (b, dim) float32."""
        out = np.zeros((len(gradients), self.dim), np.float32)
        begin = 0
        for parameter in parameters:
            self.add(out, parameter, gradients[:, begin : begin + parameter.size])
            begin += parameter.size
        return out
