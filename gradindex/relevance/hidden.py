"""Hidden representations: what the layers with parameters receive, or the outputs of named layers."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gradindex.data.labels import as_array
from gradindex.data.names import Leaf
from gradindex.data.source import Tree, length, take_rows
from gradindex.job import Job
from gradindex.relevance.base import Rows

if TYPE_CHECKING:
    from gradindex.gradients.torch.engine import TorchEngine

_BATCH = 256


class Hidden:
    """h_last or h_all of a job's model.

    Found automatically, a hidden layer is the input of a layer that has parameters, in the order they are
    called, the first (which receives x) excepted; so activations and pooling are included, however the model
    applies them. h_last is the input of the last one.
    """

    def __init__(self, job: Job, layers: Sequence[str] | None) -> None:
        self._job = job
        self._layers = layers

    @cached_property
    def _reader(self) -> Callable[[Tree], Sequence[Any]]:
        if self._job.backend == "torch":
            from gradindex.gradients.torch import hidden as torch_hidden

            return torch_hidden.Hidden(cast("TorchEngine", self._job.engine), self._layers)
        from gradindex.gradients.tensorflow import hidden as keras_hidden

        return keras_hidden.Hidden(self._job.model, self._layers)

    def __call__(self, x: Tree, feature: str) -> Rows:
        """Return ``"last"`` or ``"all"`` of a batch of inputs (b, d).

        Raises
        ------
        ValueError
            If the model has no hidden layer, or none of a given name.
        """
        blocks = [take_rows(x, slice(i, i + _BATCH)) for i in range(0, length(x), _BATCH)]
        return np.concatenate([self._block(block, feature) for block in blocks])

    def last(self, x: Tree) -> Rows:
        """Return h_last of a batch of inputs in its own shape (b, …), float64; raises like a call."""
        return as_array(self._found(x)[-1]).astype(np.float64)

    def _found(self, x: Tree) -> Sequence[Leaf]:
        found = self._reader(x)
        if not found:
            raise ValueError("The model has no hidden layer: it has a single layer with parameters. Name layers=(…).")
        return found

    def _block(self, x: Tree, feature: str) -> Rows:
        found = self._found(x)
        wanted = found[-1:] if feature == "last" else found  # what earlier layers receive may have no axis of samples
        rows = [as_array(part).reshape(length(x), -1).astype(np.float64) for part in wanted]
        return np.concatenate(rows, axis=1)
