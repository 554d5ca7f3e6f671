"""Where the outputs and inputs of a Keras layer's weights lie, so that they hash like their torch twins."""

from typing import Any

import keras

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
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


def layout(owner: Any, variable: Any) -> dict[str, Any]:
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
    if isinstance(owner, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D) or (
        name == "depthwise_kernel"
    ):
        return {"split": ndim - 2, "outputs_first": False}
    if isinstance(owner, _TRANSPOSED):
        return {"split": ndim - 1, "output_order": channel_first}
    if isinstance(owner, _CONVOLUTIONS):
        return {"split": ndim - 1, "outputs_first": False, "input_order": channel_first}
    return {"split": ndim - 1, "outputs_first": False}


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
