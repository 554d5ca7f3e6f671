"""What chance gives, which metrics pass and which one is named, on numbers worked out beforehand."""

import json
from itertools import product
from math import comb

import numpy as np
import pytest

from gradindex import evaluation
from gradindex.cli.app import run
from gradindex.evaluation import Result, criteria, verdict
from tests.evaluation.jobs import experiment


def test_chances_are_those_of_drawing_without_replacement():
    train, wanted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 7])
    assert criteria.chances(train, wanted) == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    assert criteria.chances(train, wanted, 2) == pytest.approx([comb(3, 2) / comb(6, 2), 1 / comb(6, 2), 0, 0])
    assert criteria.chances(train, wanted, 3) == pytest.approx([1 / comb(6, 3), 0, 0, 0])


def test_a_binomial_interval_leaves_out_no_more_than_its_tails():
    """100 queries with a chance of one half: 40 to 60, the classical interval (P(X < 40) = .0176)."""
    assert verdict.binomial_interval(np.full(100, 0.5)) == [0.40, 0.60]
    assert verdict.binomial_interval(np.full(20, 0.1)) == [0.0, 0.25]  # P(X > 5) = .0113, P(X > 4) = .0432
    assert verdict.binomial_interval(np.zeros(5)) == [0.0, 0.0]
    assert verdict.binomial_interval(np.ones(5)) == [1.0, 1.0]


def test_the_interval_of_unequal_chances_is_that_of_all_outcomes():
    chances = np.array([0.1, 0.1, 0.5, 0.9, 0.3, 0.5, 0.5, 0.05])
    distribution = np.zeros(9)
    for outcome in product((0, 1), repeat=8):
        distribution[sum(outcome)] += np.prod(np.where(outcome, chances, 1 - chances))
    inside = [i for i in range(9) if distribution[: i + 1].sum() > 0.025 and distribution[i:].sum() > 0.025]
    assert verdict.binomial_interval(chances) == [inside[0] / 8, inside[-1] / 8] == [1 / 8, 5 / 8]


def test_repeats_narrow_the_interval_of_correlations():
    assert verdict.normal_interval([0.1]) == pytest.approx([-0.196, 0.196], abs=1e-4)
    assert verdict.normal_interval([0.1] * 4) == pytest.approx([-0.098, 0.098], abs=1e-4)
    assert verdict.normal_interval([0.3, 0.4]) == pytest.approx([-0.49, 0.49], abs=1e-3)


MEANS = {
    "class": {"l2-x": 0.6, "dot-x": 0.2, "GD": 0.9, "GC": 1.0, "cos-FK": 1.0, "IF": 0.55, "FK": 0.58},
    "top-10 class": {"l2-x": 0.1, "dot-x": 0.2, "GD": 0.5, "GC": 0.9, "cos-FK": 0.8, "IF": 0.0, "FK": 0.1},
    "randomization": {"l2-x": 1.0, "dot-x": 1.0, "GD": 0.0, "GC": -0.3, "cos-FK": 0.1, "IF": 0.1, "FK": -0.71},
}


def result_of(means, low=0.1, high=0.3):
    null = {test: {name: [low, high] for name in rows} for test, rows in means.items()}
    values = {test: {name: [value] for name, value in rows.items()} for test, rows in means.items()}
    return Result(values, {}, {"metrics": list(next(iter(means.values()))), "repeats": 1, "queries": 1}, null)


def test_passing_is_that_of_table_1():
    result = result_of(MEANS)
    # Five highest: 1, 1, .9, .6, .58; IF is the sixth. dot-x is within chance.
    names = ("l2-x", "dot-x", "GD", "GC", "cos-FK", "IF", "FK")
    passed = result.passed()
    assert passed["class"] == dict(zip(names, (True, False, True, True, True, False, True), strict=True))
    assert passed["randomization"] == dict(zip(names, (False, False, True, True, True, True, False), strict=True))
    assert passed["top-10 class"] == dict(zip(names, (False, False, False, True, True, False, False), strict=True))
    assert verdict.passed("class", {"a": 0.6}, {"a": [0.4, 0.61]}) == {"a": False}  # chance alone
    assert verdict.passed("class", {"a": 0.5}, {"a": [0.1, 0.2]}) == {"a": False}  # no more often right than wrong


def test_the_metric_that_is_named_is_right_most_often():
    result = result_of(MEANS)
    assert result.trusted() == "GC"  # as often right as cos-FK, and more often about ten
    assert result.sentence() == (
        "GC can be trusted: it passes every test that was run, class 1.00 (by chance 0.10 to 0.30), randomization "
        "-0.300 (failed from 0.7 on, by chance 0.100 to 0.300); not tested: subclass."
    )
    assert result_of({"class": MEANS["class"]}).sentence().endswith("not tested: subclass, randomization.")
    worse = MEANS | {"subclass": MEANS["class"] | {"GC": 0.97}}
    assert result_of(worse).trusted() == "cos-FK"


def test_none_is_named_where_none_passes():
    few = {test: {name: MEANS[test][name] for name in ("l2-x", "dot-x")} for test in ("class", "randomization")}
    result = result_of(few)
    assert result.trusted() is None
    assert result.sentence() == (
        "None of these metrics can be trusted: l2-x fails randomization; dot-x fails class, randomization; "
        "not tested: subclass."
    )
    alone = result_of({"randomization": {"GC": 0.0}})
    assert alone.trusted() is None
    assert alone.sentence() == "No metric can be named: neither the class nor the subclass test was judged."


