"""What a Keras model holds besides its weights, and how it is put back."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute

one_at_a_time = threading.RLock()
"""Held while Python code of a model runs whose layers keep something between calls."""


@contextmanager
def stateless(model: Any, values: Mapping[int, Any]) -> Iterator[Any]:
    """Let other values stand for some of a model's variables, by their ids, and let nothing be assigned to.

    ``model.losses`` read inside are those of the calls inside, and of the values. Yields the ``keras.StatelessScope``.
    """
    mapping = [(v, values.get(id(v), v.value)) for v in model.trainable_variables]
    mapping += [(v, values[id(v)]) for v in model.non_trainable_weights if id(v) in values]
    with one_at_a_time, losses_kept(model), keras.StatelessScope(mapping, collect_losses=True) as scope:
        yield scope


@contextmanager
def losses_kept(model: Any) -> Iterator[None]:
    """Put back, at the end, the losses that layers hold from the last call."""
    before = [(layer, layer._losses[:], set(layer._loss_ids)) for layer in model._flatten_layers()]
    try:
        yield
    finally:
        for layer, losses, numbers in before:
            layer._losses[:] = losses
            layer._loss_ids.clear()
            layer._loss_ids.update(numbers)


def variables(model: Any) -> list[Any]:
    """Return every ``tf.Variable`` of a model: weights, statistics, seeds, metrics, and those that Keras does not know.

    The seed of Keras's own random numbers is among them.
    """
    shared = get_global_attribute("global_seed_generator")
    found = [*model.variables, *tf.train.TrackableView(model).descendants(), getattr(shared, "state", None)]
    for layer in model._flatten_layers():
        for value in vars(layer).values():
            found += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    inner = [one._value if isinstance(one, keras.Variable) else one for one in found]
    return list({id(one): one for one in inner if isinstance(one, tf.Variable)}.values())


class Kept:
    """The values of variables at one time. Costs no copy: what is assigned later goes to other memory."""

    def __init__(self, of: Iterable[Any]) -> None:
        self._before = [(variable, variable.read_value()) for variable in of]

    def changed(self) -> list[Any]:
        """Return the variables that were assigned other values since."""
        return [variable for variable, value in self._before if not _same(value, variable.read_value())]

    def restore(self) -> None:
        """Put all values back."""
        for variable, value in self._before:
            if not _same(value, variable.read_value()):
                variable.assign(value)


@contextmanager
def state_kept(model: Any, of: Iterable[Any] | None = None) -> Iterator[None]:
    """Put back, at the end, what a call of the model changes; `of`: its `variables`, where they are known."""
    with one_at_a_time, losses_kept(model):
        kept = Kept(variables(model) if of is None else of)
        try:
            yield
        finally:
            kept.restore()


def _same(before: Any, now: Any) -> bool:
    if "CPU" in before.device and np.asarray(before).ctypes.data == np.asarray(now).ctypes.data:
        return True
    return bool(tf.reduce_all(before == now))
