"""Second derivatives, TensorFlow, by two tapes: products with the Hessian and Gauss-Newton matrix, and ⟨q, g_i⟩."""

from typing import TYPE_CHECKING, Any

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


def gauss_newton_product(
    engine: "TensorFlowEngine", x: Tree, y: Tree, rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the products of vectors (k, P) with the Gauss-Newton matrix of the batch's summed loss, by one graph."""
    with engine._on_device():
        inputs, targets = engine._ready(x, y)
        products = [
            engine._graph_gauss_newton(inputs, targets, tf.convert_to_tensor(vector.astype(engine.dtype)))
            for vector in rows
        ]
        found: NDArray[np.float64] = tf.stack(products).numpy().astype(np.float64)
        return found


def gauss_newton(engine: "TensorFlowEngine", inputs: Tree, targets: Tree, vector: Any) -> Any:
    """Return Jᵀ H J v (P,) for a vector (P,), in a graph.

    J v comes of differentiating Jᵀ u, which is linear in u, by u.
    """
    weights = [tf.convert_to_tensor(variable.value) for variable in engine._variables]
    tangents = [
        tf.cast(tf.reshape(vector[place], weight.shape), weight.dtype)
        for weight, (_, place) in zip(weights, engine.slices(), strict=True)
    ]

    def derivatives(of: Any, by: Any, times: Any = None) -> list[Any]:
        found = tf.gradients(of, by, times, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(one) for one in found]  # rows of a table, which have no derivative, as a whole

    output = engine._call(dict(zip(map(id, engine._variables), weights, strict=True)), inputs)
    parts = tf.nest.flatten(output)
    smooth = [part for part in parts if part.dtype.is_floating]
    ones = [tf.ones_like(part) for part in smooth]
    change = derivatives(derivatives(smooth, weights, ones), ones, tangents)
    here = {id(part): tf.identity(part) for part in smooth}
    values = [here[id(part)] for part in smooth]
    loss = tf.reduce_sum(
        engine._sample_losses(tf.nest.pack_sequence_as(output, [here.get(id(p), p) for p in parts]), targets)
    )
    bent = derivatives(derivatives(loss, values), values, change)
    return tf.concat(engine._flat(derivatives(smooth, weights, bent)), 0)
