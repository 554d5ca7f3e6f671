"""Inputs and labels as TensorFlow's tensors."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gradindex.data.names import Leaf
from gradindex.data.source import Tree, map_leaves
from gradindex.data.tensors import as_numpy


def each(function: Callable[[tf.Tensor], tf.Tensor], tree: Tree) -> Tree:
    """Return the tree with `function` of every leaf; None where there is none."""
    return None if tree is None else map_leaves(function, tree)


def as_tensors(tree: Tree) -> Tree:
    """Return a tree of tensors; lists of objects that are no arrays stay."""
    return each(_tensor, tree)


def _tensor(leaf: Leaf) -> Leaf:
    if isinstance(leaf, list) and not all(isinstance(item, int | float) for item in leaf):
        arrays = all(isinstance(item, np.ndarray | np.generic) or tf.is_tensor(item) for item in leaf)
        return _tensor(leaf[0])[None] if arrays and len(leaf) == 1 else leaf
    return leaf if tf.is_tensor(leaf) else tf.convert_to_tensor(np.asarray(as_numpy(leaf)))
