"""Names for what comes from outside: frameworks' objects, and what users give. For type checkers and readers alone."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import ArrayLike

Leaf: TypeAlias = Any
"""An array, a tensor of torch or TensorFlow, or a list of objects, with a first axis of samples."""
Tree: TypeAlias = Any
"""A leaf, or a dict or (named) tuple of trees: a model's inputs and outputs, and labels."""

if TYPE_CHECKING:
    import keras
    import tensorflow as tf
    import torch

    Tensor: TypeAlias = torch.Tensor | tf.Tensor
    Model: TypeAlias = torch.nn.Module | keras.Model
    Optimizer: TypeAlias = torch.optim.Optimizer | keras.Optimizer
    Device: TypeAlias = str | torch.device | tf.DeviceSpec
else:  # no framework is imported for its name
    Tensor = Model = Optimizer = Device = Any

LossFunction: TypeAlias = Callable[[Tree, Tree], Tensor]
"""A user's loss: of output and labels in torch, of labels and output in Keras."""
Where: TypeAlias = Mapping[str, object] | ArrayLike
"""Which samples may be found: values of columns, or ids."""
