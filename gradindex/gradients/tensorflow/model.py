"""A Keras model from outside: names and layout of its weights, and how it is called."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradindex.data.source import Tree, leaves
from gradindex.gradients.inputs import bind_inputs, select
from gradindex.gradients.parameter import Parameter
from gradindex.gradients.tensorflow.state import one_at_a_time

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


def check_model(model: keras.Model) -> None:
    """Check that `model` is a Keras 3 model on TensorFlow whose weights exist.

    Raises
    ------
    ValueError
        If Keras does not run on TensorFlow, or the model is not built.
    TypeError
        If it is not a Keras 3 model.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Keras runs on {keras.backend.backend()!r}, expected 'tensorflow'. "
            "Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported."
        )
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"Expected a Keras 3 model, got {type(model).__module__}.{type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built, so its parameters do not exist yet. "
            "Call the model once on a batch, or give it an Input."
        )


def check_device(device: object) -> str | None:
    """Return the name of a device of this machine (TensorFlow itself would quietly take another).

    Raises
    ------
    ValueError
        If there is no such device.
    TypeError
        If it is not None or a string (or TensorFlow's own object for a device).
    """
    if device is None:
        return None
    if not isinstance(device, str | tf.DeviceSpec | tf.config.LogicalDevice):
        raise TypeError(f"`device` must be None or a string, got {type(device).__name__}.")
    name = device.to_string() if isinstance(device, tf.DeviceSpec) else getattr(device, "name", device)
    here = [one.name for one in tf.config.list_logical_devices()]
    try:
        wanted = tf.DeviceSpec.from_string(name)
    except ValueError:
        wanted = None
    for known in map(tf.DeviceSpec.from_string, here):
        if (
            wanted is not None
            and wanted.device_type in (None, known.device_type)
            and wanted.device_index in (None, known.device_index)
        ):
            return str(name)
    raise ValueError(f"There is no device {name!r}. Expected one of: {', '.join(here)}.")


def weight_names(model: keras.Model) -> dict[int, str]:
    """Return the path of every weight by its id, numbered where several weights share one."""
    names: dict[int, str] = {}
    for variable in model.weights:
        name, taken = variable.path, set(names.values())
        count = 1
        while name in taken:
            count += 1
            name = f"{variable.path}:{count}"
        names[id(variable)] = name
    return names


def weight_owners(model: keras.Model) -> dict[int, keras.Layer]:
    """Return the layer of every weight that is meant to be trained (also a frozen one), by the weight's id.

    Statistics, such as BatchNorm's, are not among them.
    """
    layers = model._flatten_layers()
    owners = {id(variable): layer for layer in layers for variable in layer._trainable_variables}
    return {id(variable): owners[id(variable)] for variable in model.weights if id(variable) in owners}


def choose(model: keras.Model, wanted: str | Sequence[str] | None) -> tuple[dict[str, keras.Variable], tuple[str, ...]]:
    """Return the selected variables by name, and the names of those that are not trainable.

    Raises
    ------
    ValueError
        If nothing is trainable, a name is unknown, or nothing is selected.
    """
    names = weight_names(model)
    trainable = {names[id(variable)]: variable for variable in model.trainable_variables}
    frozen = tuple(names[key] for key in weight_owners(model) if names[key] not in trainable)
    return {name: trainable[name] for name in select(list(trainable), wanted)}, frozen


def in_half(model: keras.Model) -> bool:
    """Whether a layer of a model, which may be frozen, computes in half precision."""
    layers: list[Any] = list(getattr(model, "_flatten_layers", list)())
    kinds = {getattr(layer, "compute_dtype", "") for layer in layers} | {str(one.dtype) for one in model.weights}
    return bool(kinds & {"bfloat16", "float16"})


def describe(model: keras.Model, chosen: Mapping[str, keras.Variable]) -> tuple[Parameter, ...]:
    """Return what is to be known of selected variables, given by name."""
    owners = weight_owners(model)
    positions = {id(variable): position for position, variable in enumerate(model.trainable_variables)}
    return tuple(
        Parameter(
            name=name,
            position=positions[id(variable)],
            shape=tuple(variable.shape),
            dtype=str(variable.dtype),
            **layout(owners.get(id(variable)), variable),
        )
        for name, variable in chosen.items()
    )


def bind_arguments(model: keras.Model, x: Tree) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
    """Return the positional and keyword arguments to call the model with.

    Keras passes all inputs as one argument; a model that requires several gets them one by one, and a dict
    becomes keywords if its keys are names of arguments.
    """
    signature = inspect.signature(model.call)
    mode = {"training": False} if "training" in signature.parameters else {}
    if isinstance(model, keras.Sequential) or hasattr(model, "_inputs_struct"):
        return (x,), mode
    inputs = [a for name, a in signature.parameters.items() if name not in ("training", "mask")]
    if isinstance(x, list):  # Keras takes only tensors by position
        return (), {inputs[0].name: x, **mode}
    if isinstance(x, tuple):
        inputs = [a for a in inputs if a.default is inspect.Parameter.empty]
        if len(inputs) < 2:
            return (x,), mode

    def forward() -> None: ...

    forward.__signature__ = signature.replace(parameters=inputs)  # type: ignore[attr-defined]
    args, kwargs = bind_inputs(forward, x)
    return args, {**kwargs, **mode}


_RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
_MOST_STEPS = 256  # a longer loop would make too large a graph


def recurrent_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that loop over time."""
    return [layer for layer in model._flatten_layers() if type(layer) in _RECURRENT and not layer.stateful]


@contextmanager
def unrolled(model: keras.Model, x: Tree) -> Iterator[None]:
    """Make the model's loops over time, while it is traced, a step after the other: only so are steps seen."""
    layers = recurrent_layers(model)
    steps = [leaf.shape[1] for leaf in leaves(x) if leaf.shape.rank is not None and leaf.shape.rank > 1]
    if not layers or not steps or None in steps or max(steps) > _MOST_STEPS:
        yield
        return
    with one_at_a_time:
        before = [(layer, layer.unroll, layer.zero_output_for_mask) for layer in layers]
        try:
            for layer, _, zero in before:
                layer.unroll = True
                if zero and layer.go_backwards:
                    layer.zero_output_for_mask = False
                    layer.inner_loop = partial(_zeroed, layer.inner_loop)
            yield
        finally:
            for layer, unroll, zero in before:
                layer.unroll, layer.zero_output_for_mask = unroll, zero
                layer.__dict__.pop("inner_loop", None)


def _zeroed(
    loop: Callable[..., tuple[tf.Tensor, tf.Tensor, Tree]],
    sequences: tf.Tensor,
    initial_state: Tree,
    mask: tf.Tensor,
    **rest: object,
) -> tuple[tf.Tensor, tf.Tensor, Tree]:
    """Return a backward loop's results with zeros for masked steps: Keras, unrolled, takes the mask forwards."""
    last, outputs, states = loop(sequences, initial_state, mask, **rest)
    if mask is None:
        return last, outputs, states
    kept = tf.reverse(tf.cast(mask, tf.bool), [1])[:, :, None]
    return tf.where(kept[:, -1], last, tf.zeros_like(last)), tf.where(kept, outputs, tf.zeros_like(outputs)), states


def layout(owner: keras.Layer, variable: keras.Variable) -> dict[str, Any]:
    """Return the options of `Parameter` that describe a Keras variable.

    Parameters
    ----------
    owner
        The layer that created the variable.
    variable
        A ``keras.Variable`` of that layer.

    Returns
    -------
    dict
        `split`, `outputs_first`, `input_order`, `output_order`, where they differ from the defaults. Unknown
        weights have their outputs along the last axis, which is Keras's habit.
    """
    ndim, name = len(variable.shape), variable.name
    channel_first = (ndim - 2, *range(ndim - 2))  # of (*space, channel)
    if ndim < 2 or isinstance(owner, _NORMALIZATIONS):
        return {}
    if isinstance(owner, keras.layers.Embedding) and name == "embeddings":
        return {}
    if isinstance(owner, keras.layers.EinsumDense):
        return _einsum(owner.equation) if name == "kernel" else {"split": ndim}
    if isinstance(owner, _DEPTHWISE) or name == "depthwise_kernel":
        return {"split": ndim - 2, "outputs_first": False}
    if isinstance(owner, _TRANSPOSED):
        return {"split": ndim - 1, "output_order": channel_first}
    if isinstance(owner, _CONVOLUTIONS):
        return {"split": ndim - 1, "outputs_first": False, "input_order": channel_first}
    return {"split": ndim - 1, "outputs_first": False}


def needs_one_matrix(owner: keras.Layer, variable: keras.Variable) -> bool:
    """Whether a weight cannot differ between the samples of a batch at little cost."""
    kinds = (*_CONVOLUTIONS, *_TRANSPOSED, *_DEPTHWISE, keras.layers.Embedding)
    return len(variable.shape) < 2 or isinstance(owner, kinds) or not keras.backend.is_float_dtype(variable.dtype)


def _einsum(equation: str) -> dict[str, Any]:
    """Return the layout of an einsum's weights: axes shared with the input are its input side."""
    inputs, _, rest = equation.replace(" ", "").partition(",")
    weights = rest.partition("->")[0]
    shared = [letter in inputs for letter in weights]
    count = sum(shared)
    if 0 < count < len(weights) and not any(shared[: len(weights) - count]):
        return {"split": len(weights) - count}
    if 0 < count < len(weights) and all(shared[:count]):
        return {"split": count, "outputs_first": False}
    return {"split": len(weights) - 1, "outputs_first": False}


def state_hashes(model: keras.Model) -> dict[str, str]:
    """Return the sha256 of every weight and statistic of a model by name."""
    names = weight_names(model)
    return {
        names[id(variable)]: hashlib.sha256(np.ascontiguousarray(variable.value.numpy()).tobytes()).hexdigest()
        for variable in model.weights
    }
