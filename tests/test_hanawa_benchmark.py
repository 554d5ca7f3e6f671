"""The short form of benchmarks/hanawa.py: one repeat of one case; what its results are merged to."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradindex.evaluation import Result, evaluate
from gradindex.relevance import curvature
from tests import programs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
pytestmark = pytest.mark.skipif("GRADINDEX_DATA" not in os.environ, reason="the Vehicle table is not at hand")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def vehicle(models, single=False):
    import hanawa_cases

    case = replace(hanawa_cases.CASES["vehicle-logreg"], epochs=600)
    return hanawa_cases.experiment(case, models=models, single=single)


def rates(models, metrics, single=False):
    return evaluate(vehicle(models, single), metrics, ["class"], repeats=1, options={"damping": "study"})


def test_the_cosine_of_gradients_is_first_on_vehicle(models):
    found = rates(models, ["GC", "l2-x", "dot-x", "IF", "FK"])
    assert found.mean("class", "GC") >= 0.97
    assert all(found.mean("class", name) <= 0.9 for name in ("l2-x", "dot-x", "IF", "FK"))
    assert len(list(models.iterdir())) == 1


def test_fixed_labels_are_far_from_the_papers_randomization(models):
    """GC: .56 over ten repeats of the whole training; with own labels it meets the paper's -.06 ± .11."""
    import hanawa_tables as hanawa

    found = evaluate(vehicle(models), ["GC", "l2-x"], ["randomization"], repeats=1, labels="both").to_dict()["summary"]
    own, fixed = found["randomization"]["GC"], found["randomization (fixed)"]["GC"]
    assert fixed["mean"] > 0.4 > 0.3 > abs(own["mean"])
    theirs = hanawa.rows_of("vehicle-logreg", "randomization (fixed)")["GC"]
    assert theirs == hanawa.rows_of("vehicle-logreg", "randomization")["GC"] == [-0.06, 0.11]
    assert not hanawa.meets(fixed, theirs)
    assert found["randomization"]["l2-x"]["mean"] == pytest.approx(1)


def test_the_published_matrices_give_the_papers_rows(models):
    """Top-10 cos-FK: .85 in the paper, .56 with the true Fisher information matrix."""
    import hanawa_published

    true = rates(models, ["cos-FK"]).mean("top-10 class", "cos-FK")
    with hanawa_published.published():
        found = rates(models, ["cos-FK", "cos-IF"], single=True)
    assert found.mean("top-10 class", "cos-FK") >= 0.75 > true + 0.05
    assert found.meta["solvers"]["cos-FK"] == "inv and sqrtm of the rank-one matrix in float32"
    assert curvature.hessian is not hanawa_published.hessian


def test_gauss_newton_is_the_hessian_of_a_linear_model(models):
    import hanawa_published

    experiment = vehicle(models, single=True)
    split = experiment.split(0)
    job = experiment.job(split, split.y_train, 4, 0)
    expected = curvature._product(job)(np.eye(job.engine.size))
    np.testing.assert_allclose(hanawa_published.gauss_newton(job), expected, atol=1e-5 * np.abs(expected).max())


def run(*options):
    done = programs.run([BENCHMARKS / "hanawa.py", *options])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("mode", ["variants", "sure"])
def test_the_other_modes_write_what_they_found(mode, tmp_path):
    out = tmp_path / "found.json"
    if mode == "variants":
        options = ["--variants", "tanh", "standardised", "--tests", "randomization", "--metrics", "cos-last", "GC"]
        run("--cases", "vehicle-mlp", "--epochs", 3, "--repeats", 1, *options, "--out", out)
        found = json.loads(out.read_text(encoding="utf-8"))["results"]
        assert set(found) == {"tanh", "standardised"}
        assert found["tanh"]["randomization"]["cos-last"] != found["standardised"]["randomization"]["cos-last"]
    else:
        run("--cases", "mnist-logreg", "--sure", "--epochs", 1, "--repeats", 1, "--metrics", "GC", "--out", out)
        single, double = json.loads(out.read_text(encoding="utf-8"))["results"]
        assert (single["single"], double["single"]) == (True, False)
        assert 0 <= double["sure"] <= 1 and double["GC"]["others"] > 0.9


