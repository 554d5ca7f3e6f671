"""The short form of benchmarks/counterfactual.py, and what its cases hold."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gradindex.evaluation.design import seed_of

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import counterfactual
from counterfactual_banks import CASES, SEEDS
from counterfactual_data import tfidf

WITHOUT_DATA = {"digits-cnn", "digits-cnn-keras"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    case = counterfactual.shortened(CASES["digits-cnn"])
    return counterfactual.Bench(case, counterfactual.bank_of(case, tmp_path_factory.mktemp("banks")))


def test_a_short_bank_judges_the_baselines(bench, tmp_path, monkeypatch):
    place = bench.bank.path.parent
    words = ["--bank", "digits-cnn", "--short", "--folder", str(place), "--out", str(tmp_path / "r.json")]
    words += ["--removal-queries", "2", "--removal", "gradient dot"]
    monkeypatch.setattr(sys, "argv", ["counterfactual.py", *words])
    counterfactual.main()
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["results"]
    several = {name for name in counterfactual.CONTENDERS if name.startswith("whitened along training")}
    assert set(found["kernels"]) == set(counterfactual.CONTENDERS) - several  # of a single epoch there is one state
    assert found["parameters"] == 1898 and found["epochs"] == 1 and found["meta"]["subsets"] == 6
    assert found["kernels"]["gradient cosine"]["difference"]["value"] == 0
    assert found["reference"] == "gradient cosine" and found["ceiling"]["value"] > 0
    assert [row["removed"] for row in found["removal"]["rows"]] == ["gradient dot", "random", "random of the class"]
    assert {row["k"] for row in found["removal"]["rows"]} == {14} and found["removal"]["seeds"] == 3
    assert bench.bank.header.queries == 300 and len(bench.bank.failures) == 0


def test_fit_trains_what_run_trains(bench):
    """The bank's models are those of the case, shortened; a kernel's are other ones."""
    ids = np.flatnonzero(bench.bank.masks[2])
    case = bench.case
    model, again = case.fit(ids, 5), case.run(5, ids)
    assert all((a == b).all() for a, b in zip(model.parameters(), again.model.parameters(), strict=True))
    assert list(again.states) == [1] and again.checkpoints[0][1] == case.rate
    assert list(CASES["digits-cnn"].recorded) == [1, 2, 4, 15]
    drawn = {seed_of(0, 0, s, j) for case in CASES.values() for s in range(case.subsets) for j in range(case.models)}
    assert len(set(SEEDS)) == 3 and not set(SEEDS) & drawn


def test_a_damping_is_chosen_on_the_other_half_of_the_queries(bench):
    """One damping is right for some queries, the other for the rest: nobody gets the better one by knowing itself."""
    truth = -bench.bank.losses.mean(axis=1).T  # (m, S)
    good = (truth - truth.mean(axis=1, keepdims=True)) @ bench.bank.masks
    halves = np.array_split(np.random.default_rng(0).permutation(len(good)), 2)
    one, two = -good, good.copy()
    one[halves[0]], two[halves[0]] = good[halves[0]], -good[halves[0]]
    judged, about = counterfactual.judge(bench.bank, {0.1: one, 1.0: two})
    assert about["chosen"] == [0.1, 1.0]
    assert bench.bank.lds(good).value > 0.9
    assert bench.bank.lds(judged).value == pytest.approx(-bench.bank.lds(good).value, abs=1e-9)
    same, about = counterfactual.judge(bench.bank, {0.1: -good, 1.0: good})
    np.testing.assert_array_equal(same, good)
    assert about["chosen"] == [1.0, 1.0] and about["best of all"] == about["grid"]["1.0"]


def test_contenders_by_damping_and_those_that_do_not_apply(bench, monkeypatch):
    chosen = {
        "by damping": counterfactual.Contender(lambda bench: {1.0: bench.gradients["grad_dot"]}, lambda bench: 4),
        "none": counterfactual.Contender(lambda bench: None),
    }
    monkeypatch.setattr(counterfactual, "CONTENDERS", chosen)
    found = counterfactual.measure(bench, list(chosen))
    assert set(found["kernels"]) == {"by damping"} and found["reference"] == "by damping"
    assert found["kernels"]["by damping"]["bytes_per_row"] == 4
    assert found["contenders"]["by damping"]["damping"]["chosen"] == [1.0, 1.0]


@pytest.mark.parametrize("name", [name for name in CASES if name != "minilm"])
def test_a_case_holds_300_queries_and_a_loss_of_its_model(name):
    if name not in WITHOUT_DATA and "GRADINDEX_DATA" not in os.environ:
        pytest.skip("its data are not at hand")
    from gradindex.evaluation.training import ask

    case = CASES[name]
    data = case.data
    assert len(data) == len(data.y) and len(data.x_queries) == 300
    if case.backend == "tensorflow":
        pytest.importorskip("keras")
    losses, classes = ask(case.make(0), (data.x_queries[:4], data.y_queries[:4]), case.loss_fn, 4)
    assert np.isfinite(losses).all() and (classes is None) == (case.loss == "words")


def test_tfidf_rows_are_what_the_words_say():
    rows = tfidf([["a", "a", "b"], ["b", "c"], ["c", "x"]], 2, 5)
    assert rows.shape == (3, 5)
    weights = np.array([(1 + np.log(2)) * np.log(2), 0.0])  # a is in one of two texts, b in both
    np.testing.assert_allclose(np.sort(rows[0])[-2:], np.sort(weights / np.linalg.norm(weights)), rtol=1e-6)
    assert rows[1] @ rows[2] == pytest.approx(1)  # x is in no training text
