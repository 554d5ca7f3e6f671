"""Removal and leave-one-out where retraining is exact, the comparison of kernels, and the command."""

import json
import os
from functools import partial

import numpy as np
import pytest

from gradindex.cli.app import run
from gradindex.evaluation import Bank, Comparison
from gradindex.evaluation.lds import LDS, Estimate
from gradindex.evaluation.removal import OF_CLASS, RANDOM
from gradindex.evaluation.scoring import scores
from tests.evaluation import bank_fits as fits
from tests.evaluation.bank_fits import M, N

TRAIN, QUERIES = fits.classes()
SMALL = {"queries": QUERIES, "subsets": 6, "models": 2, "dataset": TRAIN}


@pytest.fixture
def bank(tmp_path):
    return Bank.build(fits.logistic, N, tmp_path / "bank", **SMALL)


def exact(without):
    return fits.Direct(*(part[np.setdiff1d(np.arange(N), without)] for part in TRAIN))


def leave_one_out():
    """The exact loss change (M, N) of every query without each sample."""
    before = exact([]).loss(QUERIES)
    return np.array([exact([i]).loss(QUERIES) - before for i in range(N)]).T


def test_leaving_one_out_is_exact(bank):
    found = bank.loo(fits.logistic, models=2)
    np.testing.assert_allclose(found.changes, leave_one_out(), atol=1e-12)
    assert found.failed == 0 and (found.errors == 0).all()
    assert found.agreement(leave_one_out()).value == pytest.approx(1)
    assert found.agreement(-leave_one_out()).value == pytest.approx(-1)
    some = bank.loo(fits.logistic, ids=[7, 3], models=1)
    np.testing.assert_allclose(some.changes, leave_one_out()[:, [7, 3]], atol=1e-12)
    assert np.isnan(some.errors).all()


def test_removing_the_true_proponents_hurts_most(bank):
    best = leave_one_out()
    found = bank.removal(fits.logistic, {"true": best, "worst": -best}, [1, 4], queries=M, models=1)
    assert set(found.changes) == {"true", "worst", RANDOM, OF_CLASS}
    before = exact([])
    for row, k in enumerate([1, 4]):
        for query in range(M):
            after = exact(np.argsort(-best[query], kind="stable")[:k])
            want = (after.loss(QUERIES) - before.loss(QUERIES))[query]
            assert found.changes["true"][row, query] == pytest.approx(want, abs=1e-12)
            flipped = after.predict(QUERIES)[query] != before.predict(QUERIES)[query]
            assert found.flips["true"][row, query] == flipped
    np.testing.assert_allclose(found.changes["true"][0], best.max(axis=1), atol=1e-12)
    assert found.change("true", 4).low > 0 > found.change("worst", 4).high
    assert found.change("true", 4, OF_CLASS).low > 0
    assert found.change("true", 1, "true") == Estimate(0, 0, 0)
    assert found.flipped("true", 4).value == found.flips["true"][1].mean() > 0 == found.flipped("true", 4).low
    assert found.control == OF_CLASS and found.failed == 0
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert len(json.loads(text)["rows"]) == 8


def test_random_sets_are_drawn_from_the_class(bank):
    from gradindex.evaluation.removal import sets_to_remove

    values = {"a": np.random.default_rng(0).standard_normal((M, N))}
    sets = sets_to_remove(values, np.array([2, 5]), [3], 0, (TRAIN[1], QUERIES[1]))
    for query in (2, 5):
        assert len(set(sets[RANDOM, 3, query])) == 3
        assert set(TRAIN[1][sets[OF_CLASS, 3, query]]) == {QUERIES[1][query]}
        assert sets["a", 3, query].tolist() == np.argsort(-values["a"][query])[:3].tolist()
    assert sets[RANDOM, 3, 2].tolist() != sets[RANDOM, 3, 5].tolist()


