"""Exact values by every method, against the plain loop; many queries in bounded memory."""

import tracemalloc

import numpy as np
import pytest
import torch

import gradindex
from gradindex.compute import exact
from gradindex.data.source import Batch
from gradindex.gradients.engine import Engine
from tests import oracles
from tests.jobs import ROWS, digits, digits_job


@pytest.fixture(params=["pytorch", "tensorflow"])
def kit(request):
    return oracles.kit(request.param)


def case(kit, rows=40, asked=6):
    x, y, queries, labels = oracles.digits()
    model = kit.cnn()
    job = gradindex.Job(model, kit.loss, (kit.images(x[:rows]), y[:rows]))
    batch = Batch(np.arange(asked), kit.images(queries[:asked]), labels[:asked])
    train = kit.gradients(model, kit.loss, kit.images(x[:rows]), y[:rows])
    return job, batch, train, kit.gradients(model, kit.loss, batch.x, batch.y)


def test_double_backward_is_the_inner_product(kit):
    job, _, train, asked = case(kit)
    some = job.source.take(np.arange(9))
    for query in asked[:2]:
        dots, losses = job.engine.directional_twice(some.x, some.y, query.astype(np.float32))
        scale = np.linalg.norm(query) * np.linalg.norm(train[:9], axis=1)
        assert (np.abs(dots - train[:9] @ query) <= 1e-5 * scale).all()
        np.testing.assert_allclose(losses, job.engine.directional(some.x, some.y, query)[1], rtol=1e-5)


@pytest.mark.parametrize("missing", [(), ("directional",), ("directional", "double backward")])
def test_candidates_by_whatever_way_the_model_allows(kit, monkeypatch, missing):
    monkeypatch.setattr(exact, "_SMALL", 0)
    job, batch, train, asked = case(kit)
    gradients = job.engine.gradients(batch.x, batch.y).gradients

    def fails(*args):
        raise NotImplementedError("no such derivative")

    if "directional" in missing:
        monkeypatch.setattr(type(job.engine), "directional", fails)
    if "double backward" in missing:
        monkeypatch.setattr(type(job.engine), "directional_twice", fails)
    candidates = np.array([[3, -1, 7], [11, 30, 39]])
    two = batch.select(slice(0, 2))
    found = exact.candidate_dots(job.engine, job.source, two, gradients[:2], candidates)
    expected = ["forward mode", "double backward", "factors"][len(missing)]
    assert found.method == expected
    want = np.take_along_axis(asked[:2] @ train.T, np.maximum(candidates, 0), 1)
    there = candidates >= 0
    assert (found.dots[~there] == -np.inf).all()
    assert np.abs(found.dots[there] - want[there]).max() <= 1e-5 * np.abs(asked @ train.T).max()
    assert sorted(found.losses) == [3, 7, 11, 30, 39]
    shared = exact.candidate_dots(job.engine, job.source, batch, gradients, np.tile(np.arange(8), (6, 1)))
    assert shared.method == "factors"
    assert np.abs(shared.dots - asked @ train[:8].T).max() <= 1e-5 * np.abs(asked @ train.T).max()


def test_small_models_form_the_gradients_of_layers_with_many_positions(kit):
    job, batch, train, asked = case(kit)
    gradients = job.engine.gradients(batch.x, batch.y).gradients
    found = exact.candidate_dots(job.engine, job.source, batch, gradients, np.tile(np.arange(8), (6, 1)))
    assert found.method == "formed gradients"
    assert np.abs(found.dots - asked @ train[:8].T).max() <= 1e-5 * np.abs(asked @ train.T).max()


@pytest.mark.parametrize("small", [0, 1 << 16])
def test_a_scan_is_all_inner_products_and_norms(kit, monkeypatch, small):
    monkeypatch.setattr(exact, "_SMALL", small)
    job, batch, train, asked = case(kit)
    gradients = job.engine.gradients(batch.x, batch.y).gradients
    dots, norms = np.empty((6, 40)), np.empty(40)
    for part, found, train_norms in exact.scan(job.engine, job.source, batch, gradients, 16):
        dots[:, part.ids], norms[part.ids] = found, train_norms
    assert np.abs(dots - asked @ train.T).max() <= 1e-5 * np.abs(asked @ train.T).max()
    np.testing.assert_allclose(norms, np.linalg.norm(train, axis=1), rtol=1e-4)