def test_a_fixed_form_that_fails_counts_too():
    both = MEANS | {"randomization (fixed)": MEANS["randomization"] | {"GC": 0.8}}
    assert result_of(both).trusted() == "cos-FK"


def test_results_of_older_versions_are_not_judged():
    old = result_of(MEANS)
    found = Result.from_json(json.dumps({"values": old.values, "accuracy": {}, "meta": old.meta}))
    assert found.passed() == {}
    assert found.trusted() is None
    assert "No metric can be named" in found.sentence()
    assert found.table().caption is None


def test_the_null_interval_holds_random_rankings():
    """A metric whose ranking has nothing to do with classes is within it."""
    random = np.random.default_rng(0)
    train, wanted = random.integers(0, 4, 300), random.integers(0, 4, 400)
    low, high = verdict.binomial_interval(criteria.chances(train, wanted))
    rates = [criteria.passes(random.standard_normal((400, 300)), train, wanted).mean() for _ in range(200)]
    outside = np.mean([(rate < low) or (rate > high) for rate in rates])
    assert 0 < outside <= 0.08
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.05)


def test_the_command_ends_with_a_sentence(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    asked = "evaluate tests.evaluation.jobs:experiment --repeats 1 --tests class,randomization --metrics"
    assert run(f"{asked} l2-x,GC --out {tmp_path}/r.json --chart {tmp_path}/c.png".split()) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "By chance alone, in 95 % of cases: class 0." in text
    assert "1.000 ± 0.000 ✓" in text and "✗" in text
    assert "✓ passed: among the 5 highest rates, above chance and above one half; randomization less than 0.7" in text
    assert re_sentence(text).startswith(
        "GC can be trusted: it passes every test that was run, class 1.00 (by chance 0."
    )
    saved = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert saved["verdict"]["trusted"] == "GC"
    assert saved["verdict"]["passed"]["randomization"] == {"l2-x": False, "GC": True}
    assert saved["verdict"]["sentence"] == re_sentence(text)
    low, high = saved["null"]["class"]["GC"]
    assert 0.1 < low < 0.25 < high < 0.4
    assert run(f"{asked} l2-x,dot-x".split()) == 0
    assert "None of these metrics can be trusted" in " ".join(capsys.readouterr().out.split())


def re_sentence(text):
    return text[text.index("GC can be trusted") :]


def test_the_chart_shows_chance_and_pales_what_fails():
    pytest.importorskip("matplotlib")
    result = evaluation.evaluate(experiment(), ["l2-x", "GC"], ("class", "randomization"), repeats=1)
    panels = result.chart().axes
    assert [bar.get_alpha() for bar in panels[2].patches] == [0.35, 1.0]
    band = panels[0].collections[-1].get_paths()[0].get_extents()
    assert [band.y0, band.y1] == pytest.approx(result.null["class"]["GC"])


def test_the_result_says_what_the_matrices_are():
    few = evaluation.evaluate(experiment(), ["cos-IF", "FK", "GC"], ("class",), repeats=1)
    assert "leaves those directions out." in few.meta["remarks"]["cos-IF"]
    assert list(few.meta["remarks"]) == ["cos-IF"]
    many = evaluation.evaluate(experiment(), ["cos-IF"], ("class",), repeats=1, options={"exact_limit": 10})
    assert many.notes()[0].startswith("cos-IF: EKFAC of the Gauss-Newton matrix")
    assert many.notes()[0].endswith(
        "The Gauss-Newton matrix, which has no negative eigenvalue, stands for the Hessian."
    )


def test_an_evaluation_has_the_null_intervals_of_its_queries():
    """Counted again, query by query, over both repeats; the model predicts all of these clusters."""
    made = experiment()
    result = evaluation.evaluate(made, ["l2-x"], ("class", "subclass", "randomization"), repeats=2, k=2)
    first, two, deviations = [], [], []
    for seed in (0, 1):
        split = made.split(seed)
        asked = np.random.default_rng(seed).permutation(len(split.x_test))[:60]
        assert result.accuracy["class"][seed] == 1
        n = len(split.y_train)
        for wanted in split.y_test[asked]:
            count = sum(int(one == wanted) for one in split.y_train)
            first.append(count / n)
            two.append(count * (count - 1) / (n * (n - 1)))
        x = split.x_test[asked].astype(np.float64)
        scores = -np.square(x[:, None] - split.x_train.astype(np.float64)).sum(axis=2)
        deviations.append(criteria.permuted_deviation(scores, scores))
    assert result.null["class"]["l2-x"] == verdict.binomial_interval(np.array(first))
    assert result.null["top-2 class"]["l2-x"] == verdict.binomial_interval(np.array(two))
    assert result.null["subclass"] == result.null["class"]  # as many classes as subclasses, and all are predicted
    half = 1.96 * np.sqrt(deviations[0] ** 2 + deviations[1] ** 2) / 2
    assert result.null["randomization"]["l2-x"] == pytest.approx([-half, half], rel=1e-3)
