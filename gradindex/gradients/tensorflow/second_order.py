"""Products of the Hessian of the mean training loss with vectors, TensorFlow: two tapes."""

from typing import Any

import numpy as np
import tensorflow as tf

from gradindex.gradients.tensorflow.state import stateless
from gradindex.job import Job
from gradindex.relevance.base import Rows
from gradindex.relevance.curvature import Product

_BATCH = 1024


def hessian_product(job: Job) -> Product:
    """Return the function (k, P) -> (k, P) that multiplies rows with the Hessian."""
    engine: Any = job.engine
    source = job.source

    def product(rows: Rows) -> Rows:
        total = np.zeros(rows.shape)
        vectors = tf.convert_to_tensor(rows, engine.dtype)
        for batch in source.blocks(_BATCH):
            with engine._on_device():
                x, y = engine._ready(batch.x, batch.y)
                total += _block(engine, x, y, vectors).numpy()
        return total / len(source)

    return product


def _block(engine: Any, x: Any, y: Any, vectors: Any) -> Any:
    weights = [tf.convert_to_tensor(variable.value) for variable in engine._variables]
    values = {id(v): weight for v, weight in zip(engine._variables, weights, strict=True)}
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
        outer.watch(weights)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(weights)
            with stateless(engine.model, values):  # what the loss reads of weights itself has a Hessian, too
                loss = tf.reduce_sum(engine._sample_losses(engine._run(x), y))
        gradient = tf.concat(engine._flat(inner.gradient(loss, weights)), 0)
        dots = [tf.reduce_sum(gradient * vector) for vector in tf.unstack(vectors)]
    return tf.stack([tf.concat(engine._flat(outer.gradient(dot, weights)), 0) for dot in dots])