def test_the_method_is_in_the_result(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i")
    x, y = digits()
    assert index.explain(x[:1], y[:1], k=3).meta["params"]["exact_method"] == "forward mode"
    assert index.explain(x[:50], y[:50], k=3).meta["params"]["exact_method"] == "factors"
    pair = index.explain(x[:2], y[:2], k=3, rerank=5)  # which share no candidate
    assert pair.meta["params"]["exact_method"] == "factors"
    for i in range(2):
        alone = index.explain(x[i], y[i : i + 1], k=3, rerank=5)
        assert alone.meta["params"]["exact_method"] == "forward mode"
        np.testing.assert_allclose(pair.scores[i], alone.scores[0], atol=1e-6)
    assert index.explain(x[:1], y[:1], k=3, rerank=0).meta["params"]["exact_method"] == "none"
    assert index.explain(x[:1], y[:1], k=3, certify=True).meta["params"]["exact_method"] == "factors"


def test_ten_thousand_queries_at_once_in_bounded_memory(tmp_path):
    """Working memory is that of a chunk of queries, not of all: for 10,000 no more than for 1,000."""
    index = gradindex.build(digits_job(), tmp_path / "i", index="Fold256,IVF8,SQ8")
    x, y = digits()
    peaks = []
    for count in (1_000, 10_000):
        some = np.arange(count) % ROWS
        tracemalloc.start()
        found = index.explain(x[some], y[some], k=5, rerank=10)
        peaks.append(tracemalloc.get_traced_memory()[1] - sum(np.asarray(v).nbytes for v in found.data.values()))
        tracemalloc.stop()
        np.testing.assert_array_equal(found.ordered_indices[:, 0], found.ordered_indices[some, 0])
    assert peaks[1] < 1.5 * peaks[0] + 40 * 10_000 * 64  # and the queries themselves


def test_without_an_index_no_gradient_is_kept(kit, monkeypatch):
    """GradientSimilarity without precomputed gradients forms none of the training set, and memory follows k."""
    job, batch, train, asked = case(kit)
    formed = []
    gradients = Engine.gradients
    monkeypatch.setattr(Engine, "gradients", lambda self, x, y: formed.append(len(x)) or gradients(self, x, y))
    monkeypatch.setattr(exact, "_SMALL", 0)
    x, y = job.source.x, job.source.y
    explainer = kit.explainer(job.model, kit.loss, "grad_cos").fit(x, y)
    found = explainer.explain(batch.x, batch.y, k=4)
    assert not formed  # the few queries' gradients are training steps'
    assert explainer.grad_X_train is None
    cosines = oracles.kernel("grad_cos", asked, train, eps=0)
    np.testing.assert_allclose(found.scores, -np.sort(-cosines, axis=1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(found.opponent_scores, np.sort(cosines, axis=1)[:, :4], atol=1e-5)
    assert found.ordered_indices.base is None or found.ordered_indices.base.shape[1] == 4


class Words(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = torch.nn.Embedding(rows, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.words(x)).mean(1))


@pytest.mark.parametrize("length", [6, 200])  # of which the latter is formed for some
def test_queries_keep_of_a_table_what_they_looked_up(length):
    random = np.random.default_rng(0)
    rows = 5000
    x, y = random.integers(0, rows, (30, length)), random.integers(0, 3, 30)
    x[:, 0] = 7  # of all samples
    job = gradindex.Job(Words(rows), torch.nn.CrossEntropyLoss(), (x, y))
    found = job.engine.gradients(x, y)
    held = exact.HeldQueries(job.engine, Batch(np.arange(5), x[:5], y[:5]), together=True)
    assert held.slim
    tracemalloc.start()
    dots, _ = held.dots(Batch(np.arange(30), x, y))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    norms = np.linalg.norm(found.gradients, axis=1)
    assert (np.abs(dots - found.gradients[:5] @ found.gradients.T) <= 1e-6 * norms[:5, None] * norms).all()
    assert peak < rows * 4 * 4 * 30 / 4  # a quarter of the gradients formed
