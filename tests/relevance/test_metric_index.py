"""Indexes over a metric's rows: their answers are those of the exact metric."""

import json

import numpy as np
import pytest

import gradindex
from gradindex import relevance
from gradindex.cli.app import run
from tests.jobs import digits, digits_job
from tests.relevance.test_metrics import QY, Q, X, torch_job

INDEXED = [name for name in relevance.METRICS if relevance.parse(name)[0] != "l2"]


@pytest.mark.parametrize("name", [*INDEXED, "RIF"])
def test_explain_is_the_exact_metric(tmp_path, name):
    job = torch_job()
    index = gradindex.build(job, tmp_path / "i", metric=name, metric_options={"damping": 0.05})
    metric = relevance.metric(name, job, damping=0.05)
    scores = metric.scores(Q, QY)
    found = index.explain(Q, QY, k=5)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :5], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.take_along_axis(scores, found.ordered_indices, 1), found.scores, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.opponent_scores, np.sort(scores, axis=1)[:, :5], rtol=1e-5, atol=1e-9)
    assert found.exact.all()
    audit = index.verify(queries=20, k=3)
    assert audit.recall == 1.0
    shown = {"GC": "grad_cos", "GD": "grad_dot", "RIF": "cos-IF"}.get(name, name)
    assert audit.kernel == found.meta["params"]["kernel"] == shown


@pytest.mark.parametrize("name", ["cos-last", "IF", "cos-FK"])
def test_the_store_records_the_metric(tmp_path, name):
    job = torch_job()
    gradindex.build(job, tmp_path / "i", metric=name, metric_options={"damping": 0.05})
    index = gradindex.load(tmp_path / "i", torch_job())
    assert index.store.header.metric == {"name": name, "damping": 0.05}
    scores = relevance.metric(name, job, damping=0.05).scores(Q)
    np.testing.assert_allclose(index.explain(Q, k=4).scores, -np.sort(-scores, axis=1)[:, :4], rtol=1e-5)
    with pytest.raises(gradindex.MismatchError, match="was built from something else"):
        gradindex.load(tmp_path / "i", torch_job(hidden=4))
    other = torch_job()
    other.model[0].weight.data += 1
    with pytest.raises(gradindex.MismatchError, match="has other values"):
        gradindex.load(tmp_path / "i", other)


def test_gradient_kernels_have_no_meaning_for_other_rows(tmp_path):
    index = gradindex.build(torch_job(), tmp_path / "i", metric="cos-last")
    for ask in (lambda: index.explain(Q, k=3, kernel="grad_dot"), lambda: index.verify(kernel="grad_dot", k=3)):
        with pytest.raises(ValueError, match="rows of the metric 'cos-last', no gradients, so the kernel 'grad_dot'"):
            ask()
    assert index.explain(Q, k=3, kernel="cos-last").meta["params"]["kernel"] == "cos-last"
    both = gradindex.build(torch_job(), tmp_path / "g", metric="GD")  # gradients: all kernels have their meaning
    np.testing.assert_array_equal(both.explain(Q, k=3).scores, both.explain(Q, k=3, kernel="grad_dot").scores)
    assert both.explain(Q, k=3, kernel="grad_cos").scores.max() <= 1


def test_certified_answers(tmp_path):
    job = torch_job()
    sketch = gradindex.Landmark(landmarks=8, dims=4)
    for name in ("cos-x", "IF"):
        index = gradindex.build(job, tmp_path / name, metric=name, metric_options={"damping": 0.05}, sketch=sketch)
        found = index.explain(Q, QY, k=5, certify=True)
        assert found.proved.all()
        scores = relevance.metric(name, job, damping=0.05).scores(Q, QY)
        np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :5], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("cos-FK", {"damping": 0.05}), ("IF", {"solver": "minres", "damping": 5.0})],
)
def test_wide_rows_are_sketched(tmp_path, name, options):
    index = gradindex.build(digits_job(), tmp_path / "wide", metric=name, metric_options=options)
    assert index.store.header.sketch["kind"] == "countsketch"
    assert gradindex.build(digits_job(), tmp_path / "x", metric="cos-x").store.header.dim == 64
    x, _ = digits()
    scores = relevance.metric(name, digits_job(), **options).scores(x[:5])
    found = index.explain(x[:5], k=3)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :3], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "l2-x"}, "no inner product"),
        ({"metric": "l2-grad"}, "Use 'GC'"),
        ({"metric": "cosine"}, "Unknown metric 'cosine'"),
        ({"metric": "cos-x", "metric_options": {"depth": 3}}, "no option 'depth'"),
        ({"metric": "cos-FK", "metric_options": {"damping": -1}}, "damping must be"),
        ({"metric_options": {"damping": 1}}, "give metric="),
    ],
)
def test_bad_metrics(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        gradindex.build(torch_job(), tmp_path / "i", **options)
    assert not (tmp_path / "i").exists()


def test_checkpoints_and_a_metric_exclude_each_other():
    job = torch_job()
    with pytest.raises(ValueError, match="either checkpoints or a metric"):
        gradindex.Job(job.model, job.loss_fn, job.dataset, metric={"name": "cos-x"}, checkpoints=[({}, 0.1)])


def test_keras_rows(tmp_path):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(3)])
    job = gradindex.Job(
        model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), (X.astype("f4"), QY[[0] * 40])
    )
    for name in ("cos-last", "cos-FK"):
        index = gradindex.build(job, tmp_path / name, metric=name, metric_options={"damping": 0.05})
        scores = relevance.metric(name, job, damping=0.05).scores(Q.astype("f4"), QY)
        found = index.explain(Q.astype("f4"), QY, k=5).scores
        np.testing.assert_allclose(found, -np.sort(-scores, axis=1)[:, :5], rtol=1e-4)


def test_another_metric_is_another_index(tmp_path):
    gradindex.build(torch_job(), tmp_path / "i", metric="cos-x")
    with pytest.raises(FileExistsError, match="already holds"):
        gradindex.build(torch_job(), tmp_path / "i", metric="cos-x")
    with pytest.raises(gradindex.MismatchError, match="metric is"):
        gradindex.build(torch_job(), tmp_path / "i", metric="dot-x")


def test_repair(tmp_path):
    job = torch_job()
    index = gradindex.build(job, tmp_path / "i", metric="cos-last")
    before = index.store.gather(np.arange(len(index)))
    rows = next((tmp_path / "i" / "shards").glob("*.sketch.npy"), None) or next(
        (tmp_path / "i" / "shards").glob("*.npy")
    )
    rows.write_bytes(rows.read_bytes()[:-8])
    assert gradindex.repair(tmp_path / "i", job).shards == ("0",)
    np.testing.assert_array_equal(gradindex.load(tmp_path / "i").store.gather(np.arange(len(index))), before)


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "i")
    assert run(["build", "tests.jobs:digits_job", out, "--metric", "cos-FK", "--metric-option", "damping=0.01"]) == 0
    assert run(["info", out]) == 0
    shown = capsys.readouterr().out
    assert "cos-FK (damping 0.01)" in shown and "with zero row" in shown
    assert run(["info", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == {"name": "cos-FK", "damping": 0.01}
    assert run(["explain", out, "tests.jobs:digits_job", "--ids", "3", "-k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["meta"]["params"]["kernel"] == "cos-FK"
    assert run(["explain", out, "tests.jobs:digits_job", "--ids", "3", "--kernel", "grad_dot"]) == 1
    assert "has no meaning" in capsys.readouterr().err
    assert run(["verify", out, "tests.jobs:digits_job", "--queries", "5", "-k", "3", "--min-recall", "0.9"]) == 0
    assert "exact cos-FK" in capsys.readouterr().out
    assert run(["build", "tests.jobs:digits_job", out + "2", "--metric", "l2-x"]) == 1
    assert "no inner product" in capsys.readouterr().err
    assert run(["build", "tests.jobs:digits_job", out + "2", "--metric", "cos-x", "--metric-option", "layers"]) == 2


def test_samples_are_added_only_where_rows_do_not_depend_on_the_others(tmp_path):
    job = torch_job()
    index = gradindex.build(job, tmp_path / "x", metric="cos-last")
    assert index.add((X[:3], QY[:3])).tolist() == [40, 41, 42]
    index = gradindex.build(job, tmp_path / "fk", metric="cos-FK", metric_options={"damping": 0.05})
    with pytest.raises(ValueError, match="carry a matrix of all training samples"):
        index.add((X[:3], QY[:3]))
