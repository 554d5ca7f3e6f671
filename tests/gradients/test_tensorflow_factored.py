"""Every Keras layer with a rule, by value against the one-sample loop."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras  # noqa: E402

from gradindex.gradients import loop  # noqa: E402
from gradindex.gradients.tensorflow import TensorFlowEngine  # noqa: E402
from gradindex.sketch import CountSketch, Identity  # noqa: E402

L = keras.layers
CLASSES = 3
IMAGE, ODD, LINE, CUBE, FLAT, WORDS = (8, 7, 4), (7, 5, 4), (9, 4), (5, 4, 6, 2), (4,), None


def series(*layers):
    return [*layers, L.GlobalAveragePooling1D()]


def images(*layers):
    return [*layers, L.GlobalMaxPooling2D()]


def cubes(*layers):
    return [*layers, L.GlobalAveragePooling3D()]


# What each model starts with, the input's shape, and its layers before the last Dense.
CASES = {
    "dense": (FLAT, lambda: [L.Dense(5, "tanh"), L.Dense(4, use_bias=False)]),
    "dense on a sequence": (LINE, lambda: series(L.Dense(5, "relu"))),
    "dense on images": (IMAGE, lambda: images(L.Dense(5, "gelu"))),
    "dense, many positions": ((33, 4), lambda: series(L.Dense(3, "tanh"))),
    "einsum": (LINE, lambda: [L.EinsumDense("abc,cde->abde", (9, 2, 3), bias_axes="de"), L.Flatten()]),
    "einsum, turned": (LINE, lambda: [L.EinsumDense("abc,dc->adb", (5, 9), bias_axes="d"), L.Flatten()]),
    "einsum, one kernel a place": (LINE, lambda: [L.EinsumDense("abc,cb->ab", (9,), bias_axes="b")]),
    "conv1d": (LINE, lambda: series(L.Conv1D(5, 3, 2, activation="relu"))),
    "conv1d, causal, dilated": (LINE, lambda: series(L.Conv1D(5, 3, padding="causal", dilation_rate=2))),
    "conv1d, same, dilated": (LINE, lambda: series(L.Conv1D(5, 4, padding="same", dilation_rate=2))),
    "conv1d, groups": (LINE, lambda: series(L.Conv1D(6, 3, groups=2, padding="same"))),
    "conv1d, groups, dilated": (LINE, lambda: series(L.Conv1D(6, 3, groups=2, dilation_rate=2))),
    "conv2d": (IMAGE, lambda: images(L.Conv2D(5, (3, 2), activation="relu"))),
    "conv2d, same": (ODD, lambda: images(L.Conv2D(5, (4, 3), padding="same"))),
    "conv2d, same, strides": (IMAGE, lambda: images(L.Conv2D(5, (2, 3), 2, padding="same"))),
    "conv2d, strides beyond the kernel": (ODD, lambda: images(L.Conv2D(5, (1, 2), 3))),
    "conv2d, dilated": (ODD, lambda: images(L.Conv2D(5, (2, 3), dilation_rate=2))),
    "conv2d, same, dilated": (ODD, lambda: images(L.Conv2D(5, 3, dilation_rate=(2, 3), padding="same"))),
    "conv2d, groups": (IMAGE, lambda: images(L.Conv2D(6, (3, 2), 2, groups=2, padding="same"))),
    "conv2d, 1x1": (IMAGE, lambda: images(L.Conv2D(5, 1), L.Conv2D(4, 1, 2))),
    "conv3d": (CUBE, lambda: cubes(L.Conv3D(4, (3, 2, 1), activation="relu"))),
    "conv3d, same, strides": (CUBE, lambda: cubes(L.Conv3D(4, (2, 3, 2), (2, 1, 2), padding="same"))),
    "conv3d, groups, dilated": (CUBE, lambda: cubes(L.Conv3D(4, 2, groups=2), L.Conv3D(3, 2, dilation_rate=2))),
    "depthwise": (IMAGE, lambda: images(L.DepthwiseConv2D((3, 2), depth_multiplier=2, activation="relu"))),
    "depthwise, same, strides": (ODD, lambda: images(L.DepthwiseConv2D(3, 2, padding="same"))),
    "depthwise, dilated": (IMAGE, lambda: images(L.DepthwiseConv2D(3, padding="same", dilation_rate=2))),
    "depthwise 1d": (LINE, lambda: series(L.DepthwiseConv1D(3, 2, depth_multiplier=3))),
    "separable": (IMAGE, lambda: images(L.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2))),
    "separable 1d": (LINE, lambda: series(L.SeparableConv1D(5, 3, activation="relu"))),
    "transposed": (ODD, lambda: images(L.Conv2DTranspose(5, (3, 2), 2, activation="relu"))),
    "transposed, same": (ODD, lambda: images(L.Conv2DTranspose(5, (4, 3), (2, 3), "same"))),
    "transposed, dilated": (ODD, lambda: images(L.Conv2DTranspose(5, 3, padding="same", dilation_rate=2))),
    "transposed 1d": (LINE, lambda: series(L.Conv1DTranspose(5, 3, 2, "same"))),
    "transposed 3d": (CUBE, lambda: cubes(L.Conv3DTranspose(3, 2, 2))),
    "embedding": (WORDS, lambda: series(L.Embedding(9, 5), L.Dense(4, "tanh"))),
    "embedding, masked": (WORDS, lambda: series(L.Embedding(9, 5, mask_zero=True))),
    "batch norm": (IMAGE, lambda: images(L.Conv2D(6, 3), L.BatchNormalization(), L.ReLU())),
    "batch norm, first": (FLAT, lambda: [L.BatchNormalization(), L.Dense(3, "tanh")]),
    "layer norm": (LINE, lambda: series(L.LayerNormalization(), L.Dense(4, "relu"))),
    "layer norm, some axes": (IMAGE, lambda: images(L.LayerNormalization(axis=(1, 3)))),
    "group norm": (IMAGE, lambda: images(L.GroupNormalization(2), L.Conv2D(3, 2))),
    "rms norm": (LINE, lambda: series(L.RMSNormalization(), L.Dense(4, "relu"))),
    "prelu": (IMAGE, lambda: images(L.PReLU(), L.PReLU(shared_axes=[1, 2]), L.Conv2D(3, 2))),
    "lstm": (LINE, lambda: [L.LSTM(5)]),
    "lstm, both ways": (LINE, lambda: [L.Bidirectional(L.LSTM(3, return_sequences=True)), L.LSTM(4)]),
    "gru": (LINE, lambda: [L.GRU(4)]),
    "simple rnn": (LINE, lambda: [L.SimpleRNN(4, return_sequences=True), L.Flatten()]),
}


def sequential(name):
    shape, layers = CASES[name]
    inputs = L.Input((6,), dtype="int32") if shape is None else L.Input(shape)
    return keras.Sequential([inputs, *layers(), L.Dense(CLASSES)]), data(shape)


def data(shape, samples=5):
    random = np.random.default_rng(0)
    if shape is None:
        return random.integers(0, 9, (samples, 6))
    return random.normal(size=(samples, *shape)).astype(np.float32)


Y = np.random.default_rng(1).integers(0, CLASSES, 5)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def shuffled(model):
    """Give every weight another value, so that none is zero or one by its initialiser."""
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + random.normal(scale=0.3, size=variable.shape).astype(np.float32))
    for variable in model.non_trainable_variables:
        if variable.dtype == "float32":
            variable.assign(random.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model


def check(engine, x, y=Y, path="factored"):
    """Norms, formed gradients and embeddings' dot products are those of the loop, for batches of 5, 1 and 0."""
    truth = loop.gradients(engine, x, y)
    scale = np.linalg.norm(truth.gradients, axis=1).max()
    count = CountSketch(64).bind(engine.parameters, seed=7)
    whole = Identity().bind(engine.parameters, seed=0)
    for size in (5, 1, 0):
        xs, ys = tf.nest.map_structure(lambda leaf: leaf[:size], x), y[:size]  # noqa: B023
        want = truth.gradients[:size]
        got = engine.gradients(xs, ys)
        assert got.gradients.shape == want.shape
        assert np.abs(got.gradients - want).max(initial=0) <= 1e-5 * scale
        np.testing.assert_allclose(got.losses, truth.losses[:size], rtol=1e-5)
        for projector in (count, whole):
            found = engine.embed(xs, ys, projector)
            np.testing.assert_allclose(found.norms, np.linalg.norm(want.astype(float), axis=1), rtol=1e-5)
            plain = projector(engine.parameters, want)
            assert np.abs(found.sketches @ found.sketches.T - plain @ plain.T).max(initial=0) <= 1e-5 * scale**2
            assert np.abs(found.sketches - plain).max(initial=0) <= 1e-5 * scale
    if path is not None:
        assert set(engine.paths.values()) == {path}, engine.paths


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    model, x = sequential(name)
    engine = TensorFlowEngine(shuffled(model), LOSS)
    before = engine.state_hashes()
    check(engine, x)
    assert engine.state_hashes() == before
