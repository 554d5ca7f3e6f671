"""The same network in torch and in Keras has the same curvature and the same whitened scores."""

import numpy as np
import pytest
import torch
from torch import nn

from gradindex.data.dataset_types import as_source
from gradindex.gradients.curvature import Curvature, Leading, Whitened, drawn
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import Identity

keras = pytest.importorskip("keras")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6, 6, 2)).astype(np.float32)
Y = RNG.integers(0, 3, 60)


def engines():
    """One CNN twice: two convolutions, whose kernels lie differently, a normalisation and two dense layers."""
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 2, stride=2), nn.Flatten(),
            nn.LayerNorm(20, eps=1e-3), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 3),
        )  # fmt: skip
    layers = keras.layers
    theirs = keras.Sequential(
        [
            keras.Input((6, 6, 2)), layers.Conv2D(4, 3, activation="relu"), layers.Conv2D(5, 2, strides=2),
            layers.Permute((3, 1, 2)), layers.Flatten(), layers.LayerNormalization(epsilon=1e-3),
            layers.Dense(7, "tanh"), layers.Dense(3),
        ]
    )  # fmt: skip
    weights = [p.detach().numpy() for p in ours.parameters()]
    turned = [w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T for w in weights]
    theirs.set_weights(turned)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TorchEngine(ours, nn.CrossEntropyLoss()), TensorFlowEngine(theirs, loss)


@pytest.fixture(scope="module")
def both():
    ours, theirs = engines()
    return (ours, X.transpose(0, 3, 1, 2).copy()), (theirs, X)


@pytest.mark.parametrize("labels", ["data", "model"])
@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_both_frameworks_agree(both, kind, labels):
    scores, dampings = [], []
    for engine, x in both:
        curvature = Curvature.fit(engine, as_source((x, Y)), kind, labels=labels)
        gradients = engine.gradients(x, Y).gradients
        scores.append(curvature.apply(gradients) @ gradients.T)
        dampings.append(curvature.damping)
        whitened = engine.embed(x, Y, Whitened(curvature, Identity().bind(engine.parameters, 0))).sketches
        leading = engine.embed(x, Y, Leading(curvature, engine.size)).sketches
        for rows in (whitened, leading):
            np.testing.assert_allclose(rows @ rows.T, scores[-1], rtol=1e-3, atol=1e-4 * scores[-1].max())
    assert dampings[0] == pytest.approx(dampings[1], rel=1e-4)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4 * scores[0].max())


def test_keras_factors_are_taken_as_factors(both):
    from gradindex.gradients.curvature.factors import FACTORS, FactorSums
    from gradindex.gradients.curvature.sums import passed

    engine, x = both[1]
    totals = passed(lambda: FactorSums(engine.parameters), engine, lambda: as_source((x, Y)).blocks(32))
    kinds = {p.name: totals[p.name].form for p in engine.parameters if len(p.shape) > 1}
    assert set(kinds.values()) == {FACTORS}
    assert len(kinds) == 4


def test_a_keras_table_shared_and_looked_up_twice():
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine

    keras.utils.set_random_seed(0)
    words = keras.Input((5,), dtype="int32")
    table = keras.layers.Embedding(9, 4)
    mixed = keras.layers.Concatenate(axis=1)([table(words), table(words[:, ::-1])])
    hidden = keras.layers.Dense(6, "tanh")(mixed)
    model = keras.Model(words, keras.layers.Dense(3)(keras.layers.Flatten()(hidden)))
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = RNG.integers(0, 9, (40, 5)).astype(np.int32)
    y = RNG.integers(0, 3, 40)
    gradients = engine.gradients(x, y).gradients.astype(float)
    for kind in ("kfac", "ekfac"):
        curvature = Curvature.fit(engine, as_source((x, y)), kind)
        scores = curvature.apply(gradients) @ gradients.T
        rows = engine.embed(x, y, Leading(curvature, engine.size)).sketches
        np.testing.assert_allclose(rows @ rows.T, scores, rtol=1e-3, atol=1e-4 * scores.max())
    assert curvature.trace == pytest.approx((gradients**2).sum() / 40, rel=1e-4)


def test_what_keras_losses_stand_for():
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine

    losses = keras.losses
    cases = [
        ("softmax", losses.SparseCategoricalCrossentropy(), Y, ("classes", "probabilities"), 3),
        ("softmax", losses.CategoricalCrossentropy(), np.eye(3, dtype="f4")[Y], ("one-hot", "probabilities"), 3),
        (None, losses.BinaryCrossentropy(from_logits=True), (Y > 1).astype("f4")[:, None], ("binary", "logits"), 1),
        (None, losses.MeanSquaredError(), RNG.standard_normal((60, 2)).astype("f4"), ("square", ""), 2),
    ]
    for activation, loss, y, want, outputs in cases:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(outputs, activation)])
        engine = TensorFlowEngine(model, loss)
        found = drawn.find(engine, engine.outputs(X[:, 0, 0]), y)
        # Logarithms of a softmax's probabilities may stand for logits, too.
        assert (found.kind, found.form) == want