def test_the_same_removed_samples_are_trained_once_and_a_stopped_run_goes_on(bank, tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    values = leave_one_out()
    removal = partial(bank.removal, partial(counted, calls), k=[2], queries=[0, 1, 2], models=2)
    removal({"a": values, "the same": values})
    trained = len(list(calls.iterdir()))
    sets = {tuple(sorted(np.argsort(-values[q], kind="stable")[:2])) for q in range(3)}
    assert trained <= 2 * (1 + len(sets) + 6)
    for file in list((bank.path / "removals").glob("*.json"))[:5]:
        file.unlink()
    removal({"a": values, "b": values + 1})
    assert len(list(calls.iterdir())) == trained + 5


def counted(folder, ids, seed):
    handle = len(list(folder.iterdir()))
    (folder / str(handle)).touch()
    return fits.logistic(ids, seed)


def test_failed_removals_are_counted_and_left_out(bank):
    def sometimes(ids, seed):
        if len(ids) < N and 0 not in ids:
            raise RuntimeError("sample 0 is needed")
        return fits.logistic(ids, seed)

    values = np.zeros((M, N))
    values[0, 0] = values[1, 1] = 1
    found = bank.removal(sometimes, values, [1], queries=[0, 1], models=1)
    assert np.isnan(found.changes["proponents"][0, 0]) and np.isfinite(found.changes["proponents"][0, 1])
    assert found.failed >= 1
    assert found.to_dict()["rows"][0]["changes"][0] is None
    with pytest.raises(ValueError, match="some samples have no loss change"):
        bank.loo(sometimes, models=1).agreement(values)


def test_wrong_removals_are_refused(bank, tmp_path):
    values = np.zeros((M, N))
    for options, said in (
        ({"k": [0]}, "k must be between 1 and 39, got 0"),
        ({"k": [40]}, "k must be between 1 and 39, got 40"),
        ({"k": [30]}, "so 30 cannot be removed. Choose smaller k"),
        ({"k": [1], "queries": 0}, "queries must be at least 1"),
        ({"k": [1], "queries": [M]}, "positions between 0 and 11"),
    ):
        with pytest.raises(ValueError, match=said):
            bank.removal(fits.logistic, values, **options)
    with pytest.raises(ValueError, match="shape"):
        bank.removal(fits.logistic, values[1:], [1])
    with pytest.raises(ValueError, match="opened without its queries"):
        Bank.open(bank.path).removal(fits.logistic, values, [1])
    train, asked = fits.data()
    regression = Bank.build(fits.ridge, N, tmp_path / "ridge", queries=asked, subsets=5, dataset=train)
    found = regression.removal(fits.ridge, values, [1], queries=2, models=1)
    assert set(found.changes) == {"proponents", RANDOM} and found.flips is None and found.control == RANDOM
    with pytest.raises(ValueError, match="nothing can flip"):
        found.flipped(RANDOM, 1)


def judged(value, half, rng, ceiling=None):
    resampled = value + half * rng.standard_normal(1000)
    return LDS(Estimate.of(value, resampled), np.zeros(3), ceiling, 0, 10, 2, resampled)


def test_the_sentence_says_which_how_sure_and_what_it_costs():
    rng = np.random.default_rng(0)
    top = Estimate(0.6, 0.5, 0.7)
    clear = {"a": judged(0.3, 0.02, rng, top), "b": judged(0.1, 0.02, rng, top)}
    said = Comparison(clear, "b", {"a": 1028}).sentence()
    assert said.startswith("Use a for this model: its LDS is 0.300 (")
    assert "50% of what could be reached, at 1,028 bytes a row; it beats the next, b, in 100.0% of the res" in said
    close = {"a": judged(0.3, 0.05, rng), "b": judged(0.29, 0.05, rng), "c": judged(0.0, 0.01, rng)}
    comparison = Comparison(close, "c", {"a": 2048, "b": 10})
    assert comparison.rivals() == ["b"]
    assert "the bank does not tell it from b, of which b takes 10 bytes a row." in comparison.sentence()
    assert Comparison({"a": judged(0.01, 0.02, rng)}, "a").sentence().startswith("No kernel predicts retraining here")
    assert "nothing else was compared" in Comparison({"a": judged(0.3, 0.02, rng)}, "a").sentence()


def test_scores_by_name_are_the_kernels_by_their_formulas():
    job = fits.torch_job()
    x, y = fits.float32(QUERIES)
    names = ["grad_dot", "grad_cos", "grad_asym_dot", "label", "pixels", "GD", "white_dot"]
    found = scores(job, x, y, names, lambda x, y, kernel: np.full((M, N), 7.0))
    import gradindex

    keys = gradindex.exact_gradients(job, np.arange(N))
    asked = gradindex.exact_gradients(gradindex.Job(job.model, job.loss_fn, (x, y)), np.arange(M))
    dots = asked.astype(np.float64) @ keys.T
    lengths = np.linalg.norm(keys, axis=1)
    np.testing.assert_allclose(found["grad_dot"], dots, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["GD"], dots, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["grad_asym_dot"], dots / lengths**2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["grad_cos"], dots / lengths / np.linalg.norm(asked, axis=1)[:, None], atol=1e-5)
    assert (found["label"] == (y[:, None] == TRAIN[1])).all() and (found["white_dot"] == 7).all()
    assert list(found) == names
    for wrong, said in ((["grads"], "Unknown kernel 'grads'"), (["white_cos"], "give one that was whitened")):
        with pytest.raises(ValueError, match=said):
            scores(job, x, y, wrong)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    x, y = fits.float32(QUERIES)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    asked = ["evaluate", "tests.evaluation.bank_fits:torch_job", "--fit", "tests.evaluation.bank_fits:torch_model"]
    asked += ["--rows", str(tmp_path / "rows.npz"), "--bank", str(tmp_path / "bank"), "--subsets", "6", "--models", "2"]
    asked += ["--kernels", "grad_dot,grad_cos,label,pixels"]
    removal = ["--tests", "lds,removal", "--remove", "3", "--removal-queries", "2"]
    picture = tmp_path / "c.png"
    assert run([*asked, *removal, "--out", str(tmp_path / "r.json"), "--chart", str(picture)]) == 0
    text = capsys.readouterr().out
    saved = json.loads((tmp_path / "r.json").read_text())
    assert text.rstrip().splitlines()[-1] == saved["sentence"]
    assert {"grad_dot", "pixels", "ceiling", "random", "flipped"} <= set(text.split())
    assert set(saved["kernels"]) == {"grad_dot", "grad_cos", "label", "pixels"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    models = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "bank").rglob("*.json")}
    assert run([*asked, "--tests", "lds", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["kernels"] == saved["kernels"] and again["removal"] is None
    assert models == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "bank").rglob("*.json")}
    for wrong, said in (
        (["--tests", "lds,class"], "run by themselves"),
        (["--tests", "lds", "--fit", "tests.evaluation.bank_fits:nothing"], "there is no function"),
        (["--tests", "lds", "--fit", "tests.evaluation.nothing:fit"], "There is no module"),
    ):
        assert run([*asked, *wrong]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert run([*asked[:2], "--tests", "lds"]) == 2
    assert "need --fit" in " ".join(capsys.readouterr().err.split())
    assert run([*asked, "--tests", "lds", "--subsets", "7"]) == 1
    assert "other numbers of subsets (6, not 7)" in " ".join(capsys.readouterr().err.split())


def test_the_command_takes_the_scores_of_an_indexs_rows(tmp_path, capsys, monkeypatch):
    """`white_dot` and `white_cos` are what the index says; an index without such scores is refused."""
    from types import SimpleNamespace

    import gradindex.loading

    x, y = fits.float32(QUERIES)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    asked = ["evaluate", "tests.evaluation.bank_fits:torch_job", "--fit", "tests.evaluation.bank_fits:torch_model"]
    asked += ["--rows", str(tmp_path / "rows.npz"), "--bank", str(tmp_path / "bank"), "--subsets", "5", "--models", "1"]
    asked += ["--tests", "lds", "--kernels", "white_cos", "--json"]
    calls = []

    def of_rows(x, y, kernel):
        calls.append(kernel)
        return np.outer(y, np.arange(N))

    monkeypatch.setattr(gradindex.loading, "load", lambda path, job: SimpleNamespace(scores=of_rows))
    assert run([*asked, "--index-path", "runs/index"]) == 0
    found = json.loads(capsys.readouterr().out)["kernels"]["white_cos"]
    assert calls == ["white_cos"]
    assert found["constant"] == (QUERIES[1] == 0).sum()  # whose scores are all 0
    assert run(asked) == 1
    assert "give one that was whitened" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(gradindex.loading, "load", lambda path, job: SimpleNamespace())
    assert run([*asked, "--index-path", "runs/index"]) == 2
    assert "it holds no whitened rows" in " ".join(capsys.readouterr().err.split())
