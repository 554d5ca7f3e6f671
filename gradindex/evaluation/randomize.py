"""A copy of a model with layers initialised again."""

import copy
from typing import Any

import numpy as np

from gradindex.gradients import backend_of
from gradindex.words import Backend


def randomized(model: Any, seed: int, top: int | None = None) -> Any:
    """Return a copy of `model` whose layers are initialised again in place; the model itself is not touched.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` whose parameters belong to modules with ``reset_parameters`` (all of torch's own
        layers), or a Keras model.
    seed
        Of the initialisation.
    top
        Only that many layers with parameters, from the output down (the cascading test); None: all.

    Raises
    ------
    ValueError
        If a layer does not know how to initialise itself, or `top` is less than 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be None or at least 1, got {top}.")
    return (_torch if backend_of(model) is Backend.TORCH else _keras)(model, seed, top)


def _torch(model: Any, seed: int, top: int | None) -> Any:
    import torch

    found = copy.deepcopy(model)
    owners = [(n, m) for n, m in found.named_modules() if next(m.parameters(recurse=False), None) is not None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in owners if top is None else owners[-top:]:
            # MultiheadAttention's own is private.
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset is None:
                raise ValueError(
                    f"Layer {name!r} ({type(module).__name__}) has parameters but no reset_parameters(). "
                    "Give it one, or give the experiment a function fresh(classes, seed)."
                )
            reset()
    return found


def _keras(model: Any, seed: int, top: int | None) -> Any:
    import keras

    found = keras.models.clone_model(model)
    found.set_weights(model.get_weights())
    layers = [
        layer for layer in found._flatten_layers(include_self=False, recursive=True) if layer._trainable_variables
    ]
    rng = np.random.default_rng(seed)
    for layer in layers if top is None else layers[-top:]:
        for variable in layer._trainable_variables:
            variable.assign(
                _initializer(layer, variable.name, int(rng.integers(2**31)))(variable.shape, variable.dtype)
            )
    return found


def _initializer(layer: Any, name: str, seed: int) -> Any:
    for attribute in (f"{name}_initializer", f"{name.rstrip('s')}_initializer"):
        initializer = getattr(layer, attribute, None)
        if initializer is not None:
            config = initializer.get_config()
            return type(initializer).from_config({**config, "seed": seed} if "seed" in config else config)
    raise ValueError(
        f"Layer {layer.name!r} has no initializer for {name!r}. Give the experiment a function fresh(classes, seed)."
    )
