"""What a Keras model holds besides its weights, and how it is put back."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute

from gradindex.data.names import Leaf, LossFunction
from gradindex.gradients import beside

one_at_a_time = threading.RLock()
"""Held while Python code of a model runs whose layers keep something between calls."""


@contextmanager
def stateless(model: keras.Model, values: Mapping[int, tf.Tensor]) -> Iterator[keras.StatelessScope]:
    """Let other values stand for some of a model's variables, by their ids, and let nothing be assigned to.

    ``model.losses`` read inside are those of the calls inside, and of the values. Yields the ``keras.StatelessScope``.
    """
    mapping = [(v, values.get(id(v), v.value)) for v in model.trainable_variables]
    mapping += [(v, values[id(v)]) for v in model.non_trainable_weights if id(v) in values]
    with one_at_a_time, losses_kept(model), keras.StatelessScope(mapping, collect_losses=True) as scope:
        yield scope


@contextmanager
def losses_kept(model: keras.Model) -> Iterator[None]:
    """Put back, at the end, the losses that layers hold from the last call."""
    before = [(layer, layer._losses[:], set(layer._loss_ids)) for layer in model._flatten_layers()]
    try:
        yield
    finally:
        for layer, losses, numbers in before:
            layer._losses[:] = losses
            layer._loss_ids.clear()
            layer._loss_ids.update(numbers)


def variables(model: keras.Model) -> list[keras.Variable]:
    """Return every ``tf.Variable`` of a model: weights, statistics, seeds, metrics, and those that Keras does not know.

    The seed of Keras's own random numbers is among them.
    """
    shared = getattr(get_global_attribute("global_seed_generator"), "state", None)
    return [one._value for one in (*model.variables, shared) if one is not None] + unknown_variables(model)


def unknown_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of a model that Keras does not list: TensorFlow's own, and states of recurrent layers."""
    found = [*tf.train.TrackableView(model).descendants()]
    for layer in model._flatten_layers():
        for value in vars(layer).values():
            found += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return _others(model, found)


def of_loss(model: keras.Model, loss_fn: LossFunction) -> list[keras.Variable]:
    """Return the variables that a loss holds, such as averages that it updates, and that are none of the model's."""
    return _others(
        model, beside.of_loss(loss_fn, lambda one: isinstance(one, tf.Variable | keras.Variable | keras.Layer))
    )


def _others(model: keras.Model, things: Iterable[object]) -> list[keras.Variable]:
    """Return the ``tf.Variable`` of some things, without those that Keras knows of the model."""
    spread = [part for one in things for part in (one.variables if isinstance(one, keras.Layer) else [one])]
    found = [one._value if isinstance(one, keras.Variable) else one for one in spread]
    known = {id(one._value) for one in model.variables}
    return list({id(one): one for one in found if isinstance(one, tf.Variable) and id(one) not in known}.values())


class Kept:
    """The values of variables at one time. Costs no copy: what is assigned later goes to other memory."""

    def __init__(self, of: Iterable[keras.Variable]) -> None:
        self._before = [(variable, variable.read_value()) for variable in of]

    def changed(self) -> list[keras.Variable]:
        """Return the variables that were assigned other values since."""
        return [variable for variable, value in self._before if not _same(value, variable.read_value())]

    def restore(self) -> None:
        """Put all values back."""
        for variable, value in self._before:
            if not _same(value, variable.read_value()):
                variable.assign(value)


@contextmanager
def state_kept(model: keras.Model, of: Iterable[keras.Variable]) -> Iterator[None]:
    """Put back, at the end, the values of some variables, and the losses that layers hold from the last call."""
    with one_at_a_time, losses_kept(model):
        kept = Kept(of)
        try:
            yield
        finally:
            kept.restore()


def _same(before: Leaf, now: Leaf) -> bool:
    if "CPU" in before.device and np.asarray(before).ctypes.data == np.asarray(now).ctypes.data:
        return True
    return bool(tf.reduce_all(before == now))
