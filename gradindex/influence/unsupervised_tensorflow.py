"""TensorFlow (Keras 3): a model and its loss without labels as one model."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradindex.data.names import LossFunction, Tensor
from gradindex.data.source import Tree, leaves, map_leaves
from gradindex.gradients.tensorflow.model import bind_arguments


class WithLoss(keras.Model):
    """A model that returns its model's output, or the losses (b, draws) of a loss of the model.

    The output stands in a dict, so that it is not taken for class scores; `reveal` gives the losses as they are.
    """

    def __init__(
        self,
        model: keras.Model,
        loss_fn: Callable[..., Tensor],
        takes_model: bool,
        noise: NDArray[np.float32] | None,
        reveal: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self._user_loss, self._takes_model, self._reveal = loss_fn, takes_model, reveal
        self.noise = None
        if noise is not None:
            self.noise = self.add_weight(shape=noise.shape, dtype=model.weights[0].dtype, trainable=False, name="noise")
            self.noise.assign(noise)

    def call(self, inputs: Tree, training: bool = False) -> tf.Tensor:
        """Return the output or the losses of a batch."""
        if not self._takes_model:
            args, options = bind_arguments(self.model, inputs)
            return {"output": self.model(*args, **options)}
        first = leaves(inputs)[0]
        count = tf.shape(first)[0]
        if self.noise is None:
            found = [self._checked(self._user_loss(self.model, inputs), first)]
        else:
            found = [
                self._checked(self._user_loss(self.model, inputs, _repeated(draw, count)), first)
                for draw in tf.unstack(tf.convert_to_tensor(self.noise.value), num=self.noise.shape[0])
            ]
        losses = tf.stack(found, axis=1)
        return losses if self._reveal else {"losses": losses}

    @staticmethod
    def _checked(loss: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        if not tf.is_tensor(loss):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        if loss.shape.rank == 0 and first.shape[0] == 1:
            return loss[None]
        if loss.shape.rank != 1:
            raise ValueError(
                f"loss_fn returned a tensor of shape {tuple(loss.shape)}; expected one loss for each sample. "
                "Sum over all axes but the first."
            )
        return loss


def _repeated(draw: tf.Tensor, count: object) -> tf.Tensor:
    return tf.broadcast_to(draw, tf.concat([[count], tf.shape(draw)], 0))


def wrap(
    model: keras.Model,
    loss_fn: Callable[..., Tensor],
    takes_model: bool,
    noise: NDArray[np.float32] | None,
    example: Tree,
    reveal: bool,
) -> keras.Model:
    """Return the model whose output the engine's loss is taken of, called once on an example."""
    found = WithLoss(model, loss_fn, takes_model, noise, reveal)
    found(map_leaves(tf.convert_to_tensor, example))
    return found


def set_noise(model: keras.Model, noise: NDArray[np.float32]) -> None:
    """Replace the draws of a wrapped model, in place."""
    model.noise.assign(noise)


def of_model(_: Tree, output: Tree) -> tf.Tensor:
    """Return the mean of the losses over draws."""
    return tf.reduce_mean(output["losses"] if isinstance(output, dict) else output)


def of_output(loss_fn: LossFunction) -> LossFunction:
    """Return the engine's loss for a user's ``loss_fn(x, output)``."""
    return lambda label, output: loss_fn(label[0], output["output"])


def names(model: keras.Model, parameters: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """Return a selection of parameters of the model as one of the wrapper: their paths are the same."""
    del model
    return parameters
