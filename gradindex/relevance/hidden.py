"""Hidden representations: what the layers with parameters receive, or the outputs of named layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradindex.data.labels import as_array
from gradindex.data.source import Tree, index, length
from gradindex.job import Job
from gradindex.relevance.base import Rows

_BATCH = 256


class Hidden:
    """h_last or h_all of a job's model.

    Found automatically, a hidden layer is the input of a layer that has parameters, in the order they are
    called, the first (which receives x) excepted; so activations and pooling are included, however the model
    applies them. h_last is the input of the last one.
    """

    def __init__(self, job: Job, layers: Sequence[str] | None) -> None:
        self._job = job
        self._layers = layers
        self._reader: Any = None

    def __call__(self, x: Tree, feature: str) -> Rows:
        """Return ``"last"`` or ``"all"`` of a batch of inputs (b, d).

        Raises
        ------
        ValueError
            If the model has no hidden layer, or none of a given name.
        """
        blocks = [index(x, slice(i, i + _BATCH)) for i in range(0, length(x), _BATCH)]
        return np.concatenate([self._block(block, feature) for block in blocks])

    def _block(self, x: Tree, feature: str) -> Rows:
        found = self._torch(x) if self._job.backend == "torch" else self._keras(x)
        if not found:
            raise ValueError("The model has no hidden layer: it has a single layer with parameters. Name layers=(…).")
        rows = [as_array(part).reshape(length(x), -1).astype(np.float64) for part in found]
        return rows[-1] if feature == "last" else np.concatenate(rows, axis=1)

    def _torch(self, x: Tree) -> list[Any]:
        engine: Any = self._job.engine
        found: list[Any] = []
        modules = dict(engine.model.named_modules())
        if self._layers is None:
            owners = [m for m in modules.values() if next(m.parameters(recurse=False), None) is not None]
            hooks = [m.register_forward_pre_hook(lambda _, args: found.append(_tensor(args))) for m in owners]
        else:
            self._check(modules)
            hooks = [
                modules[n].register_forward_hook(lambda _m, _a, out: found.append(_tensor(out))) for n in self._layers
            ]
        try:
            engine.outputs(x)
        finally:
            for hook in hooks:
                hook.remove()
        return found if self._layers is not None else found[1:]

    def _keras(self, x: Tree) -> list[Any]:
        if self._reader is None:
            self._reader = self._keras_reader()
        outputs = self._reader(x, training=False)
        return [np.asarray(out) for out in (outputs if isinstance(outputs, list | tuple) else [outputs])]

    def _keras_reader(self) -> Any:
        """Return a model of the hidden layers' outputs, or a function of nothing if there are none."""
        import keras

        model = self._job.model
        layers = {layer.name: layer for layer in getattr(model, "layers", ())}
        if self._layers is not None:
            self._check(layers)
            wanted = [layers[name].output for name in self._layers]
        else:
            try:
                wanted = [layer.input for layer in layers.values() if layer.weights][1:]
            except AttributeError as error:
                raise ValueError(
                    "The hidden layers of a Keras model are found in Sequential and functional models only, got "
                    f"{type(model).__name__}: use metrics of x or of gradients."
                ) from error
        if not wanted:
            return lambda x, training: []
        return keras.Model(model.inputs if len(model.inputs) > 1 else model.inputs[0], wanted)

    def _check(self, layers: dict[str, Any]) -> None:
        missing = [name for name in self._layers or () if name not in layers]
        if missing:
            raise ValueError(f"There is no layer {missing[0]!r}. Expected some of: {', '.join(filter(None, layers))}.")


def _tensor(value: Any) -> Any:
    while isinstance(value, tuple | list):
        value = value[0]
    return value.detach()
