"""Mislabelled samples from an index alone: rankings against naive ones, the command, the picture's numbers."""

import json

import numpy as np
import pytest
import typer
from sklearn.metrics import roc_auc_score
from torch import nn
from typer.testing import CliRunner

import gradindex
from gradindex.cli.influence import self_influence as command
from gradindex.influence import label_disagreement
from gradindex.influence.labels import self_influence
from tests.jobs import digits, trained


@pytest.fixture(scope="module")
def flipped():
    """Digits of which every tenth has another label."""
    x, y = digits()
    wrong = np.arange(len(y)) % 10 == 3
    return x, np.where(wrong, (y + 1) % 10, y), wrong


@pytest.fixture(scope="module")
def index(flipped, tmp_path_factory):
    x, y, _ = flipped
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), (x, y))
    return gradindex.build(job, tmp_path_factory.mktemp("flipped") / "index", shard_rows=100)


def naive_disagreement(index, y, k, opponents):
    rows = index.store.gather(np.arange(len(y)))
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf if not opponents else 0)
    near = np.argsort(-(np.abs(cosines) if opponents else cosines), axis=1)[:, :k]
    return np.mean(y[near] != y[:, None], axis=1)


@pytest.mark.parametrize("opponents", [True, False])
@pytest.mark.parametrize("k", [1, 7])
def test_disagreement_is_the_share_of_neighbours_with_another_label(index, flipped, k, opponents):
    _, y, _ = flipped
    found = label_disagreement(index, k, opponents=opponents)
    np.testing.assert_allclose(found, naive_disagreement(index, y, k, opponents), atol=1e-12)
    given = label_disagreement(index, k, opponents=opponents, labels=np.eye(10)[y])
    np.testing.assert_array_equal(given, found)


def test_changed_labels_stand_out(index, flipped):
    _, _, wrong = flipped
    assert roc_auc_score(wrong, self_influence(index.store)) > 0.95
    assert roc_auc_score(wrong, label_disagreement(index)) > 0.8
    values, ids = index.self_influence(len(wrong))
    np.testing.assert_allclose(self_influence(index.store)[ids], values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be an integer between 1 and 239, got 0"),
        ({"k": 240}, "k must be an integer between 1 and 239, got 240"),
        ({"k": 2.0}, "k must be an integer between 1 and 239, got 2.0"),
        ({"labels": [1, 2]}, r"Expected labels of shape \(240,\), got \(2,\)"),
    ],
)
def test_bad_options_are_refused(index, options, message):
    with pytest.raises(ValueError, match=message):
        label_disagreement(index, **options)


def test_a_store_without_labels_asks_for_them(tmp_path):
    from gradindex.influence import UnsupervisedJob

    model = nn.Linear(64, 64)
    index = gradindex.build(UnsupervisedJob(model, nn.functional.mse_loss, digits()[0][:20]), tmp_path / "index")
    with pytest.raises(ValueError, match="The store holds no labels: give them"):
        label_disagreement(index, 3)


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.command("self-influence")(command)

    def call(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    return call


def test_the_command_prints_the_ranking_of_the_store(index, flipped, invoke, tmp_path):
    _, y, _ = flipped
    values, ids = index.self_influence(5)
    found = json.loads(invoke(index.store.path, "--top", 5, "--json"))
    assert [line["id"] for line in found] == ids.tolist()
    assert [line["label"] for line in found] == y[ids].tolist()
    np.testing.assert_allclose([line["self_influence"] for line in found], values)
    np.testing.assert_allclose([line["loss"] for line in found], index.store.columns["loss"][ids])
    text = invoke(index.store.path, "--top", 1000, "--plot", tmp_path / "plot.png")
    assert "the first 240 of 240 samples" in text
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert str(ids[0]) in text