def test_every_case_has_a_study_to_be_compared_with():
    import hanawa_cases
    import hanawa_tables

    for name in hanawa_cases.CASES:
        assert hanawa_tables.paper(name) and set(hanawa_tables.PAPER["accuracy"][hanawa_tables.study_of(name)])
    assert hanawa_cases.varied(hanawa_cases.CASES["vehicle-mlp"], "a tenth of the epochs").epochs == 100
    assert {name for one in hanawa_cases.VARIANTS.values() for name in one} <= set(
        vars(hanawa_cases.CASES["mnist-cnn"])
    )


def result(seeds, rate, null, metric="GC", test="class"):
    meta = {"seeds": seeds, "queries": 500, "metrics": [metric]}
    return Result({test: {metric: [rate] * len(seeds)}}, {"class": [0.5] * len(seeds)}, meta, null)


def test_null_intervals_are_merged():
    """Those of 10 × 500 queries, each right by chance with 1/4, from two parts of other numbers of repeats."""
    import hanawa_tables

    from gradindex.evaluation.verdict import binomial_interval

    whole, *parts = (binomial_interval(np.full(500 * n, 0.25)) for n in (10, 7, 3))
    given = [
        result(seeds, 0.9, {"class": {"GC": null}}) for seeds, null in zip((range(7), range(7, 10)), parts, strict=True)
    ]
    found = hanawa_tables.merged([replace(one, meta=one.meta | {"seeds": list(one.meta["seeds"])}) for one in given])
    assert found.null["class"]["GC"] == pytest.approx(whole, abs=2 / 5000)
    assert found.values["class"]["GC"] == [0.9] * 10
    assert found.passed()["class"]["GC"] is True


def test_the_interval_of_a_single_part_stays_and_a_part_without_one_is_not_judged():
    import hanawa_tables

    one = result([0], 0.9, {"class": {"GC": [0.2, 0.4]}})
    other = result([0], 0.1, {"class": {"IF": [0.21, 0.41]}}, "IF")
    merged = hanawa_tables.merged([one, other])
    assert merged.null == {"class": {"GC": [0.2, 0.4], "IF": [0.21, 0.41]}}
    old = result([1], 0.1, {}, "IF")
    assert hanawa_tables.merged([one, other, old]).null == {}
    assert hanawa_tables.merged([one, other, old]).values["class"]["IF"] == [0.1, 0.1]


def test_counts_are_those_of_the_definition():
    """4 of 5: means of .5 and .6 with deviations of .02 each are .1 apart, and .08 + .005 is allowed."""
    import hanawa_tables

    assert not hanawa_tables.meets({"mean": 0.6, "std": 0.02}, [0.5, 0.02])
    assert hanawa_tables.meets({"mean": 0.584, "std": 0.02}, [0.5, 0.02])
    theirs = hanawa_tables.paper("vehicle-logreg")["class"]
    summary = {"class": {name: {"mean": mean, "std": std} for name, (mean, std) in theirs.items()}}
    assert hanawa_tables.counted(summary, "vehicle-logreg") == {"meet": len(theirs), "of": len(theirs)}
    summary["class"]["GC"]["mean"] = 0.5
    assert hanawa_tables.counted(summary, "vehicle-logreg") == {"meet": len(theirs) - 1, "of": len(theirs)}
    assert hanawa_tables.counted(summary, "vehicle-logreg", ["GC"], ["class"]) == {"meet": 0, "of": 1}
    assert hanawa_tables.counted(summary, "vehicle-logreg", tests=["subclass"]) == {"meet": 0, "of": 0}
