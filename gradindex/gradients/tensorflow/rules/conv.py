"""Rules of convolutions: plain, grouped, dilated, depthwise and transposed, in one to three dimensions."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from gradindex.gradients.tensorflow.capture import Layout, NoRule, Recipe, Tap, Weight, rule
from gradindex.gradients.tensorflow.use import Outer, Patches

_RESHAPES = frozenset({"ExpandDims", "Squeeze", "Identity"})
_TRIVIAL = _RESHAPES | {"Placeholder", "Const", "NoOp", "SpaceToBatchND", "BatchToSpaceND"}


@rule("Conv2D", "Conv3D", "DepthwiseConv2dNative")
def convolution(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Cross-correlation: ∇W = Σ_t patch_t δ_tᵀ, in each group."""
    if i != 1:
        raise NoRule(op.type)
    return _tap(weight, *_whole(op), op.type == "DepthwiseConv2dNative")


@rule("PartitionedCall", "StatefulPartitionedCall")
def compiled(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Keras calls grouped convolutions as a function compiled by XLA."""
    body = op.graph._get_function(op.get_attr("f").name).graph
    others = [one for one in body.get_operations() if one.type not in _TRIVIAL]
    if i != 1 or len(op.inputs) != 2 or len(others) != 1 or others[0].type not in ("Conv2D", "Conv3D"):
        raise NoRule(op.type)
    return _tap(weight, op.inputs[0], op.outputs[0], _whole(others[0])[2])


@rule("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def transposed(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Let δ and the input swap places: this is the adjoint of a convolution."""
    if i != 1:
        raise NoRule(op.type)
    options = _options(op)
    _check(weight)
    shape = weight.tensor.shape.as_list()

    def make(delta: tf.Tensor, at: Layout) -> Recipe:
        return Recipe(Patches, (delta, op.inputs[2]), {**options, "kernel": tuple(shape[:-2])})

    return Tap(op.outputs[0], make, foldable=False)


def _tap(weight: Weight, x: tf.Tensor, output: tf.Tensor, options: dict[str, Any], depthwise: bool = False) -> Tap:
    _check(weight)
    shape = weight.tensor.shape.as_list()
    channels = x.shape[-1]
    if channels is None:
        raise NoRule("a convolution of any number of channels")
    groups = channels if depthwise else channels // shape[-2]
    options = {**options, "kernel": tuple(shape[:-2]), "groups": groups, "depthwise": depthwise}

    def make(delta: tf.Tensor, at: Layout) -> Recipe:
        if groups == 1 and set(shape[:-2]) == set(options["stride"]) == {1} and isinstance(options["padding"], str):
            return Recipe(Outer, (at.positions(x), at.positions(delta)), {})  # a pixel is a patch
        return Recipe(Patches, (x, delta), options)

    return Tap(output, make, foldable=False)


def _check(weight: Weight) -> None:
    if not weight.is_view or weight.flipped:
        raise NoRule("a convolution with a function of weights")


def _options(op: tf.Operation) -> dict[str, Any]:
    """Return stride, dilation (by axis of space) and padding of an operation."""
    if op.get_attr("data_format") not in (b"NHWC", b"NDHWC"):
        raise NoRule("channels first")
    padding: str | Sequence[tuple[int, int]] = op.get_attr("padding").decode()
    if padding == "EXPLICIT":
        pads = op.get_attr("explicit_paddings")
        padding = [(pads[j], pads[j + 1]) for j in range(2, len(pads) - 2, 2)]
    return {
        "stride": tuple(op.get_attr("strides")[1:-1]),
        "dilation": tuple(op.get_attr("dilations")[1:-1]),
        "padding": padding,
    }


def _whole(op: tf.Operation) -> tuple[tf.Tensor, tf.Tensor, dict[str, object]]:
    """Return input, output and options of a convolution, with what TensorFlow does around it to dilate it.

    That is to run it on coarser images, one for each offset, which count as samples.
    """
    options, split, output = _options(op), op.inputs[0].op, op.outputs[0]
    while split.type in _RESHAPES:
        split = split.inputs[0].op
    if split.type != "SpaceToBatchND":
        return op.inputs[0], output, options
    join = output.consumers()[0] if len(output.consumers()) == 1 else op
    while join.type in _RESHAPES and len(join.outputs[0].consumers()) == 1:
        join = join.outputs[0].consumers()[0]
    blocks, pads, crops = (tf.get_static_value(value) for value in (*split.inputs[1:], join.inputs[-1]))
    if join.type != "BatchToSpaceND" or any(value is None for value in (blocks, pads, crops)):
        raise NoRule("a dilated convolution of any size")
    if options["padding"] != "VALID" or set(options["stride"]) != {1} or crops[:, 0].any():
        raise NoRule("a dilated convolution with strides")
    lead = len(options["stride"]) - len(blocks)  # axes of length one that stand for missing dimensions
    options["dilation"] = (1,) * lead + tuple(int(block) for block in blocks)
    options["padding"] = [(0, 0)] * lead + [(int(before), int(after)) for before, after in pads]
    return split.inputs[0], join.outputs[0], options
