"""The parts of benchmarks/review.py: what is planted, and how weights are fitted."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import review as benchmark
import review_data


@pytest.fixture(scope="module")
def digits():
    if "GRADINDEX_DATA" not in os.environ:
        pytest.skip("GRADINDEX_DATA names no folder of data")
    return review_data.load("digits")


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_as_many_labels_are_wrong_as_asked(digits, kind):
    labels, wrong = review_data.plant(digits, kind, 0.1, 3)
    assert wrong.sum() == round(0.1 * len(digits.y))
    assert np.array_equal(labels != digits.y, wrong)
    again, _ = review_data.plant(digits, kind, 0.1, 3)
    assert np.array_equal(labels, again)
    if kind == "class":
        assert np.array_equal(labels[wrong], (digits.y[wrong] + 1) % 10)


def test_the_baseline_is_trained_without_the_samples_that_it_judges(digits, monkeypatch):
    few = review_data.Set(digits.x[:100], digits.y[:100], (16,), 1)
    seen = []
    fit = review_data.fit
    monkeypatch.setattr(review_data, "fit", lambda x, y, one, seed: seen.append(x) or fit(x, y, one, seed))
    found = review_data.held_out_probabilities(few, few.y, 0)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    rows = [{row.tobytes() for row in x} for x in seen]
    assert len(rows) == 5 and all(sum(row.tobytes() in one for one in rows) == 4 for row in few.x)


def test_weights_find_the_sign_that_tells():
    random = np.random.default_rng(0)
    runs = []
    for _ in range(3):
        wrong = random.random(2000) < 0.1
        tells = random.normal(np.where(wrong, 2.0, 0.0))
        runs.append(({"loss": tells, "opponents": random.normal(size=2000), "inputs model": -tells}, wrong))
    weights = benchmark.fit_weights(runs)
    assert (
        weights["loss"] > 0.9 and weights["inputs model"] == 0 and sum(weights.values()) == pytest.approx(1, abs=0.01)
    )
    assert set(benchmark.fit_weights(runs, ("inputs",))) == {"loss", "opponents"}


def test_measures_of_a_ranking():
    wrong = np.array([True, False, True, False])
    assert benchmark.measure(np.array([4.0, 3, 2, 1]), wrong) == {
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
        "first": 0.5,
    }
    assert benchmark.half_width(np.array([1.0, 2, 3])) == pytest.approx(2.484, abs=1e-3)
