"""Derivatives of single tokens' losses along directions of the weights, TensorFlow: forward mode, run eagerly."""

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradindex.data.source import Tree, length
from gradindex.gradients.engine import PathFailed
from gradindex.gradients.inputs import per_token
from gradindex.gradients.parameter import Floats
from gradindex.gradients.signals import FORWARD
from gradindex.gradients.tensorflow.inputs import each
from gradindex.gradients.tensorflow.outputs import LABEL_FORMS, Seen, to_numpy
from gradindex.gradients.tensorflow.state import state_kept

if TYPE_CHECKING:
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine


def token_products(
    engine: "TensorFlowEngine", x: Tree, y: Tree, directions: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the derivative of each token's loss along directions (P,) or (n, P), and these losses (b, t)."""
    per_token(engine.loss_fn)
    with engine._on_device():
        inputs, targets = engine._ready(x, y)
        engine._looks.refuse(FORWARD)
        if engine._looks.penalty():
            raise PathFailed("the loss has a penalty on the weights, which belongs to no token")
        found = []
        for direction in np.atleast_2d(directions):
            with state_kept(engine.model, engine._unknown):
                products, losses = _along(engine, inputs, targets, tf.convert_to_tensor(direction.astype(engine.dtype)))
            found.append(to_numpy(products).astype(np.float64))
    return (found[0] if np.ndim(directions) == 1 else np.stack(found)), to_numpy(losses).astype(np.float64)


def _along(engine: "TensorFlowEngine", x: Tree, y: Tree, direction: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    weights = [tf.convert_to_tensor(variable.value) for variable in engine._variables]
    tangents = [
        tf.cast(tf.reshape(direction[place], p.shape), weight.dtype)
        for (p, place), weight in zip(engine.slices(), weights, strict=True)
    ]
    with tf.autodiff.ForwardAccumulator(weights, tangents) as accumulator:
        output = engine._call(dict(zip(map(id, engine._variables), weights, strict=True)), x)
        seen = Seen(output)

        def of_sample(i: int) -> tf.Tensor:
            values, masks = each(lambda leaf: leaf[i : i + 1], (tuple(seen.values), tuple(seen.masks)))
            one, target = seen.rebuild(values, masks), each(lambda leaf: leaf[i : i + 1], y)
            return per_token(engine.loss_fn)(LABEL_FORMS[engine._label_form or "as given"](one, target), one)

        losses = tf.concat([of_sample(i) for i in range(length(x))], 0)
    return accumulator.jvp(losses, unconnected_gradients=tf.UnconnectedGradients.ZERO), losses
