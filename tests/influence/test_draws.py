"""The bound on the number of draws against simulated means, and against a VAE's losses."""

import numpy as np
import pytest

from gradindex.influence import UnsupervisedJob, draws_needed
from tests.influence.unsupervised_models import LATENT, TorchKit, X, Z


@pytest.mark.parametrize(
    ("eps", "delta", "deviation", "draws"),
    [(0.5, 0.05, 1, 80), (0.1, 0.1, 1, 1000), (0.1, 0.1, 3, 9000), (1, 0.5, 1, 2), (7, 0.2, 2.5, 1), (1, 0.3, 0, 1)],
)
def test_the_formula(eps, delta, deviation, draws):
    assert draws_needed(eps, delta, deviation) == draws


@pytest.mark.parametrize("eps", [1.0, 0.25])
def test_no_distribution_errs_more_often(eps):
    """Draws that are 0 but for rare large ones of either sign come nearest to the bound."""
    random, delta, runs = np.random.default_rng(0), 0.2, 20_000
    draws = draws_needed(eps, delta)
    for rare in (0.5, delta / draws, delta, 1 / draws):  # the share of draws that are not 0
        values = random.choice([-1.0, 1.0], (runs, draws)) * (random.random((runs, draws)) < rare) / np.sqrt(rare)
        assert values.std() == pytest.approx(1, rel=0.1)
        assert np.mean(np.abs(values.mean(axis=1)) > eps) <= delta + 0.01


def test_one_draw_fewer_would_not_do():
    """Where Chebyshev's inequality is met: single draws that are ±eps with probability delta, else 0."""
    random, eps, delta = np.random.default_rng(0), 2.0, 0.25
    deviation = eps * np.sqrt(delta)
    values = eps * random.choice([-1.0, 1.0], 40_000) * (random.random(40_000) < delta)
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert np.mean(np.abs(values) >= eps) == pytest.approx(delta, rel=0.03)
    assert draws_needed(eps, delta, deviation) == 1
    assert draws_needed(eps * 0.999, delta, deviation) == 2


def test_a_vaes_losses_err_no_more_often_than_that():
    model, loss_fn = TorchKit.vae()

    def losses(draws, seed):
        job = UnsupervisedJob(model, loss_fn, X, takes="model", noise=(LATENT,), draws=draws, seed=seed)
        return job.losses(Z)

    true, error = losses(4096, 0)
    deviation = error * np.sqrt(4096)
    eps, delta = 0.5 * deviation.max(), 0.2
    draws = draws_needed(eps, delta, float(deviation.max()))
    assert draws == 20
    wrong = np.array([np.abs(losses(draws, seed)[0] - true) > eps for seed in range(1, 121)])
    assert (wrong.mean(axis=0) <= delta).all()
    alone = np.array([np.abs(losses(1, seed)[0] - true) > eps for seed in range(1, 61)])
    assert alone.mean(axis=0).max() > delta


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0.1), "eps must be a number above 0, got 0"),
        ((float("nan"), 0.1), "eps must be"),
        ((1, 0), "delta must be between 0 and 1, got 0"),
        ((1, 1), "delta must be"),
        ((1, 0.1, -1), "deviation must be a finite number"),
        ((1, 0.1, float("inf")), "deviation must be"),
    ],
)
def test_numbers_that_make_no_sense(arguments, said):
    with pytest.raises(ValueError, match=said):
        draws_needed(*arguments)
