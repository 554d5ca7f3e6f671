"""EKFAC against formed matrices: exactly where it is exact, closely where it is not."""

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex import Job, relevance
from gradindex.evaluation.criteria import rank_correlation
from gradindex.relevance import curvature
from gradindex.relevance.base import Options
from tests.jobs import digits, digits_job

pytest.importorskip("curvlinops", reason="needs curvlinops: pip install 'gradindex[curvature]'")


def _job(model, x, y, loss=nn.functional.cross_entropy):
    return Job(model.double(), loss, (x, y))


def _blobs(seed=0, count=60, width=6):
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    return (random.normal(size=(3, width))[y] + random.normal(size=(count, width))).astype(np.float32), y


def _double_loss(output, y):
    return 2 * nn.functional.cross_entropy(output, y)


@pytest.mark.parametrize("damping", [1e-2, 0.3])
def test_one_input_makes_a_kronecker_product(damping):
    # All samples share their input, so the Hessian of logistic regression is (mean diag p - p pT) ⊗ x xT.
    torch.manual_seed(0)
    x = np.tile(np.random.default_rng(0).normal(size=(1, 5)), (8, 1))
    job = _job(nn.Linear(5, 3), x, np.arange(8) % 3)
    exact = curvature.hessian(job, Options(damping=damping, solver="exact"))
    found = curvature.hessian(job, Options(damping=damping, solver="ekfac"))
    rows = np.random.default_rng(1).normal(size=(4, job.engine.size))
    np.testing.assert_allclose(found.apply(rows), exact.apply(rows), rtol=1e-6)
    np.testing.assert_allclose(found.root(rows), exact.root(rows), rtol=1e-6)
    assert found.solver.startswith("EKFAC of the Gauss-Newton matrix (curvlinops")
    assert exact.solver == "eigendecomposition of the Hessian"


def test_root_is_half_of_apply():
    torch.manual_seed(0)
    job = _job(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), *_blobs())
    found = curvature.hessian(job, Options(damping=1e-3, solver="ekfac"))
    rows = np.random.default_rng(1).normal(size=(4, job.engine.size))
    np.testing.assert_allclose(found.root(found.root(rows)), found.apply(rows), rtol=1e-8)
    np.testing.assert_allclose(
        found.halves(rows, query=True) @ found.halves(rows, query=False).T, rows @ found.apply(rows).T, rtol=1e-8
    )


def test_close_to_the_formed_fisher_matrix_on_a_small_model():
    x, y = _blobs(count=200)
    torch.manual_seed(0)
    job = _job(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), x, y)
    scores = {
        solver: relevance.metric("FK", job, damping=1e-2, solver=solver).scores(x[:20], y[:20])
        for solver in ("exact", "ekfac")
    }
    plain = relevance.metric("GD", job).scores(x[:20], y[:20])
    close = rank_correlation(scores["exact"], scores["ekfac"])
    assert close > 0.8  # measured: .85, and .63 without a matrix
    assert close > rank_correlation(scores["exact"], plain)  # closer than no matrix at all


def test_empirical_matrix_of_one_layer_is_diagonal_in_its_basis():
    # The eigenvalues λ of EKFAC are the exact second moments in its basis, so their sum is the trace.
    x, y = _blobs()
    torch.manual_seed(0)
    job = _job(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), x, y)
    found = curvature.fisher(job, Options(solver="ekfac"), lambda: np.empty((0, 0)))
    gradients = relevance.metric("GD", job).keys()
    trace = float((gradients**2).sum() / len(gradients))
    assert found.damping == pytest.approx(1e-10 * trace / job.engine.size, rel=1e-5)
    assert "Fisher" in found.solver


def test_chosen_by_size():
    x, y = _blobs()
    torch.manual_seed(0)
    job = _job(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), x, y)
    for name in ("IF", "cos-IF", "l2-IF"):
        small, large = (relevance.metric(name, job, exact_limit=limit) for limit in (1000, 10))
        assert small.solver == "eigendecomposition of the Hessian"
        assert large.solver.startswith("EKFAC")
        assert np.isfinite(large.scores(x[:3], y[:3])).all()
    assert relevance.metric("FK", job, exact_limit=10).solver.startswith("EKFAC of the Fisher")
    assert relevance.metric("FK", job, exact_limit=43).solver.startswith("eigendecomposition")


def test_modes_and_randomness_are_left_alone():
    x, y = _blobs()
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    model.train()
    job = _job(model, x, y)
    before = torch.random.get_rng_state()
    metric = relevance.metric("cos-IF", job, solver="ekfac", samples=2, seed=3)
    first = metric.scores(x[:3], y[:3])
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    again = relevance.metric("cos-IF", job, solver="ekfac", samples=2, seed=3)
    np.testing.assert_array_equal(first, again.scores(x[:3], y[:3]))
    assert "2 drawn label(s)" in metric.solver


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), nn.functional.cross_entropy, "LayerNorm"),
        (nn.Linear(6, 3), nn.CrossEntropyLoss(label_smoothing=0.1), "the loss is CrossEntropyLoss"),
        (nn.Linear(6, 3), _double_loss, "the loss is _double_loss"),
    ],
)
def test_what_curvlinops_does_not_take(model, loss, message):
    job = _job(model, *_blobs(), loss)
    with pytest.raises(ValueError, match=message):
        relevance.metric("IF", job, solver="ekfac").scores(*_blobs())
    assert relevance.metric("IF", job, exact_limit=5).solver.startswith("MINRES")  # chosen by size, it makes do
    with pytest.raises(ValueError, match="exact_limit"):
        relevance.metric("cos-IF", job, exact_limit=5).scores(*_blobs())


def test_an_index_of_rows_by_ekfac(tmp_path):
    options = {"exact_limit": 10, "samples": 1, "damping": 1e-6}  # far less, and rounding is what rows differ by
    index = gradindex.build(digits_job(), tmp_path / "wide", metric="cos-IF", metric_options=options)
    assert index.store.header.sketch["kind"] == "countsketch"
    x, _ = digits()
    metric = relevance.metric("cos-IF", digits_job(), **options)
    scores = metric.scores(x[:5])
    assert metric.solver.startswith("EKFAC")
    np.testing.assert_allclose(index.explain(x[:5], k=3).scores, -np.sort(-scores, axis=1)[:, :3], rtol=1e-4)
