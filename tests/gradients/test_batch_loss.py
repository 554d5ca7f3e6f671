"""Losses of batches that are made of their samples' losses, and losses that are not."""

import numpy as np
import pytest

import gradindex
from gradindex.gradients import batch_loss

Z = np.array([0.3, 1.7, -0.4, 2.2, 0.9])


def of(loss):
    return lambda rows: float(loss(Z[list(rows)]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: (z**2).sum(),
        lambda z: (z**2).mean(),
        lambda z: (z**2).mean() + 3.0,
        lambda z: (z**2).sum() + 0.3 * np.abs(z).mean(),
        lambda z: (z**2 * np.abs(z)).sum() / np.abs(z).sum(),
        lambda z: 0.0 * z.sum(),
    ],
    ids=["sum", "mean", "penalty", "sum and mean", "weighted", "zero"],
)
def test_losses_made_of_their_samples_pass(loss):
    batch_loss.check(of(loss), len(Z))


@pytest.mark.parametrize(
    "loss",
    [lambda z: z.std(), lambda z: np.log(np.exp(np.outer(z, z)).sum(1)).mean(), lambda z: (z.sum() - 1) ** 2],
    ids=["deviation", "contrastive", "square of a sum"],
)
def test_losses_that_compare_samples_are_refused(loss):
    with pytest.raises(ValueError, match="loss of a batch is not made of the losses of its samples"):
        batch_loss.check(of(loss), len(Z))


def test_losses_in_half_precision_pass():
    rounded = of(lambda z: np.round(8 * (z**2).sum()) / 8)
    batch_loss.check(rounded, len(Z), tolerance=5e-2)
    with pytest.raises(ValueError, match="not made of"):
        batch_loss.check(rounded, len(Z))


def test_what_cannot_be_told_passes():
    batch_loss.check(lambda rows: None, 5)
    batch_loss.check(of(np.std), 2)


def test_the_model_is_called_once_with_each_sample(kit, monkeypatch):
    engine = gradindex.Job(kit.mlp(), kit.loss, (np.ones((5, 4), np.float32), np.arange(5) % 3)).engine
    x, y = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), np.arange(5) % 3
    asked, outputs = [], engine.output_of_one
    monkeypatch.setattr(engine, "output_of_one", lambda one: asked.append(one) or outputs(one))
    loss = batch_loss.of(engine, x, y)
    each = [loss([row]) for row in range(4)]
    for a, b in [(0, 1), (0, 3), (2, 1)]:
        assert loss([a, b]) == pytest.approx((each[a] + each[b]) / 2, rel=1e-5)
    np.testing.assert_array_equal(np.concatenate(asked), x[:4])
    assert batch_loss.of(engine, x, y[:1])([0, 1]) is None  # there is no such label
