"""The short form of benchmarks/hanawa.py and hanawa_single.py: one repeat of one case."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gradindex.evaluation import evaluate
from gradindex.relevance import curvature

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytestmark = pytest.mark.skipif("GRADINDEX_DATA" not in os.environ, reason="the Vehicle table is not at hand")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def rates(models, metrics, single=False):
    import hanawa

    experiment = hanawa.experiment("vehicle-logreg", epochs=600, models=models, single=single)
    return evaluate(experiment, metrics, ["class"], repeats=1, options={"damping": "study"})


def test_the_cosine_of_gradients_is_first_on_vehicle(models):
    found = rates(models, ["GC", "l2-x", "dot-x", "IF", "FK"])
    assert found.mean("class", "GC") >= 0.97
    assert all(found.mean("class", name) <= 0.9 for name in ("l2-x", "dot-x", "IF", "FK"))
    assert len(list(models.iterdir())) == 1


def test_fixed_labels_are_far_from_the_papers_randomization(models):
    """GC: .56 over ten repeats of the whole training; with own labels it meets the paper's -.06 ± .11."""
    import hanawa

    experiment = hanawa.experiment("vehicle-logreg", epochs=600, models=models)
    found = evaluate(experiment, ["GC", "l2-x"], ["randomization"], repeats=1, labels="both").to_dict()["summary"]
    own, fixed = found["randomization"]["GC"], found["randomization (fixed)"]["GC"]
    assert fixed["mean"] > 0.4 > 0.3 > abs(own["mean"])
    theirs = hanawa.rows_of("vehicle-logreg", "randomization (fixed)")["GC"]
    assert theirs == hanawa.rows_of("vehicle-logreg", "randomization")["GC"] == [-0.06, 0.11]
    assert not hanawa.meets(fixed, theirs)
    assert found["randomization"]["l2-x"]["mean"] == pytest.approx(1)


def test_the_published_matrices_give_the_papers_rows(models):
    """Top-10 cos-FK: .85 in the paper, .56 with the true Fisher information matrix."""
    import hanawa_single

    true = rates(models, ["cos-FK"]).mean("top-10 class", "cos-FK")
    with hanawa_single.published():
        found = rates(models, ["cos-FK", "cos-IF"], single=True)
    assert found.mean("top-10 class", "cos-FK") >= 0.75 > true + 0.05
    assert found.meta["solvers"]["cos-FK"] == "inv and sqrtm of the rank-one matrix in float32"
    assert curvature.hessian is not hanawa_single.hessian


def test_gauss_newton_is_the_hessian_of_a_linear_model(models):
    import hanawa
    import hanawa_single

    experiment = hanawa.experiment("vehicle-logreg", epochs=600, models=models, single=True)
    split = experiment.split(0)
    job = experiment.job(split, split.y_train, 4, 0)
    expected = curvature._product(job)(np.eye(job.engine.size))
    np.testing.assert_allclose(hanawa_single.gauss_newton(job), expected, atol=1e-5 * np.abs(expected).max())
