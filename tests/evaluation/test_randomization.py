"""The model randomization test in its two forms, against loops over queries and samples."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from gradindex import evaluation
from gradindex.cli.app import run
from gradindex.evaluation import criteria
from tests.evaluation.jobs import blobs, fit

FAR = 1_000_003  # what `evaluate` adds to a repeat's seed for the random model


def fresh(classes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, classes))
        nn.init.normal_(model[0].weight)  # other weights than torch's own initialisation of a copy
        return model


def overlapping():
    """Clusters that overlap, so that the trained model is wrong about some."""
    x, y = blobs()
    return x + np.random.default_rng(1).normal(0, 2.5, x.shape).astype(np.float32), y


def overlapping_experiment():
    return evaluation.Experiment(
        fit, nn.functional.cross_entropy, overlapping(), queries=12, train_size=40, fresh=fresh
    )


def gradient(model, x, y):
    loss = nn.functional.cross_entropy(model(torch.as_tensor(x)[None]), torch.tensor([int(y)]))
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]).numpy()


def predicted(model, x):
    with torch.no_grad():
        return [int(model(torch.as_tensor(one)[None]).argmax()) for one in x]


def cosines(model, x, y, train_x, train_y):
    train = [gradient(model, *one) for one in zip(train_x, train_y, strict=True)]
    rows = []
    for one in zip(x, y, strict=True):
        g = gradient(model, *one)
        rows.append([g @ other / np.linalg.norm(g) / np.linalg.norm(other) for other in train])
    return np.array(rows)


@pytest.fixture(scope="module")
def loop():
    """Return the two forms for GC, seed 3: rank correlations, query after query."""
    made = overlapping_experiment()
    split = made.split(3)
    chosen = np.random.default_rng(3).permutation(len(split.x_test))[:12]
    x, train = split.x_test[chosen], (split.x_train, split.y_train)
    trained, random = fit(*train, 4, 3), fresh(4, 3 + FAR)
    trained_labels, random_labels = predicted(trained, x), predicted(random, x)
    assert trained_labels != random_labels
    assert (trained_labels != split.y_test[chosen]).any()
    ours = cosines(trained, x, trained_labels, *train)
    forms = {"own": random_labels, "fixed": trained_labels}
    theirs = {form: cosines(random, x, labels, *train) for form, labels in forms.items()}
    found = {
        form: np.mean([spearmanr(a, b).statistic for a, b in zip(ours, rows, strict=True)])
        for form, rows in theirs.items()
    }
    assert abs(found["own"] - found["fixed"]) > 0.3
    return found


def values(**options):
    return evaluation.model_randomization(overlapping_experiment(), ["GC", "l2-x"], repeats=1, seed=3, **options).values


def test_own_labels_are_the_random_models_predictions(loop):
    found = values()
    assert found["randomization"]["GC"] == pytest.approx([loop["own"]], abs=1e-5)
    assert found == values(labels="own")
    assert list(found) == ["randomization"]


def test_fixed_labels_are_the_trained_models_predictions(loop):
    found = values(labels="fixed")
    assert list(found) == ["randomization (fixed)"]
    assert found["randomization (fixed)"]["GC"] == pytest.approx([loop["fixed"]], abs=1e-5)
    assert found["randomization (fixed)"]["l2-x"] == pytest.approx([1.0])


def test_both_forms_in_one_run(loop):
    both = values(labels="both")
    assert both == values(labels="own") | values(labels="fixed")
    with pytest.raises(ValueError, match=r"Unknown labels 'given'\. Expected one of: 'own'"):
        values(labels="given")


def test_metrics_without_labels_are_the_same_in_both_forms():
    result = evaluation.model_randomization(overlapping_experiment(), ["cos-last", "cos-x"], repeats=1, labels="both")
    assert result.values["randomization"] == result.values["randomization (fixed)"]
    assert result.values["randomization"]["cos-last"][0] < 0.99


def test_the_command_takes_labels(tmp_path, capsys):
    x, y = blobs(40, seed=9)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    asked = f"evaluate tests.evaluation.jobs:job --rows {tmp_path}/rows.npz --metrics GC --tests class,randomization"
    found = {}
    for labels in ("own", "fixed", "both"):
        assert run(f"{asked} --labels {labels} --json".split()) == 0
        found[labels] = json.loads(capsys.readouterr().out)
        assert found[labels]["meta"]["labels"] == labels
    assert "randomization (fixed)" not in found["own"]["values"]
    assert found["both"]["values"] == found["own"]["values"] | found["fixed"]["values"]
    assert run(f"{asked} --labels mine".split()) == 1
    assert "Unknown labels 'mine'" in capsys.readouterr().err


def test_the_permuted_deviation_is_that_of_permutations():
    """Queries whose rankings are alike count as few: the deviation is far above that of independent queries."""
    random = np.random.default_rng(0)
    common, other = random.standard_normal(30), random.standard_normal(30)
    one = common + 0.3 * random.standard_normal((8, 30))
    two = other + 0.3 * random.standard_normal((8, 30))
    drawn = [criteria.rank_correlation(one, two[:, random.permutation(30)]) for _ in range(4000)]
    found = criteria.permuted_deviation(one, two)
    assert np.std(drawn) == pytest.approx(found, rel=0.04)
    assert abs(np.mean(drawn)) < 0.01
    assert found > 2 / np.sqrt(8 * 29)
    single = criteria.permuted_deviation(one[:1], two[:1])
    assert single == pytest.approx(1 / np.sqrt(29))
    assert criteria.permuted_deviation(np.ones((2, 5)), two[:2, :5]) == 0
