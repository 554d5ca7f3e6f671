"""The three tests on cases whose outcome is known."""

import copy
import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from torch import nn

from gradindex import evaluation
from gradindex.cli.app import run
from gradindex.evaluation import Result, criteria
from gradindex.evaluation.randomize import randomized
from tests.evaluation.jobs import blobs, experiment, fit


def test_a_metric_that_ignores_the_model_fails_randomization():
    result = evaluation.model_randomization(experiment(), ["l2-x", "cos-x", "dot-x", "GC"], repeats=2)
    for name in ("l2-x", "cos-x", "dot-x"):
        assert result.values["randomization"][name] == pytest.approx([1.0, 1.0])
    assert all(abs(value) < 0.6 for value in result.values["randomization"]["GC"])


def test_separated_classes_pass_and_the_index_agrees():
    names = ["l2-x", "cos-last", "GC", "GD", "cos-FK"]
    result = evaluation.identical_class(experiment(), names, repeats=2, k=5, through_index=True)
    assert result.values["class"]["l2-x"] == [1.0, 1.0]
    assert result.values["top-5 class"]["GC"] == [1.0, 1.0]
    assert "l2-x" not in result.values["class (index)"]
    for name in ("cos-last", "GC", "GD"):
        assert result.values["class (index)"][name] == pytest.approx(result.values["class"][name], abs=0.02)


def test_a_subclass_leak_is_caught():
    """A model that throws away all but the merged class has hidden layers that cannot tell subclasses."""

    class Collapsed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner, self.out = model, nn.Linear(2, 2)

        def forward(self, x):
            return self.out(nn.functional.one_hot(self.inner(x).argmax(1), 2).to(x.dtype))

    def collapse(x, y, classes, seed):
        model = Collapsed(fit(x, y, classes, seed))
        model.out.weight.data, model.out.bias.data = 5 * nn.init.eye_(model.out.weight.data), 0 * model.out.bias.data
        return model

    honest = experiment()
    leaky = evaluation.Experiment(collapse, honest.loss_fn, honest.data, queries=60)
    found = evaluation.identical_subclass(leaky, ["l2-x", "l2-last"], repeats=3, k=3)
    assert found.mean("subclass", "l2-x") == 1.0
    assert 0.2 < found.mean("subclass", "l2-last") < 0.8  # chance is one half
    assert found.mean("top-3 subclass", "l2-last") < found.mean("subclass", "l2-last") + 1e-9


def test_only_correct_predictions_are_asked_about():
    def wrong(x, y, classes, seed):
        return fit(x, 1 - y, classes, seed)

    base = experiment()
    with pytest.raises(ValueError, match="no test sample correctly"):
        evaluation.identical_subclass(evaluation.Experiment(wrong, base.loss_fn, base.data), ["l2-x"], repeats=1)


def test_criteria_by_hand():
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])
    classes, wanted = np.array([0, 0, 1]), np.array([0, 1])
    assert criteria.passes(scores, classes, wanted).tolist() == [True, False]
    assert criteria.passes(scores, classes, wanted, 3).tolist() == [False, False]
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (4, 30)).astype(float), rng.standard_normal((4, 30))
    want = np.mean([spearmanr(p, q).statistic for p, q in zip(a, b, strict=True)])
    assert criteria.rank_correlation(a, b) == pytest.approx(want)
    assert criteria.rank_correlation(np.ones((1, 5)), b[:1, :5]) == 0
    assert criteria.rank_correlation(np.ones((1, 5)), 2 * np.ones((1, 5))) == 1
    with pytest.raises(ValueError, match="k must be between 1 and the 3"):
        criteria.passes(scores, classes, wanted, 4)
    with pytest.raises(ValueError, match="NaN"):
        criteria.passes(np.full((1, 3), np.nan), classes, wanted[:1])


def test_classes_are_merged_into_two_halves():
    y = np.array([7, 3, 5, 9, 3, 7])
    merged, mapping = criteria.merge_classes(y, 0)
    assert sorted(mapping.values()) == [0, 0, 1, 1]
    assert merged.tolist() == [mapping[int(one)] for one in y]
    assert len({tuple(criteria.merge_classes(y, seed)[0]) for seed in range(20)}) > 2
    with pytest.raises(ValueError, match="needs at least 3"):
        criteria.merge_classes(np.array([0, 1]), 0)


def test_randomized_leaves_the_model_alone_and_cascades():
    x, y = blobs()
    model = fit(x, y, 4, 0)
    before = copy.deepcopy(model.state_dict())
    whole, top = randomized(model, 3), randomized(model, 3, top=1)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert not (whole[0].weight == model[0].weight).any()
    assert (top[0].weight == model[0].weight).all()
    assert not (top[2].weight == model[2].weight).any()
    assert (randomized(model, 3)[0].weight == whole[0].weight).all()

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(before["0.bias"])

    with pytest.raises(ValueError, match=r"no reset_parameters\(\)"):
        randomized(Own(), 0)


