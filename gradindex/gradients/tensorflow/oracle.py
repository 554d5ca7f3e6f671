"""TensorFlow's oracle: forward and loss under one tape, as in a training loop. Reads nothing of the engine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradindex.data.names import LossFunction
from gradindex.data.source import Tree
from gradindex.gradients.inputs import call_loss, per_token
from gradindex.gradients.oracle import Oracle, Step
from gradindex.gradients.tensorflow.model import bind_arguments
from gradindex.gradients.tensorflow.outputs import LABEL_FORMS, label_form, to_numpy
from gradindex.gradients.tensorflow.state import Kept, of_loss, state_kept, variables

if TYPE_CHECKING:
    import keras


class TensorFlowOracle(Oracle):
    """Training steps of single samples of a Keras model.

    Model and loss run eagerly under one tape, so that ``model.losses``, custom gradients and penalties are in force.
    A layer that draws random numbers although ``training=False`` draws from the same seed in every step.

    Parameters
    ----------
    model
        The model; called with ``training=False``.
    loss_fn
        ``loss_fn(y, output)``, any reduction.
    chosen
        The selected variables by their names, in the order of the gradient.
    convert
        Makes what the model and the loss are called with from inputs or labels: tensors.
    device
        Where to compute, None for TensorFlow's choice.
    """

    def __init__(
        self,
        model: "keras.Model",
        loss_fn: LossFunction,
        chosen: "Mapping[str, keras.Variable]",
        convert: Callable[[Tree], Tree],
        device: str | None = None,
    ) -> None:
        self._model, self._loss_fn, self._convert, self._device = model, loss_fn, convert, device
        self._chosen = {name: variable._value for name, variable in chosen.items()}
        self._variables: list[Any] = []
        self._label_form: str | None = None

    def step(self, x: Tree, y: Tree) -> Step:
        """Return the training step of a batch of ONE sample."""
        return self._step(x, y, self._loss)

    def token_step(self, x: Tree, y: Tree, token: int) -> Step:
        """Return the training step of a batch of ONE sample whose loss is that of one of its tokens."""
        return self._step(x, y, lambda output, target: per_token(self._loss_fn)(target, output)[0, token])

    def token_losses(self, x: Tree, y: Tree) -> NDArray[np.float64]:
        """Return what each token gives to the loss of a batch of ONE sample, (t,)."""
        self._variables = self._variables or variables(self._model) + of_loss(self._model, self._loss_fn)
        with nullcontext() if self._device is None else tf.device(self._device):
            inputs, target = self._convert(x), None if y is None else self._convert(y)
            with state_kept(self._model, self._variables):
                args, kwargs = bind_arguments(self._model, inputs)
                found = per_token(self._loss_fn)(target, self._model(*args, **kwargs))
                return to_numpy(found[0]).astype(np.float64)

    def _step(self, x: Tree, y: Tree, loss_of: Callable[[Tree, Tree], tf.Tensor]) -> Step:
        self._variables = self._variables or variables(self._model) + of_loss(self._model, self._loss_fn)
        weights = list(self._chosen.values())
        with nullcontext() if self._device is None else tf.device(self._device):
            inputs, target = self._convert(x), None if y is None else self._convert(y)
            with state_kept(self._model, self._variables):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(weights)
                    args, kwargs = bind_arguments(self._model, inputs)
                    output = self._model(*args, **kwargs)
                    loss = loss_of(output, target)
                before = Kept(weights)
                gradients = tape.gradient(loss, weights)
                self._refuse_changed(before.changed())
        flat = [
            np.zeros(weight.shape.num_elements(), np.float32)
            if gradient is None
            else to_numpy(tf.reshape(tf.convert_to_tensor(gradient), [-1]))
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        unused = tuple(name for name, gradient in zip(self._chosen, gradients, strict=True) if gradient is None)
        return Step(np.concatenate(flat), float(loss), output, unused)

    def _loss(self, output: Tree, target: Tree) -> tf.Tensor:
        if self._label_form is None:
            self._label_form = label_form(self._loss_fn, output, target)
        target = LABEL_FORMS[self._label_form](output, target)
        loss = call_loss(self._loss_fn, target, output, labels=target)
        if not isinstance(loss, tf.Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        return tf.reduce_sum(loss)

    def _refuse_changed(self, changed: "Sequence[keras.Variable]") -> None:
        if changed:
            names = ", ".join(
                repr(name) for name, weight in self._chosen.items() if any(weight is one for one in changed)
            )
            raise ValueError(
                f"A custom gradient changes the weights {names} in the backward pass (an optimizer's step?). "
                "The weights were put back. Remove it: gradients are those of a fixed model."
            )
