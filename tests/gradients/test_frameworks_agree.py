"""Equal models in torch and Keras, with equal seeds, have equal norms and sketches."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from torch import nn  # noqa: E402

from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402
from gradindex.gradients.torch.engine import TorchEngine  # noqa: E402
from gradindex.sketch import SJLT, CountSketch, Gaussian  # noqa: E402

L = keras.layers
CLASSES = 3


def mean(dims):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(dims)

    return Mean()


class Last(nn.Module):
    """An LSTM's last state; Keras has one bias, torch two."""

    def __init__(self, *sizes):
        super().__init__()
        self.lstm = nn.LSTM(*sizes, bias=False, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


IMAGE, LINE, CUBE = (8, 8, 4), (9, 4), (5, 5, 5, 2)
PAIRS = {
    "mlp": ((4,), [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)], [L.Dense(6, "tanh"), L.Dense(CLASSES)]),
    "cnn": (
        IMAGE,
        [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=1e-3), nn.ReLU(), mean((2, 3)), nn.Linear(6, CLASSES)],
        [L.Conv2D(6, 3), L.BatchNormalization(), L.ReLU(), L.GlobalAveragePooling2D(), L.Dense(CLASSES)],
    ),
    "grouped": (
        IMAGE,
        [nn.Conv2d(4, 6, (3, 2), groups=2, stride=2), nn.ReLU(), mean((2, 3)), nn.Linear(6, CLASSES)],
        [L.Conv2D(6, (3, 2), 2, groups=2, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(CLASSES)],
    ),
    "conv1d": (
        LINE,
        [nn.Conv1d(4, 5, 3, dilation=2), nn.ReLU(), mean(2), nn.Linear(5, CLASSES)],
        [L.Conv1D(5, 3, dilation_rate=2, activation="relu"), L.GlobalAveragePooling1D(), L.Dense(CLASSES)],
    ),
    "conv3d": (
        CUBE,
        [nn.Conv3d(2, 5, (3, 2, 1)), nn.ReLU(), mean((2, 3, 4)), nn.Linear(5, CLASSES)],
        [L.Conv3D(5, (3, 2, 1), activation="relu"), L.GlobalAveragePooling3D(), L.Dense(CLASSES)],
    ),
    "transposed": (
        IMAGE,
        [nn.ConvTranspose2d(4, 5, (3, 2), stride=2), nn.ReLU(), mean((2, 3)), nn.Linear(5, CLASSES)],
        [L.Conv2DTranspose(5, (3, 2), 2, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(CLASSES)],
    ),
    "depthwise": (
        IMAGE,
        [nn.Conv2d(4, 8, (3, 2), groups=4), nn.ReLU(), mean((2, 3)), nn.Linear(8, CLASSES)],
        [
            L.DepthwiseConv2D((3, 2), depth_multiplier=2, activation="relu"),
            L.GlobalAveragePooling2D(),
            L.Dense(CLASSES),
        ],
    ),
    "separable": (
        LINE,
        [nn.Conv1d(4, 8, 3, groups=4, bias=False), nn.Conv1d(8, 5, 1), nn.ReLU(), mean(2), nn.Linear(5, CLASSES)],
        [
            L.SeparableConv1D(5, 3, depth_multiplier=2, activation="relu"),
            L.GlobalAveragePooling1D(),
            L.Dense(CLASSES),
        ],
    ),
    "embedding": (
        None,
        [nn.Embedding(9, 5), mean(1), nn.Linear(5, CLASSES)],
        [L.Embedding(9, 5), L.GlobalAveragePooling1D(), L.Dense(CLASSES)],
    ),
    "layer norm": (
        (4,),
        [nn.Linear(4, 6), nn.LayerNorm(6, eps=1e-3), nn.Linear(6, CLASSES)],
        [L.Dense(6), L.LayerNormalization(), L.Dense(CLASSES)],
    ),
    "lstm": ((6, 4), [Last(4, 5), nn.Linear(5, CLASSES)], [L.LSTM(5, use_bias=False), L.Dense(CLASSES)]),
}


def as_keras(parameter, kind):
    """The value of a torch parameter in Keras's layout."""
    value = parameter.detach().numpy()
    if kind == "embedding" or value.ndim < 2:
        return value
    if kind == "depthwise":  # (in·mult, 1, *k) to (*k, in, mult)
        space = value.shape[2:]
        return np.moveaxis(value[:, 0], 0, -1).reshape(*space, 4, -1)
    if kind == "transposed":  # (in, out, *k) to (*k, out, in)
        return np.moveaxis(value, (0, 1), (-1, -2))
    return np.moveaxis(value, (0, 1), (-1, -2))  # (out, in, *k) to (*k, in, out)


def engines(name):
    shape, torch_layers, keras_layers = PAIRS[name]
    torch.manual_seed(0)
    ours = nn.Sequential(*torch_layers)
    inputs = L.Input((6,), dtype="int32") if shape is None else L.Input(shape)
    theirs = keras.Sequential([inputs, *[type(layer).from_config(layer.get_config()) for layer in keras_layers]])
    for variable, (path, parameter) in zip(theirs.trainable_variables, ours.named_parameters(), strict=True):
        torch.nn.init.normal_(parameter, std=0.5)
        first = path.startswith("0.")
        kind = "depthwise" if name in ("depthwise", "separable") and first else name
        variable.assign(as_keras(parameter, kind if first else "dense"))
    return (
        TorchEngine(ours, nn.CrossEntropyLoss()),
        TensorFlowEngine(theirs, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    )


@pytest.mark.parametrize("name", PAIRS)
def test_equal_models_have_equal_embeddings(name):
    ours, theirs = engines(name)
    random = np.random.default_rng(0)
    shape = PAIRS[name][0]
    x = random.integers(0, 9, (4, 6)) if shape is None else random.normal(size=(4, *shape)).astype(np.float32)
    y = random.integers(0, CLASSES, 4)
    channels_first = np.moveaxis(x, -1, 1) if shape is not None and len(shape) > 1 and name != "lstm" else x
    a, b = ours.gradients(channels_first, y), theirs.gradients(x, y)
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-4)
    for (p, place), (q, there) in zip(ours.slices(), theirs.slices(), strict=True):
        want, got = p.canonical(a.gradients[:, place]), q.canonical(b.gradients[:, there])
        assert np.abs(got - want).max() <= 1e-5 * np.linalg.norm(a.gradients, axis=1).max(), p.name
    for kind in (CountSketch(64), SJLT(64), Gaussian(64)):
        first = ours.embed(channels_first, y, kind.bind(ours.parameters, seed=5))
        second = theirs.embed(x, y, kind.bind(theirs.parameters, seed=5))
        np.testing.assert_allclose(first.norms, second.norms, rtol=1e-5)
        assert np.abs(first.sketches - second.sketches).max() <= 1e-5 * first.norms.max()


class Attention(nn.Module):
    """Two heads of three, with Keras's parts in Keras's order."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 6) for _ in range(3))
        self.output, self.head = nn.Linear(6, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        q, k, v = (part(x).unflatten(2, (2, 3)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.output(mixed.transpose(1, 2).flatten(2)).mean(1))


def test_attention_has_equal_embeddings():
    torch.manual_seed(0)
    ours, inputs = Attention(), L.Input(LINE)
    mixed = L.MultiHeadAttention(2, 3)(inputs, inputs)
    theirs = keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(mixed)))
    for variable, parameter in zip(theirs.trainable_variables, ours.parameters(), strict=True):
        torch.nn.init.normal_(parameter, std=0.5)
        variable.assign(parameter.detach().numpy().T.reshape(variable.shape))
    x, y = np.random.default_rng(0).normal(size=(20, *LINE)).astype(np.float32), np.arange(20) % CLASSES
    first = TorchEngine(ours, nn.CrossEntropyLoss())
    second = TensorFlowEngine(theirs, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    a, b = (engine.embed(x, y, CountSketch(64).bind(engine.parameters, seed=5)) for engine in (first, second))
    np.testing.assert_allclose(a.norms, b.norms, rtol=1e-5)
    assert np.abs(a.sketches - b.sketches).max() <= 1e-5 * a.norms.max()
