"""What a loss sees of a Keras model's output: its values, the logits under them, and masks."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

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
