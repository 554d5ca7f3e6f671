"""Copies of a Keras model with layers initialised again."""

import keras
import numpy as np


def initialised_again(model: keras.Model, seed: int, top: int | None) -> keras.Model:
    """Return a copy of a model whose last `top` layers with parameters (None: all) are initialised again by a seed."""
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


def _initializer(layer: keras.Layer, name: str, seed: int) -> keras.Initializer:
    for attribute in (f"{name}_initializer", f"{name.rstrip('s')}_initializer"):
        initializer = getattr(layer, attribute, None)
        if initializer is not None:
            config = initializer.get_config()
            return type(initializer).from_config({**config, "seed": seed} if "seed" in config else config)
    raise ValueError(
        f"Layer {layer.name!r} has no initializer for {name!r}. Give the experiment a function fresh(classes, seed)."
    )
