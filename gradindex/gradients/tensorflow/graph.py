"""Graphs over batches: traced once, without TensorFlow's chatter, and checked for an operation that is unsafe."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from gradindex.data.source import Tree, map_leaves

_VECTORIZER = ("pfor.py", "control_flow_ops.py")


class BatchGraph:
    """A function of trees of tensors whose first axis is the sample, as a graph for any number of samples.

    `function` takes inputs, labels (or None), and perhaps tensors that are the same for all samples. AutoGraph
    is off, as it is where Keras trains. Unless `any_shape`, each shape of a sample has its own graph.
    """

    def __init__(self, function: Callable[..., Tree], any_shape: bool = True) -> None:
        self._function = tf.function(function, autograph=False, reduce_retracing=any_shape)
        self._safe: dict[Any, bool] = {}
        self._traced: dict[str, Any] = {}

    def __call__(self, x: Tree, y: Tree, *constants: tf.Tensor) -> Tree:
        """Run the graph."""
        self._trace(x, y, *constants)
        return self._function(x, y, *constants)

    def run(self, x: Tree, y: Tree) -> tuple[tf.Graph, Tree]:
        """Run the graph, and return it (as a key to what its trace found out) with the results."""
        traced = self._trace(x, y)
        return traced.graph, traced(x, y)

    def is_safe(self, x: Tree, y: Tree) -> bool:
        """Whether the graph for such inputs is free of the operation that corrupts memory."""
        graph = self._trace(x, y).graph
        if graph not in self._safe:
            self._safe[graph] = not corrupts_memory(graph)
        return self._safe[graph]

    def _trace(self, x: Tree, y: Tree, *constants: tf.Tensor) -> tf.types.experimental.ConcreteFunction:
        key = "" if constants else repr((map_leaves(_kind, x), None if y is None else map_leaves(_kind, y)))
        if key in self._traced:  # TensorFlow's own look-up takes a tenth of a millisecond
            return self._traced[key]
        labels = None if y is None else map_leaves(_any_batch, y)
        with _quiet_vectorizer():
            found = self._function.get_concrete_function(map_leaves(_any_batch, x), labels, *constants)
        if key:
            self._traced[key] = found
        return found


def _any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _kind(tensor: tf.Tensor) -> tuple[int | str | None, ...]:
    return (*tensor.shape[1:], tensor.dtype.name)


@contextmanager
def _quiet_vectorizer() -> Iterator[None]:
    """Keep what ``vectorized_map`` logs from this thread out of the log.

    It reports each operation that it runs in a loop, and dumps the graph of what it cannot do; the first is no
    news here, and the second is raised as well.
    """
    thread = threading.get_ident()

    def wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or not record.pathname.endswith(_VECTORIZER)

    logger = tf.get_logger()
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def corrupts_memory(graph: tf.Graph) -> bool:
    """Whether a graph multiplies matrices in the one way that oneDNN gets wrong in TensorFlow 2.21.

    It writes past its buffer for (b, 1, m, k) @ (k, n) or (1, k, n), in float32 and bfloat16 on CPUs
    (https://github.com/tensorflow/tensorflow/issues/117700), which is what a vectorised (1, m, k) @ (k, n)
    becomes.
    """
    names = [function.signature.name for function in graph.as_graph_def().library.function]
    graphs = [graph, *(graph._get_function(name).graph for name in names)]
    return any(_is_unsafe(operation) for one in graphs for operation in one.get_operations())


def _is_unsafe(operation: tf.Operation) -> bool:
    if not operation.type.startswith("BatchMatMul") or operation.inputs[0].dtype == tf.float64:
        return False
    left, right = (value.shape for value in operation.inputs[:2])
    if left.rank is None or right.rank is None:
        return True
    return left.rank == 4 and left[0] != 1 and left[1] in (1, None) and all(size == 1 for size in right[:-2])
