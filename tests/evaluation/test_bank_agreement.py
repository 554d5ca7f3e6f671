"""Rank correlations, their resamples, and the noise ceiling, on data whose answers are known."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from gradindex.evaluation import rank_agreement
from gradindex.evaluation.lds import Estimate, Truth
from gradindex.evaluation.rank_agreement import Resamples


def halves(subsets, n, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((subsets, n), bool)
    for mask in masks:
        mask[rng.choice(n, n // 2, replace=False)] = True
    return masks


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(ties):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 25))
    if ties:
        a, b = np.round(a), np.round(b)
    found = rank_agreement.correlations(a, [b, a])
    np.testing.assert_allclose(found[0][:, 0], [spearmanr(p, q).statistic for p, q in zip(a, b, strict=True)])
    np.testing.assert_allclose(found[1][:, 0], 1)


def test_a_resample_is_what_repeating_the_subsets_gives(monkeypatch):
    monkeypatch.setattr(rank_agreement, "_WORK_BYTES", 3 * 8 * 12 * 12)  # several blocks of queries
    rng = np.random.default_rng(1)
    a, b = np.round(rng.standard_normal((2, 10, 12)), 1)
    draws = Resamples.draw(10, 12, count=5, seed=3)
    found = rank_agreement.correlations(a, [b], draws.subsets)[0]
    for number, weights in enumerate(draws.subsets.astype(int)):
        columns = np.repeat(np.arange(12), weights)
        want = [np.corrcoef(rankdata(p[columns]), rankdata(q[columns]))[0, 1] for p, q in zip(a, b, strict=True)]
        np.testing.assert_allclose(found[:, number], want, atol=1e-12)
    rows = np.repeat(np.arange(10), draws.queries[2].astype(int))
    assert draws.mean(found)[2] == pytest.approx(found[rows, 2].mean())
    assert (draws.subsets.sum(axis=1) == 12).all() and (draws.queries.sum(axis=1) == 10).all()


def test_a_resample_of_one_subset_alone_counts_as_zero():
    a = np.arange(8.0).reshape(2, 4)
    found = rank_agreement.correlations(a, [a], np.array([[0, 4, 0, 0], [1, 1, 1, 1.0]]))[0]
    assert found.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("models", [2, 3, 4, 7])
def test_the_ceiling_is_what_a_noise_free_prediction_reaches(models):
    """Losses are a known sum of scores plus noise: √ρ with ρ = 1 / (1 + noise² / models), for ranks a little less."""
    rng = np.random.default_rng(models)
    masks, weights, noise = halves(60, 200), rng.standard_normal((100, 200)), 1.5
    signal = weights @ masks.T
    signal = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
    losses = -signal.T[:, None, :] + noise * rng.standard_normal((60, models, 100))
    truth = Truth(masks, losses)
    found = truth.judge({"noise-free": weights})["noise-free"]
    want = np.sqrt(1 / (1 + noise**2 / models))
    assert truth.ceiling.value == pytest.approx(want, abs=0.04)
    assert truth.ceiling.low - 0.02 < found.value < truth.ceiling.high + 0.02
    assert found.share == pytest.approx(1, abs=0.04)


def test_without_agreement_the_ceiling_is_zero_and_with_one_model_unknown():
    rng = np.random.default_rng(0)
    masks = halves(30, 40)
    noise = Truth(masks, rng.standard_normal((30, 2, 100)))
    assert noise.ceiling.value < 0.25
    opposite = rng.standard_normal((30, 1, 100)) * np.array([1, -1])[None, :, None]
    assert Truth(masks, opposite).ceiling.value == 0
    assert Truth(masks, opposite).judge({"a": rng.standard_normal((100, 40))})["a"].share is None
    alone = Truth(masks, rng.standard_normal((30, 1, 100)))
    assert alone.ceiling is None


def test_subsets_without_all_models_are_left_out_of_the_ceiling_alone():
    rng = np.random.default_rng(0)
    masks, losses = halves(30, 40), rng.standard_normal((30, 2, 20)) + rng.standard_normal((30, 1, 20))
    whole = Truth(masks[:25], losses[:25])
    losses[25:, 0] = np.nan
    found = Truth(masks, losses)
    assert found.ceiling == whole.ceiling
    assert found.actual.shape == (20, 30)
    losses[3:] = np.nan
    with pytest.raises(ValueError, match="Only 3 of 30 subsets have a trained model"):
        Truth(masks, losses)


def test_halves_are_disjoint_and_all_of_them_where_they_are_few():
    for models, count in ((2, 1), (3, 3), (4, 3), (5, 15), (6, 10), (8, 10)):
        splits = rank_agreement._splits(models, models // 2, 0)
        assert len(splits) == count
        for one, other in splits:
            assert len(one) == len(other) == models // 2 and not set(one) & set(other)
    r = np.array([-0.2, 0.0, 0.4, 1.0])
    np.testing.assert_allclose(rank_agreement.reliability(r, 3.0), [0, 0, 1.2 / 1.8, 1])


def test_an_interval_holds_the_truth_in_about_95_percent():
    """Of correlated pairs, with the same number of queries and subsets drawn anew; the truth from very many."""
    rng = np.random.default_rng(0)

    def drawn(queries, subsets):
        a = rng.standard_normal((queries, subsets))
        return a, a + rng.uniform(0.2, 2, (queries, 1)) * rng.standard_normal((queries, subsets))

    a, b = drawn(3000, 200)
    truth = rank_agreement.correlations(a, [b])[0].mean()
    hits = 0
    for number in range(60):
        a, b = drawn(40, 40)
        draws = Resamples.draw(40, 40, count=200, seed=number)
        again = draws.mean(rank_agreement.correlations(a, [b], draws.subsets)[0])
        estimate = Estimate.of(rank_agreement.correlations(a, [b])[0].mean(), again)
        hits += estimate.low <= truth <= estimate.high
    assert 52 <= hits <= 60
