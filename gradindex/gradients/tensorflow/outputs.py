"""What a loss sees of a Keras model's output: its values, the logits under them, and masks."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from gradindex.data.names import Leaf, LossFunction, Tree
from gradindex.data.source import map_leaves
from gradindex.gradients.parameter import Floats
from gradindex.gradients.tensorflow.inputs import as_tensors
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine

# What Keras's losses look for on an output besides its value: a cross-entropy, the logits under a softmax or
# sigmoid, and every loss, the mask. They would be lost where an output is sliced into samples.
_LOGITS, _MASK = "_keras_logits", "_keras_mask"


def _typed(output: Tree, y: Tree) -> Tree:
    """Return labels of a floating type in that of the output, which is what TensorFlow makes of NumPy's labels."""
    kinds = [part.dtype for part in tf.nest.flatten(output) if isinstance(part, tf.Tensor) and part.dtype.is_floating]
    if y is None or not kinds:
        return y
    return map_leaves(
        lambda leaf: tf.cast(leaf, kinds[0]) if tf.is_tensor(leaf) and leaf.dtype.is_floating else leaf, y
    )


def _shaped(output: Tree, y: Tree) -> tf.Tensor:
    return tf.cast(tf.reshape(y, tf.shape(output)), output.dtype)


LABEL_FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "as given": lambda output, y: y,
    "in the output's type": _typed,
    "like output": lambda output, y: _shaped(output, y) if _are_tensors(output, y) else y,
    "squeezed": lambda output, y: tf.squeeze(_typed(output, y), -1) if _are_tensors(output, y) else y,
}
"""Forms of the labels, given the output, in the order in which they are tried."""


def label_form(loss_fn: LossFunction, output: Tree, target: Tree) -> str:
    """Return the name of the first form of the labels that the loss takes without an error."""
    if target is None:
        return "as given"
    for name, form in LABEL_FORMS.items():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            probe = tf.identity(tf.stop_gradient(output)) if isinstance(output, tf.Tensor) else output
            tape.watch([part for part in tf.nest.flatten(probe) if isinstance(part, tf.Tensor)])
            try:
                loss = tf.reduce_sum(loss_fn(form(probe, target), probe))
                if not isinstance(output, tf.Tensor) or tape.gradient(loss, probe) is not None:
                    return name
            except Exception as error:
                log.debug("labels %s: %s", name, error)
    return "as given"  # the loss itself will say what is wrong


def _are_tensors(output: Tree, y: Tree) -> bool:
    return isinstance(output, tf.Tensor) and isinstance(y, tf.Tensor)


def plain(value: Tree) -> Tree:
    """Hide the operation behind a tensor: in graphs Keras's losses look for a softmax there, eagerly not."""
    if not isinstance(value, tf.Tensor):
        return value
    copy = tf.identity(value)
    for name in (_LOGITS, _MASK):
        if hasattr(value, name):
            setattr(copy, name, getattr(value, name))
    return copy


def in_double(value: Tree) -> Tree:
    """Return outputs with floating tensors, and the logits under them, in double precision."""

    def cast(part: Leaf) -> Leaf:
        if not isinstance(part, tf.Tensor) or not part.dtype.is_floating:
            return part
        found = tf.cast(part, tf.float64)
        if hasattr(part, _LOGITS):
            setattr(found, _LOGITS, cast(getattr(part, _LOGITS)))
        if hasattr(part, _MASK):
            setattr(found, _MASK, getattr(part, _MASK))
        return found

    return tf.nest.map_structure(cast, value)


def main_tensor(output: Tree) -> tf.Tensor | None:
    """Return an output that is a tensor with an axis of samples, or the `logits` of one that has them; else None."""
    output = getattr(output, "logits", output)
    return output if isinstance(output, tf.Tensor) and output.shape.rank != 0 else None


def as_array(output: Tree) -> Floats | None:
    """Return the main tensor of an output as an array, None if there is none."""
    tensor = main_tensor(output)
    return None if tensor is None else to_numpy(tensor)


def to_numpy(tensor: tf.Tensor) -> Floats:
    """Return a tensor as an array, half precision as single."""
    small = tensor.dtype in (tf.bfloat16, tf.float16)
    array: Floats = (tf.cast(tensor, tf.float32) if small else tensor).numpy()
    return array


def loss_at_zero(engine: "TensorFlowEngine", x: Tree, y: Tree) -> float:
    """Return the loss of a batch of ONE sample, with zeros in the place of the model's outputs."""
    seen = Seen(engine.output_of_one(x))
    with engine._on_device():
        output = seen.rebuild(list(map(tf.zeros_like, seen.values)), seen.masks)
        return float(engine._loss(output, None if y is None else as_tensors(y)))


class Seen:
    """What a loss sees of a batch's output, as flat tensors: values (and logits under them), and masks.

    Raises
    ------
    TypeError
        If the output is not made of tensors, dicts, lists and tuples.
    """

    def __init__(self, output: Tree) -> None:
        self._output = output
        self._parts = tf.nest.flatten(output)
        if not self.fits(output):
            kinds = [type(part).__name__ for part in self._parts if not isinstance(part, tf.Tensor)]
            raise TypeError(f"Forward mode expects an output made of tensors, got {kinds[0]}.")
        self.values = [*self._parts, *(getattr(p, _LOGITS) for p in self._parts if hasattr(p, _LOGITS))]
        self.masks = [mask for p in self._parts if (mask := getattr(p, _MASK, None)) is not None]

    @staticmethod
    def fits(output: Tree) -> bool:
        """Whether an output is made of tensors, dicts, lists and tuples."""
        return all(isinstance(part, tf.Tensor) for part in tf.nest.flatten(output))

    @staticmethod
    def smooth(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the values of a floating type, which are those that have a derivative."""
        return [value for value in values if value.dtype.is_floating]

    def put(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> list[tf.Tensor]:
        """Return all values, those at `places` replaced."""
        found = [*self.values]
        for place, value in zip(places, values, strict=True):
            found[place] = value
        return found

    def rebuild(self, values: Sequence[tf.Tensor], masks: Sequence[tf.Tensor]) -> Tree:
        """Return the output with other values and masks in the same places."""
        parts = [tf.identity(value) for value in values[: len(self._parts)]]
        logits, left = iter(values[len(parts) :]), iter(masks)
        for part, original in zip(parts, self._parts, strict=True):
            if hasattr(original, _LOGITS):
                setattr(part, _LOGITS, next(logits))
            if getattr(original, _MASK, None) is not None:
                setattr(part, _MASK, next(left))
        return tf.nest.pack_sequence_as(self._output, parts)


def joined_outputs(outputs: Sequence[Tree]) -> Tree:
    """Return the outputs of several batches as that of one.

    Raises
    ------
    ValueError
        If one holds a number without an axis of samples.
    """
    seen = [Seen(output) for output in outputs]
    if any(value.shape.rank == 0 for value in seen[0].values):
        raise ValueError("A number without an axis of samples cannot be joined with others.")
    values = list(zip(*(one.values for one in seen), strict=True))
    masks = [tf.concat(some, 0) for some in zip(*(one.masks for one in seen), strict=True)]
    return seen[0].rebuild([tf.concat(some, 0) for some in values], masks)
