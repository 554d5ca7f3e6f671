"""The retraining bank against plain loops, and what happens to it when something fails."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.evaluation import Bank
from gradindex.evaluation.design import seed_of
from tests.evaluation import bank_fits as fits

TRAIN, QUERIES = fits.data()
ROOT = Path(__file__).parents[2]
SMALL = {"queries": QUERIES, "subsets": 8, "models": 2}


def scores(seed=0):
    return np.random.default_rng(seed).standard_normal((fits.M, fits.N))


def by_loops(bank, scores):
    """LDS by its definition."""
    found = []
    for query, row in enumerate(scores):
        sums = [sum(row[i] for i in np.flatnonzero(mask)) for mask in bank.masks]
        losses = [np.mean([one[query] for one in models]) for models in bank.losses]
        found.append(spearmanr(sums, -np.array(losses)).statistic)
    return np.mean(found)


def test_a_bank_holds_the_losses_of_models_of_halves(tmp_path):
    bank = Bank.build(fits.noisy, fits.N, tmp_path / "bank", dataset=TRAIN, **SMALL)
    assert bank.masks.shape == (8, fits.N) and (bank.masks.sum(axis=1) == fits.N // 2).all()
    assert bank.losses.shape == (8, 2, fits.M)
    assert len({bytes(np.packbits(mask)) for mask in bank.masks}) == 8
    seed = seed_of(0, 0, 5, 1)
    want = fits.noisy(np.flatnonzero(bank.masks[5]), seed).loss(QUERIES)
    np.testing.assert_array_equal(bank.losses[5, 1], want)
    again = Bank.open(tmp_path / "bank")
    np.testing.assert_array_equal(again.losses, bank.losses)
    np.testing.assert_array_equal(again.masks, bank.masks)
    assert bank.failures == [] and bank.seconds >= 0


def test_lds_is_what_loops_give(tmp_path):
    bank = Bank.build(fits.noisy, fits.N, tmp_path, subsets=20, models=3, queries=QUERIES)
    found = bank.lds(scores())
    assert found.value == pytest.approx(by_loops(bank, scores()), abs=1e-12)
    assert found.estimate.low < found.value < found.estimate.high
    some = np.array([3, 1, 7])
    assert bank.lds(scores(), queries=some).value == pytest.approx(found.of_queries[some].mean(), abs=1e-12)


def test_exact_influence_predicts_a_ridge_regression(tmp_path):
    """−dℓ_q/dε_i of a minimum is g_qᵀ H⁻¹ g_i (Koh and Liang 2017): it ranks subsets far better than noise."""
    bank = Bank.build(fits.ridge, fits.N, tmp_path, subsets=40, models=1, queries=QUERIES)
    x, y = TRAIN
    weights = fits.Ridge(x, y).weights
    hessian = x.T @ x + np.eye(fits.WIDTH)
    gradients = x * (x @ weights - y)[:, None]
    asked = QUERIES[0] * (QUERIES[0] @ weights - QUERIES[1])[:, None]
    found = bank.compare({"random": scores(), "influence": asked @ np.linalg.inv(hessian) @ gradients.T})
    assert found.scores["influence"].value > 0.8
    assert abs(found.scores["random"].value) < 0.3
    assert found.best == "influence" and found.better("influence", "random") == 1.0
    assert found.difference("influence").low > 0.4


def test_constant_scores_and_losses_count_as_zero(tmp_path):
    bank = Bank.build(fits.noisy, fits.N, tmp_path, **SMALL)
    flat = bank.lds(np.full((fits.M, fits.N), 0.7))
    assert flat.value == 0 and flat.constant == fits.M and flat.estimate.low == flat.estimate.high == 0
    counted = (scores() > 0).astype(float)
    assert (bank.lds(counted / 3).of_queries == bank.lds(counted).of_queries).all()  # equal sums stay equal
    some = scores()
    some[:4] = 1 / 3
    assert bank.lds(some).constant == 4
    bank.losses[:, :, 5] = 2.0
    del bank.__dict__["truth"]
    assert bank.lds(some).constant == 5
    assert bank.lds(some).of_queries[5] == 0


def test_wrong_scores_are_refused(tmp_path):
    bank = Bank.build(fits.ridge, fits.N, tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"shape \(12, 39\); expected \(queries, samples\) = \(12, 40\)"):
        bank.lds(scores()[:, 1:])
    holes = scores()
    holes[0, :2] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 scores of 'scores' are not finite"):
        bank.lds(holes)
    with pytest.raises(ValueError, match="no scores"):
        bank.compare({})
    with pytest.raises(ValueError, match="reference 'b' is none of the kernels"):
        bank.compare({"a": scores()}, reference="b")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"queries": (QUERIES[0] + 1, QUERIES[1])}, "other queries"),
        ({"queries": (QUERIES[0][1:], QUERIES[1][1:])}, r"other numbers of queries \(12, not 11\)"),
        ({"dataset": (TRAIN[0] + 1, TRAIN[1])}, "other training samples"),
        ({"seed": 1}, r"other seeds \(0, not 1\)"),
        ({"subsets": 9}, r"other numbers of subsets \(8, not 9\)"),
        ({"fraction": 0.25}, r"other sizes of subsets \(20, not 10\)"),
    ],
)
def test_another_bank_is_not_mistaken_for_this_one(tmp_path, changed, said):
    Bank.build(fits.ridge, fits.N, tmp_path, dataset=TRAIN, **SMALL)
    with pytest.raises(MismatchError, match=said):
        Bank.build(fits.ridge, fits.N, tmp_path, **{"dataset": TRAIN, **SMALL, **changed})
    if set(changed) <= {"queries", "dataset"}:
        with pytest.raises(MismatchError, match=said):
            Bank.open(tmp_path, **{"queries": QUERIES, **changed})
    Bank.open(tmp_path, queries=QUERIES, dataset=TRAIN)


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    for changed, said in (
        ({"subsets": 3}, "subsets must be an integer of 4 or more, got 3"),
        ({"models": 0}, "models must be an integer of 1 or more"),
        ({"fraction": 1.0}, "fraction must leave some samples in and some out of 40, got 1.0"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"dataset": (TRAIN[0][1:], TRAIN[1][1:])}, "The dataset has 39 samples, and the bank is one of 40"),
        ({"queries": (QUERIES[0][:0], QUERIES[1][:0])}, "There are no queries"),
    ):
        with pytest.raises(ValueError, match=said):
            Bank.build(fits.ridge, fits.N, tmp_path / "bank", **{**SMALL, **changed})
    with pytest.raises(FileNotFoundError, match="no retraining bank"):
        Bank.open(tmp_path / "bank")
    with pytest.raises(TypeError, match=r"fit returned object without a method loss\(queries\)"):
        Bank.build(lambda ids, seed: object(), fits.N, tmp_path / "other", **SMALL)
    with pytest.raises(TypeError, match=r"shape \[\(11,\)\]; expected \(12,\)"):
        Bank.build(lambda ids, seed: fits.Short(), fits.N, tmp_path / "other", **SMALL)
    with pytest.raises(TypeError, match=r"got Ridge.*Without loss_fn"):
        Bank.build(fits.ridge, fits.N, tmp_path / "third", loss_fn=print, **SMALL)
    with pytest.raises(TypeError, match="With loss_fn, queries must be"):
        Bank.build(fits.ridge, fits.N, tmp_path / "other", queries=QUERIES[0], loss_fn=print)


def test_models_that_fail_are_reported_and_left_out(tmp_path, caplog):
    bad = seed_of(0, 0, 2, 0), seed_of(0, 0, 2, 1)
    bank = Bank.build(partial(fits.failing, bad), fits.N, tmp_path, **SMALL)
    assert [(one.subset, one.seed) for one in bank.failures] == [(2, bad[0]), (2, bad[1])]
    assert bank.failures[0].error == "RuntimeError: no convergence"
    assert bank.failures[1].error == "the losses of 12 queries are not finite"
    assert caplog.text.count("failed") == 2
    found = bank.lds(scores())
    assert found.subsets == 7 and np.isfinite(found.value)
    one = Bank.build(partial(fits.failing, (bad[0], 0)), fits.N, tmp_path / "one", **SMALL)
    assert one.lds(scores()).subsets == 8
    assert one.lds(scores()).value == pytest.approx(spearman_without(one), abs=1e-12)
    assert Bank.build(fits.ridge, fits.N, tmp_path, **SMALL).failures == bank.failures
    assert Bank.build(fits.ridge, fits.N, tmp_path, retry=True, **SMALL).failures == []


def spearman_without(bank):
    sums, losses = scores() @ bank.masks.T, -np.nanmean(bank.losses, axis=1)
    return np.mean([spearmanr(a, b).statistic for a, b in zip(sums, losses.T, strict=True)])


def test_too_few_models_are_an_error(tmp_path):
    def broken(ids, seed):
        raise ValueError("no such optimiser")

    with pytest.raises(ValueError, match=r"16 of 16 models failed.*no such optimiser"):
        Bank.build(broken, fits.N, tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"16 of 16 models failed.*FloatingPointError: overflow"):
        Bank.build(lambda ids, seed: fits.Raises(), fits.N, tmp_path / "other", **SMALL)


def test_worker_processes_give_the_same_bank(tmp_path):
    one = Bank.build(fits.noisy, fits.N, tmp_path / "one", **SMALL)
    calls = tmp_path / "calls"
    calls.mkdir()
    two = Bank.build(partial(fits.counted, calls), fits.N, tmp_path / "two", workers=2, **SMALL)
    assert len(list(calls.iterdir())) == 16
    assert len({path.name.partition("-")[2] for path in calls.iterdir()} - {str(os.getpid())}) >= 1
    np.testing.assert_array_equal(one.masks, two.masks)
    assert two.lds(scores()).value == pytest.approx(by_loops(two, scores()), abs=1e-12)


def test_a_fit_that_cannot_be_sent_is_said(tmp_path):
    with pytest.raises(TypeError, match=r"cannot be sent to other processes.*workers=1"):
        Bank.build(lambda ids, seed: fits.ridge(ids, seed), fits.N, tmp_path, workers=2, **SMALL)


def test_a_worker_that_dies_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="ended by itself"):
        Bank.build(fits.dying, fits.N, tmp_path, workers=2, **SMALL)


SCRIPT = """
import sys
from functools import partial
from gradindex.evaluation import Bank
from tests.evaluation import bank_fits as fits
Bank.build(partial(fits.slow, sys.argv[1]), fits.N, sys.argv[2], queries=fits.data()[1], subsets=8, models=2)
"""


def test_a_bank_that_was_killed_goes_on_where_it_was(tmp_path):
    calls, place = tmp_path / "calls", tmp_path / "bank"
    calls.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(calls), str(place)], env=environment)
    while len(list(calls.iterdir())) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name for path in (place / "models").glob("*.json")}
    assert 3 <= len(finished) < 16
    with pytest.raises(ValueError, match=f"{16 - len(finished)} of 16 models are missing"):
        Bank.open(place)
    before = {path.name: path.read_bytes() for path in (place / "models").glob("*.json")}
    again = tmp_path / "again"
    again.mkdir()
    bank = Bank.build(partial(fits.counted, again), fits.N, place, **SMALL)
    assert len(list(again.iterdir())) == 16 - len(finished)
    assert all((place / "models" / name).read_bytes() == text for name, text in before.items())
    whole = Bank.build(partial(fits.ridge, noise=0.01), fits.N, tmp_path / "whole", **SMALL)
    np.testing.assert_array_equal(bank.losses, whole.losses)


def test_damaged_files_are_refused(tmp_path):
    Bank.build(fits.ridge, fits.N, tmp_path, **SMALL)
    file = tmp_path / "models" / "00003-1.json"
    text = file.read_text()
    file.write_text(text.replace("0.", "1.", 1))
    with pytest.raises(DamagedIndexError, match=r"00003-1\.json is damaged"):
        Bank.open(tmp_path)
    file.write_text(text)
    Bank.build(fits.ridge, fits.N, tmp_path / "other", **{**SMALL, "seed": 1})
    file.write_text((tmp_path / "other" / "models" / "00003-1.json").read_text())
    with pytest.raises(DamagedIndexError, match=r"00003-1\.json is not of this bank"):
        Bank.open(tmp_path)
    file.write_text(text)
    members = next(tmp_path.glob("members.*.npy"))
    members.write_bytes(members.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedIndexError, match="members"):
        Bank.open(tmp_path)


def test_torch_and_keras_models_are_asked_by_their_loss(tmp_path):
    import torch

    _, queries = map(fits.float32, fits.classes())
    some = {**SMALL, "queries": queries, "subsets": 5}
    bank = Bank.build(fits.torch_model, fits.N, tmp_path / "torch", loss_fn=fits.cross_entropy(), **some)
    model = fits.torch_model(np.flatnonzero(bank.masks[4]), seed_of(0, 0, 4, 1))
    want = torch.nn.functional.cross_entropy(
        model(torch.tensor(queries[0])), torch.tensor(queries[1]), reduction="none"
    )
    np.testing.assert_allclose(bank.losses[4, 1], want.detach(), rtol=1e-6)
    saved = json.loads((tmp_path / "torch" / "models" / "00004-1.json").read_text())["model"]
    assert saved["predictions"] == model(torch.tensor(queries[0])).argmax(1).tolist()

    keras = pytest.importorskip("keras")
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    bank = Bank.build(fits.keras_model, fits.N, tmp_path / "keras", loss_fn=loss_fn, **some)
    model = fits.keras_model(np.flatnonzero(bank.masks[2]), 0)
    want = [float(loss_fn(y[None], model(x[None]))) for x, y in zip(*queries, strict=True)]
    np.testing.assert_allclose(bank.losses[2, 0], want, rtol=1e-5)
