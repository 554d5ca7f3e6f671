"""What a loss sees of a Keras model's output: its values, the logits under them, and masks."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from gradindex.gradients.base import Floats

# What Keras's losses look for on an output besides its value: a cross-entropy, the logits under a softmax or
# sigmoid, and every loss, the mask. They would be lost where an output is sliced into samples.
_LOGITS, _MASK = "_keras_logits", "_keras_mask"


def plain(value: Any) -> Any:
    """Hide the operation behind a tensor: in graphs Keras's losses look for a softmax there, eagerly not."""
    if not isinstance(value, tf.Tensor):
        return value
    copy = tf.identity(value)
    for name in (_LOGITS, _MASK):
        if hasattr(value, name):
            setattr(copy, name, getattr(value, name))
    return copy


def in_double(value: Any) -> Any:
    """Return outputs with floating tensors, and the logits under them, in double precision."""

    def cast(part: Any) -> Any:
        if not isinstance(part, tf.Tensor) or not part.dtype.is_floating:
            return part
        found = tf.cast(part, tf.float64)
        if hasattr(part, _LOGITS):
            setattr(found, _LOGITS, cast(getattr(part, _LOGITS)))
        if hasattr(part, _MASK):
            setattr(found, _MASK, getattr(part, _MASK))
        return found

    return tf.nest.map_structure(cast, value)


def main_tensor(output: Any) -> Any:
    """Return an output that is a tensor, or the `logits` of one that has them; else None."""
    output = getattr(output, "logits", output)
    return output if isinstance(output, tf.Tensor) else None


def as_array(output: Any) -> Floats | None:
    """Return the main tensor of an output as an array, None if there is none."""
    tensor = main_tensor(output)
    return None if tensor is None else to_numpy(tensor)


def to_numpy(tensor: Any) -> Floats:
    """Return a tensor as an array, half precision as single."""
    small = tensor.dtype in (tf.bfloat16, tf.float16)
    array: Floats = (tf.cast(tensor, tf.float32) if small else tensor).numpy()
    return array


class Seen:
    """What a loss sees of a batch's output, as flat tensors: values (and logits under them), and masks.

    Raises
    ------
    TypeError
        If the output is not made of tensors, dicts, lists and tuples.
    """

    def __init__(self, output: Any) -> None:
        self._output = output
        self._parts = tf.nest.flatten(output)
        kinds = [type(part).__name__ for part in self._parts if not isinstance(part, tf.Tensor)]
        if kinds:
            raise TypeError(f"Forward mode expects an output made of tensors, got {kinds[0]}.")
        self.values = [*self._parts, *(getattr(p, _LOGITS) for p in self._parts if hasattr(p, _LOGITS))]
        self.masks = [mask for p in self._parts if (mask := getattr(p, _MASK, None)) is not None]

    @staticmethod
    def smooth(values: Sequence[Any]) -> list[Any]:
        """Return the values of a floating type, which are those that have a derivative."""
        return [value for value in values if value.dtype.is_floating]

    def rebuild(self, values: Sequence[Any], masks: Sequence[Any]) -> Any:
        """Return the output with other values and masks in the same places."""
        parts = [tf.identity(value) for value in values[: len(self._parts)]]
        logits, left = iter(values[len(parts) :]), iter(masks)
        for part, original in zip(parts, self._parts, strict=True):
            if hasattr(original, _LOGITS):
                setattr(part, _LOGITS, next(logits))
            if getattr(original, _MASK, None) is not None:
                setattr(part, _MASK, next(left))
        return tf.nest.pack_sequence_as(self._output, parts)
