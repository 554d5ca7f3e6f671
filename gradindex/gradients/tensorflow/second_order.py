"""Second derivatives, TensorFlow, by two tapes: the Hessian's products with vectors, and ⟨q, g_i⟩."""

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradindex.data.source import Tree
from gradindex.gradients.parameter import Floats
from gradindex.gradients.signals import BACKWARD
from gradindex.gradients.tensorflow.state import stateless

if TYPE_CHECKING:
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine


def directional_twice(engine: "TensorFlowEngine", x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
    """Return ⟨direction, g_i⟩ (b,) and losses (b,) by two backward passes over the batch."""
    with engine._on_device():
        inputs, targets = engine._ready(x, y)
        engine._looks.refuse(BACKWARD)
        weights = [tf.convert_to_tensor(variable.value) for variable in engine._variables]
        flat = tf.convert_to_tensor(np.asarray(direction, engine.dtype))
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(weights)
                with stateless(engine.model, dict(zip(map(id, engine._variables), weights, strict=True))):
                    losses = engine._sample_losses(engine._run(inputs), targets)
                each = tf.zeros_like(losses)
                outer.watch(each)
                weighted = tf.reduce_sum(each * losses)
            gradients = inner.gradient(weighted, weights)
            total = tf.add_n(
                [
                    tf.reduce_sum(tf.cast(tf.reshape(gradient, [-1]), flat.dtype) * flat[place])
                    for gradient, (_, place) in zip(gradients, engine.slices(), strict=True)
                    if gradient is not None
                ]
            )
        dots = outer.gradient(total, each)
        return dots.numpy(), losses.numpy()


def hessian_product(engine: "TensorFlowEngine", x: Tree, y: Tree, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the products of vectors (k, P) with the Hessian of the batch's summed loss."""
    vectors = tf.convert_to_tensor(rows, engine.dtype)
    with engine._on_device():
        inputs, targets = engine._ready(x, y)
        weights = [tf.convert_to_tensor(variable.value) for variable in engine._variables]
        values = {id(v): weight for v, weight in zip(engine._variables, weights, strict=True)}
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(weights)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(weights)
                with stateless(engine.model, values):  # what the loss reads of weights itself has a Hessian, too
                    loss = tf.reduce_sum(engine._sample_losses(engine._run(inputs), targets))
            gradient = tf.concat(engine._flat(inner.gradient(loss, weights)), 0)
            dots = [tf.reduce_sum(gradient * vector) for vector in tf.unstack(vectors)]
        products = [tf.concat(engine._flat(outer.gradient(dot, weights)), 0) for dot in dots]
        found: NDArray[np.float64] = tf.stack(products).numpy()
        return found
