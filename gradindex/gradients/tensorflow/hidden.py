"""Hidden representations of a Keras model: what its layers with weights receive, or outputs of named layers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from gradindex.data.source import Tree
from gradindex.gradients.inputs import check_layers
from gradindex.gradients.parameter import Floats


class Hidden:
    """Reads the hidden representations of a model.

    Parameters
    ----------
    model
        The model.
    layers
        Names of layers whose outputs are wanted. None: the input of each layer that has weights, the first excepted.

    Raises
    ------
    ValueError
        If there is no layer of a name, or none is named and the model is neither Sequential nor functional.
    """

    def __init__(self, model: keras.Model, layers: Sequence[str] | None) -> None:
        there = {layer.name: layer for layer in getattr(model, "layers", ())}
        if layers is not None:
            wanted = [there[name].output for name in check_layers(layers, there)]
        else:
            try:
                wanted = [layer.input for layer in there.values() if layer.weights][1:]
            except AttributeError as error:
                raise ValueError(
                    "The hidden layers of a Keras model are found in Sequential and functional models only, got "
                    f"{type(model).__name__}: use metrics of x or of gradients."
                ) from error
        inputs = model.inputs if wanted and len(model.inputs) > 1 else model.inputs[0] if wanted else None
        self._reader: Any = keras.Model(inputs, wanted) if wanted else None

    def __call__(self, x: Tree) -> list[Floats]:
        """Return the representations (b, …) of a batch, one for each layer."""
        if self._reader is None:
            return []
        outputs = self._reader(x, training=False)
        return [np.asarray(out) for out in (outputs if isinstance(outputs, list | tuple) else [outputs])]
