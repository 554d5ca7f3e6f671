"""Labels drawn from the model: which distribution a loss stands for, and that the Fisher information comes of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradindex import InDouble
from gradindex.data.dataset_types import as_source
from gradindex.gradients.curvature import Curvature, NoDistribution, drawn
from gradindex.gradients.torch.engine import TorchEngine

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 4)).astype(np.float32)
CLASSES = RNG.integers(0, 3, 12)


def engine_of(outputs, loss, extra=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TorchEngine(nn.Sequential(nn.Linear(4, outputs), *([extra] if extra else [])), loss)


class Steps(nn.Module):
    """Logits (b, 5, 3) at five positions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 15)

    def forward(self, x):
        return self.layer(x).unflatten(1, (5, 3))


def steps_engine(loss):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TorchEngine(Steps(), loss)


def masked_labels():
    y = RNG.integers(0, 3, (12, 5))
    y[:, 3:] = -100
    return y


CASES = {
    "logits": (lambda: engine_of(3, nn.CrossEntropyLoss()), CLASSES, "classes", "logits"),
    "double": (lambda: engine_of(3, InDouble(nn.CrossEntropyLoss())), CLASSES, "classes", "logits"),
    "sum": (lambda: engine_of(3, nn.CrossEntropyLoss(reduction="sum")), CLASSES, "classes", "logits"),
    "logarithms": (lambda: engine_of(3, nn.NLLLoss(), nn.LogSoftmax(1)), CLASSES, "classes", "logits"),
    "probabilities": (
        lambda: engine_of(3, lambda p, y: F.nll_loss(p.log(), y), nn.Softmax(1)), CLASSES, "classes", "probabilities"
    ),
    "one-hot": (lambda: engine_of(3, nn.CrossEntropyLoss()), np.eye(3, dtype="f4")[CLASSES], "one-hot", "logits"),
    "binary": (
        lambda: engine_of(1, lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y)),
        (CLASSES > 1).astype("f4"), "binary", "logits",
    ),
    "several": (
        lambda: engine_of(4, nn.BCELoss(), nn.Sigmoid()), RNG.integers(0, 2, (12, 4)).astype("f4"),
        "binary", "probabilities",
    ),
    "square": (lambda: engine_of(2, nn.MSELoss()), RNG.standard_normal((12, 2)).astype("f4"), "square", ""),
    "masked": (
        lambda: steps_engine(lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())),
        masked_labels(), "classes", "logits",
    ),
    "torch's axis": (
        lambda: steps_engine(lambda o, y: F.cross_entropy(o, y)), RNG.integers(0, 5, (12, 3)), "classes", "logits"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_the_loss_says_which_distribution_it_is(name):
    make, y, kind, form = CASES[name]
    engine = make()
    found = drawn.find(engine, engine.outputs(X), y)
    assert (found.kind, found.form) == (kind, form)
    if name == "torch's axis":
        assert found.axis == 1
    labels = found.draw(engine.outputs(X), y, (0, 0))
    assert (labels.shape, labels.dtype) == (y.shape, y.dtype)
    if name == "masked":
        np.testing.assert_array_equal(labels == -100, y == -100)
    assert not np.array_equal(labels, found.draw(engine.outputs(X), y, (0, 1)))
    np.testing.assert_array_equal(labels, found.draw(engine.outputs(X), y, (0, 0)))


@pytest.mark.parametrize("name", ["logits", "binary", "square", "several"])
def test_drawn_labels_give_the_gauss_newton_matrix(name):
    make, y, _, _ = CASES[name]
    engine = make()
    x, y = np.tile(X, (100, 1)), np.concatenate([y] * 100)
    curvature = Curvature.fit(engine, as_source((x, y)), "ekfac", labels="model", samples=20)
    # A model linear in its parameters, of which the Hessian of these losses is the Gauss-Newton matrix.
    linear = engine.model[0]
    want = np.trace(engine.hessian_product(x, y, np.eye(engine.size))) / len(x)
    if name == "several":  # behind the sigmoid it is that of the logits
        other = TorchEngine(nn.Sequential(linear), nn.BCEWithLogitsLoss())
        want = np.trace(other.hessian_product(x, y, np.eye(engine.size))) / len(x)
        want /= 4  # a mean over four labels: their sum's matrix over 4, the squared gradient's over 16
    assert curvature.trace == pytest.approx(want, rel=0.03)


def test_draws_are_unbiased():
    logits = np.array([[0.0, 1.0, 2.0]])
    counts = np.zeros(3)
    distribution = drawn.Distribution("classes", "logits", 1)
    for turn in range(3000):
        counts[distribution.draw(logits, np.zeros(1, int), (5, turn))] += 1
    np.testing.assert_allclose(counts / 3000, np.exp(logits[0]) / np.exp(logits).sum(), atol=0.03)


@pytest.mark.parametrize(
    ("make", "y", "message"),
    [
        (lambda: engine_of(3, nn.CrossEntropyLoss(torch.arange(1.0, 4), reduction="sum")), CLASSES, "not −log p"),
        (lambda: engine_of(3, nn.CrossEntropyLoss(label_smoothing=0.1)), CLASSES, "not −log p"),
        (lambda: engine_of(3, lambda o, y: 2 * F.cross_entropy(o, y)), CLASSES, "not −log p"),
        (lambda: engine_of(2, nn.L1Loss()), RNG.standard_normal((12, 2)).astype("f4"), "not −log p"),
        (lambda: engine_of(3, lambda o, y: F.cross_entropy(o, y["a"])), {"a": CLASSES}, "not one array"),
    ],
)  # fmt: skip
def test_other_losses_are_refused(make, y, message):
    with pytest.raises(NoDistribution, match=message):
        Curvature.fit(make(), as_source((X, y)), labels="model")
    assert Curvature.fit(make(), as_source((X, y)), labels="data").trace > 0


def test_texts_of_several_lengths():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.words(x).mean(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        engine = TorchEngine(Mean(), nn.CrossEntropyLoss())
    texts = [RNG.integers(0, 9, length) for length in (3, 5, 3, 4, 5, 3)]
    source = as_source([(text, int(label)) for text, label in zip(texts, CLASSES, strict=False)])
    squares = [
        (engine.sample_gradient(text[None], CLASSES[i : i + 1]).gradients ** 2).sum() for i, text in enumerate(texts)
    ]
    assert Curvature.fit(engine, source).trace == pytest.approx(np.mean(squares), rel=1e-5)
    assert Curvature.fit(engine, source, labels="model").trace > 0