def test_keras_models_are_randomized_too():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(4)])
    before = model.get_weights()
    whole, top, again = randomized(model, 1), randomized(model, 1, top=1), randomized(model, 1)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not (whole.get_weights()[0] == before[0]).any()
    np.testing.assert_array_equal(top.get_weights()[0], before[0])
    assert not (top.get_weights()[2] == before[2]).any()
    np.testing.assert_array_equal(whole.get_weights()[0], again.get_weights()[0])


def test_results_go_to_json_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    result = evaluation.evaluate(experiment(), ["l2-x", "GC", "FK"], repeats=2)
    back = Result.from_json(result.to_json(tmp_path / "r.json"))
    assert back == result
    saved = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert saved["meta"]["seeds"] == [0, 1]
    assert saved["meta"]["versions"]["gradindex"]
    assert "eigendecomposition" in saved["meta"]["solvers"]["FK"]
    assert saved["summary"]["class"]["GC"]["mean"] == pytest.approx(np.mean(result.values["class"]["GC"]))
    result.chart().savefig(tmp_path / "c.png")
    again = evaluation.evaluate(experiment(), ["l2-x", "GC", "FK"], repeats=2)
    assert again.values == result.values


def test_the_command(tmp_path, capsys):
    asked = "evaluate tests.evaluation.jobs:experiment --metrics l2-x,GC --tests class,subclass --repeats 1"
    code = run(f"{asked} --out {tmp_path}/r.json --chart {tmp_path}/c.png".split())
    text = capsys.readouterr().out
    assert code == 0
    assert "top-10 subclass" in text
    assert "GC" in text
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    x, y = blobs(50, seed=9)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    asked = ["evaluate", "tests.evaluation.jobs:job", "--metrics", "GC", "--rows", str(tmp_path / "rows.npz"), "--json"]
    assert run(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["class"]["GC"]["mean"] > 0.9
    assert run([*asked, "--tests", "subclass"]) == 1
    assert "a Job cannot" in capsys.readouterr().err
    assert run(asked[:4]) == 2


@pytest.fixture
def asked(tmp_path, capsys):
    """Return a function that evaluates a trained model by the command, with options, and reads its JSON."""
    x, y = blobs(40, seed=9)
    np.savez(tmp_path / "rows.npz", x=x, y=y)

    def ask(options):
        command = f"evaluate tests.evaluation.jobs:job --rows {tmp_path}/rows.npz -k 20 --json {options}"
        assert run(command.split()) == 0
        return Result.from_json(capsys.readouterr().out)

    return ask


def test_the_commands_damping(asked):
    """Damping far above the Hessian makes IF the inner product of gradients, over a number."""
    plain = asked("--tests class --metrics GD,IF --damping study")
    damped = asked("--tests class --metrics GD,IF --damping 1e6")
    assert damped.values["top-20 class"]["IF"] == damped.values["top-20 class"]["GD"]
    assert plain.values["top-20 class"]["IF"] != plain.values["top-20 class"]["GD"]
    assert (plain.meta["options"]["damping"], damped.meta["options"]["damping"]) == ("study", 1e6)


def test_the_commands_solver(asked, capsys):
    exact = asked("--tests class --metrics IF --damping 0.1 --solver exact")
    minres = asked("--tests class --metrics IF --damping 0.1 --solver minres")
    assert "eigendecomposition" in exact.meta["solvers"]["IF"]
    assert minres.meta["solvers"]["IF"].startswith("MINRES")
    assert minres.values == exact.values
    assert run(["evaluate", "tests.evaluation.jobs:experiment", "--metrics", "IF", "--solver", "lu"]) == 1
    assert "Unknown solver 'lu'. Expected one of" in " ".join(capsys.readouterr().err.split())


def test_the_commands_top(asked):
    """Randomizing the output layer alone leaves the hidden layer, so its ranking, as it was."""
    top, every = (asked(f"--tests randomization --metrics cos-last,cos-x{more}") for more in (" --top 1", ""))
    assert top.values["randomization"]["cos-last"] == pytest.approx([1.0])
    assert every.values["randomization"]["cos-last"][0] < 0.99
    assert (top.meta["randomized_layers"], every.meta["randomized_layers"]) == (1, "all")


def test_bad_options_are_refused():
    base = experiment()
    with pytest.raises(ValueError, match="Unknown test 'classes'"):
        evaluation.evaluate(base, ["GC"], ["classes"])
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        evaluation.evaluate(base, ["GC"], repeats=0)
    with pytest.raises(ValueError, match=r"train_size 1\.0 is not a part"):
        evaluation.Experiment(fit, base.loss_fn, base.data, train_size=1.0)
    with pytest.raises(ValueError, match=r"Y must be classes \(n,\)"):
        evaluation.Experiment(fit, base.loss_fn, (base.data[0], base.data[0]))
