"""Reading a traced graph: which operation used which weight, and what its gradient needs.

The model is traced once with each selected variable replaced by a named tensor (``keras.StatelessScope``), and
then the graph itself is asked for the consumers of that tensor. Nothing of the model is patched, so it cannot
be left changed by an exception and threads need no lock; a shared layer, a tied weight, a nested model, a
subclass with its own `call` are all just operations; and since EVERY consumer is seen, a parameter is factored
only if each of its uses has a rule. The derivatives δ of the operations' outputs come from ``tf.gradients`` in
the same graph, which computes nothing but what they need: no weight gradients, none of the input.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from gradindex.gradients.tensorflow.use import Direct, Use


class NoRule(Exception):
    """A use of a parameter that has no rule, or is beyond the rule; the parameter takes the next rung."""


@dataclass(frozen=True)
class Recipe:
    """What makes a `Use`, once the graph has run: its class, tensors (as graph outputs) and options."""

    kind: type[Use]
    tensors: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How an operation's first axis holds the samples: `samples` (a scalar tensor), each one's rows together."""

    samples: Any

    def positions(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return `tensor` (N, …, n) as (b, T, n)."""
        return tf.reshape(tensor, [self.samples, -1, tensor.shape[-1]])

    def fold(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return `tensor` (N, …) as (b, N / b, …)."""
        return tf.reshape(tensor, tf.concat([[self.samples, -1], tf.shape(tensor)[1:]], 0))


@dataclass(frozen=True)
class Weight:
    """A parameter, or a function of parameters alone, on its way to the operation that meets the data."""

    tensor: Any
    pulls: tuple[Callable[[Any], Any], ...] = ()
    """From per-sample derivatives (b, …) of the tensor back to those of the parameter, last one first."""
    flipped: bool = False
    """Whether the tensor is the transpose of the parameter, both (or reshaped) matrices."""
    is_view: bool = True
    """Whether the tensor has the parameter's own values, in its memory order or `flipped`."""

    def pull(self, gradients: tf.Tensor) -> tf.Tensor:
        """Return flat per-sample derivatives (b, size) of the parameter, given those of the tensor."""
        for pull in reversed(self.pulls):
            gradients = pull(gradients)
        return tf.reshape(gradients, [tf.shape(gradients)[0], -1])


@dataclass(frozen=True)
class Tap:
    """An operation that meets weight and data: the output whose δ is wanted, and what to make of it."""

    output: Any
    make: Callable[[Any, Layout], Recipe]
    foldable: bool = True
    """Whether several rows of the first axis may belong to one sample."""


Rule = Callable[[Any, int, Weight], Tap]
RULES: dict[str, Rule] = {}


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Register the rule of some types of operations: (operation, which input is the weight, weight) to tap."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


def reached(tensors: Sequence[tf.Tensor]) -> set[int]:
    """Return the ids of all operations of a graph that depend on some tensors."""
    found: set[int] = set()
    stack = [op for tensor in tensors for op in tensor.consumers()]
    while stack:
        op = stack.pop()
        if id(op) not in found:
            found.add(id(op))
            stack += [consumer for output in op.outputs for consumer in output.consumers()]
    return found


def taps(value: tf.Tensor, data: set[int], outputs: set[int]) -> list[Tap]:
    """Return all taps of a parameter.

    Parameters
    ----------
    value
        The tensor that stands for it.
    data
        The ids of operations that depend on the data.
    outputs
        The ids of the model's output tensors.

    Raises
    ------
    NoRule
        If a use of it has no rule.
    """
    found: list[Tap] = []
    stack = [Weight(value)]
    while stack:
        weight = stack.pop()
        if id(weight.tensor) in outputs:
            raise NoRule("is an output")
        for op in weight.tensor.consumers():
            if op.type in _SHAPES:
                continue
            at = [i for i, tensor in enumerate(op.inputs) if tensor is weight.tensor]
            for i in at:
                if id(op) in data:
                    if op.type not in RULES:
                        raise NoRule(op.type)
                    found.append(RULES[op.type](op, i, weight))
                else:
                    stack += _derived(op, i, weight)
    return found


_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
_VIEWS = frozenset({"Identity", "Reshape", "ExpandDims", "Squeeze"})
_SELECTIONS = frozenset({"GatherV2", "Slice", "Split", "SplitV", "StridedSlice", "Unpack"})
_UNARY = frozenset({"Exp", "Log", "Rsqrt", "Sigmoid", "Softplus", "Sqrt", "Square", "Tanh", "Reciprocal"})


def _derived(op: tf.Operation, i: int, weight: Weight) -> list[Weight]:
    """Return the functions of weights alone that `op` makes of one."""
    kind, shape = op.type, weight.tensor.shape
    if kind in _VIEWS or (kind == "Cast" and op.outputs[0].dtype.is_floating):
        # A transposed matrix may be read as another matrix only if its axes stay as they are.
        keeps = not weight.flipped or op.type in ("Identity", "Cast")
        return [_next(op, weight, lambda g: _reshaped(g, shape), keeps=keeps)]
    if kind == "Transpose":
        order = tf.get_static_value(op.inputs[1])
        if order is None:
            raise NoRule(kind)
        back = [0, *(1 + list(order).index(axis) for axis in range(len(order)))]
        turned = _next(op, weight, lambda g: tf.transpose(g, back), keeps=len(order) == 2)
        return [replace(turned, flipped=not weight.flipped)]
    if kind in _SELECTIONS:
        return _selected(op, i, weight)
    if kind in _UNARY:
        slope = tf.gradients(op.outputs[0], weight.tensor)[0]
        return [_next(op, weight, lambda g: g * slope)]
    return [_next(op, weight, _arithmetic(op, i, shape))]


def _arithmetic(op: tf.Operation, i: int, shape: tf.TensorShape) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the pull of an elementwise operation of weights and constants."""
    if op.type in ("Add", "AddV2"):
        return lambda g: _unbroadcast(g, shape)
    if op.type == "Neg" or (op.type == "Sub" and i == 1):
        return lambda g: _unbroadcast(-g, shape)
    if op.type == "Sub":
        return lambda g: _unbroadcast(g, shape)
    if op.type == "Mul":
        return lambda g: _unbroadcast(g * op.inputs[1 - i], shape)
    if op.type == "RealDiv" and i == 0:
        return lambda g: _unbroadcast(g / op.inputs[1], shape)
    raise NoRule(op.type)


def _selected(op: tf.Operation, i: int, weight: Weight) -> list[Weight]:
    """Return the outputs of an operation that takes some entries of a weight: which, it says of their numbers."""
    shape = weight.tensor.shape.as_list()
    size = math.prod(shape)
    names = [argument.name for argument in op.op_def.input_arg]
    inputs = dict(zip(names, op.inputs, strict=True))
    inputs[names[i]] = tf.reshape(tf.range(size), shape)
    if op.type == "Split":
        inputs["axis"] = inputs.pop("split_dim")  # its name in Python
    options = {a.name: op.get_attr(a.name) for a in op.op_def.attr if a.type != "type"}
    found = getattr(tf.raw_ops, op.type)(**inputs, **options)
    parts = [tf.reshape(part, [-1]) for part in (found if isinstance(found, list) else [found])]

    def back(numbers: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        def pull(g: tf.Tensor) -> tf.Tensor:
            sums = tf.math.unsorted_segment_sum(tf.transpose(_reshaped(g, tf.shape(numbers))), numbers, size)
            return _reshaped(tf.transpose(sums), shape)

        return pull

    return [_next(op, weight, back(numbers), output) for numbers, output in zip(parts, op.outputs, strict=True)]


def _next(
    op: tf.Operation,
    weight: Weight,
    pull: Callable[[tf.Tensor], tf.Tensor],
    output: tf.Tensor | None = None,
    keeps: bool = False,
) -> Weight:
    return replace(
        weight,
        tensor=op.outputs[0] if output is None else output,
        pulls=(*weight.pulls, pull),
        is_view=weight.is_view and keeps,
    )


def _reshaped(gradients: tf.Tensor, shape: tf.TensorShape | tf.Tensor | list[int]) -> tf.Tensor:
    return tf.reshape(gradients, tf.concat([tf.shape(gradients)[:1], tf.cast(shape, tf.int32)], 0))


def _unbroadcast(gradients: tf.Tensor, shape: tf.TensorShape | tf.Tensor | list[int]) -> tf.Tensor:
    """Sum (b, …) over the axes along which a tensor of `shape` was repeated, to (b, *shape)."""
    extra = gradients.shape.rank - 1 - len(shape)
    axes = [*range(1, 1 + extra)]
    axes += [1 + extra + axis for axis, n in enumerate(shape) if n == 1 and gradients.shape[1 + extra + axis] != 1]
    return _reshaped(tf.reduce_sum(gradients, axes) if axes else gradients, shape)


def direct(weight: Weight, gradients: tf.Tensor) -> Recipe:
    """Return the recipe of a gradient formed inside the graph, given (b, *shape of the tensor)."""
    return Recipe(Direct, (weight.pull(upcast(gradients)),), {})


def upcast(tensor: tf.Tensor) -> tf.Tensor:
    """Return half precision as float32, anything else as it is."""
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor
