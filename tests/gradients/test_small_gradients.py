"""Norms of gradients so small that their squares vanish in single precision, as those of saturated samples do."""

import numpy as np
import pytest

from gradindex.gradients.tensorflow.engine import TensorFlowEngine
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import CountSketch

SMALL = 1e-21


def torch_cases():
    import torch
    from torch import nn

    torch.manual_seed(0)
    cases = {
        "dense": (nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 200), nn.ReLU()), (6,)),
        "convolution": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), (2, 7, 7)),
        "sequence": (nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 200)), (3, 6)),
        "norms": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), (4, 6)),
    }
    for name, (body, shape) in cases.items():
        model = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(3))
        model(torch.zeros(1, *shape))
        yield name, model.eval(), shape


def keras_cases():
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    cases = {
        "dense": ([layers.Dense(300, "relu"), layers.Dense(200, "relu")], (6,)),
        "convolution": ([layers.Conv2D(4, 3, activation="relu")], (7, 7, 2)),
        "sequence": ([layers.Dense(300, "tanh"), layers.Dense(200)], (3, 6)),
        "norms": ([layers.Dense(8), layers.LayerNormalization()], (4, 6)),
    }
    for name, (body, shape) in cases.items():
        yield name, keras.Sequential([layers.Input(shape), *body, layers.Flatten(), layers.Dense(3)]), shape


def engine(framework, name, scale):
    if framework == "torch":
        from torch import nn

        model, shape = next((model, shape) for one, model, shape in torch_cases() if one == name)
        return TorchEngine(model, lambda out, y: scale * nn.functional.cross_entropy(out, y)), shape
    import keras

    model, shape = next((model, shape) for one, model, shape in keras_cases() if one == name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TensorFlowEngine(model, lambda y, out: scale * loss(y, out)), shape


@pytest.mark.parametrize("name", ["dense", "convolution", "sequence", "norms"])
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_norms_of_tiny_gradients_are_those_of_the_formed_ones(framework, name):
    """Fails with norms summed in single precision: 1e-21 squared is below its smallest number."""
    tiny, shape = engine(framework, name, SMALL)
    plain, _ = engine(framework, name, 1.0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, *shape)).astype(np.float32), rng.integers(0, 3, 5)
    found, usual = (one.embed(x, y, CountSketch(256).bind(one.parameters, seed=0)) for one in (tiny, plain))
    assert set(tiny.paths.values()) == {"factored"}
    formed = np.linalg.norm(tiny.gradients(x, y).gradients.astype(np.float64), axis=1)
    np.testing.assert_allclose(found.norms, formed, rtol=1e-5)
    np.testing.assert_allclose(found.norms / SMALL, usual.norms, rtol=1e-4)
    np.testing.assert_allclose(found.sketches / SMALL, usual.sketches, rtol=1e-3, atol=1e-4 * usual.norms.max())
