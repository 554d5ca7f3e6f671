"""EKFAC and K-FAC as solvers, against formed matrices: exactly where they are exact, closely where they are not."""

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


def _job(model, x, y, loss=nn.functional.cross_entropy):
    return Job(model.double(), loss, (x, y))


def _blobs(seed=0, count=60, width=6):
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    return (random.normal(size=(3, width))[y] + random.normal(size=(count, width))).astype(np.float32), y


def _double_loss(output, y):
    return 2 * nn.functional.cross_entropy(output, y)


def _mlp():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("solver", ["ekfac", "kfac"])
def test_one_input_makes_a_kronecker_product(solver):
    # All samples share their input, so the Hessian of logistic regression is (mean diag p − p pᵀ) ⊗ x xᵀ.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(5, 3, bias=False)
    x = np.tile(np.random.default_rng(0).normal(size=(1, 5)), (40_000, 1))
    job = _job(model, x, np.arange(len(x)) % 3)
    few = _job(model, x[:3], np.arange(3))
    exact = curvature.hessian(few, Options(damping=0.1, solver="exact"))
    found = curvature.hessian(job, Options(damping=0.1, solver=solver))
    rows = job.engine.gradients(x[:3], np.arange(3)).gradients
    np.testing.assert_allclose(found.apply(rows) @ rows.T, exact.apply(rows) @ rows.T, rtol=0.03)  # labels are drawn
    title = {"ekfac": "EKFAC", "kfac": "K-FAC"}[solver]
    assert found.solver == f"{title} of the Gauss-Newton matrix, 1 drawn label(s) a sample"
    assert exact.solver == "eigendecomposition of the Hessian"


@pytest.mark.parametrize("solver", ["ekfac", "kfac"])
def test_root_is_half_of_apply(solver):
    job = _job(_mlp(), *_blobs())
    found = curvature.hessian(job, Options(damping=1e-3, solver=solver))
    rows = np.random.default_rng(1).normal(size=(4, job.engine.size))
    np.testing.assert_allclose(found.root(found.root(rows)), found.apply(rows), rtol=1e-8)
    np.testing.assert_allclose(
        found.halves(rows, query=True) @ found.halves(rows, query=False).T, rows @ found.apply(rows).T, rtol=1e-8
    )


def test_close_to_the_formed_fisher_matrix_on_a_small_model():
    x, y = _blobs(count=200)
    job = _job(_mlp(), x, y)
    scores = {
        solver: relevance.metric("FK", job, damping=1e-2, solver=solver).scores(x[:20], y[:20])
        for solver in ("exact", "ekfac", "kfac")
    }
    plain = relevance.metric("GD", job).scores(x[:20], y[:20])
    for solver in ("ekfac", "kfac"):
        close = rank_correlation(scores["exact"], scores[solver])
        assert close > rank_correlation(scores["exact"], plain) + 0.1  # closer than no matrix at all
        assert close > 0.75  # measured: .80 and .77, .63 without a matrix


def test_dampings():
    job = _job(_mlp(), *_blobs())
    gradients = relevance.metric("GD", job).keys()
    trace = float((gradients**2).sum() / len(gradients))
    for solver in ("ekfac", "kfac"):
        study, own, given = (
            curvature.fisher(job, Options(solver=solver, damping=damping), lambda: np.empty((0, 0)))
            for damping in ("study", None, 0.5)
        )
        assert own.damping == own.curvature.damping
        assert given.damping == 0.5
        assert study.damping == pytest.approx(1e-10 * own.curvature.trace / job.engine.size)
    # The eigenvalues of EKFAC are the exact second moments in its basis, so their sum is the trace.
    ekfac = curvature.fisher(job, Options(solver="ekfac"), lambda: np.empty((0, 0)))
    assert ekfac.curvature.trace == pytest.approx(trace)
    assert ekfac.solver == "EKFAC of the Fisher matrix"


def test_chosen_by_size():
    x, y = _blobs()
    job = _job(_mlp(), x, y)
    for name in ("IF", "cos-IF", "l2-IF"):
        small, large = (relevance.metric(name, job, exact_limit=limit) for limit in (1000, 10))
        assert small.solver == "eigendecomposition of the Hessian"
        assert large.solver.startswith("EKFAC of the Gauss-Newton")
        assert np.isfinite(large.scores(x[:3], y[:3])).all()
    assert relevance.metric("FK", job, exact_limit=10).solver.startswith("EKFAC of the Fisher")
    assert relevance.metric("FK", job, exact_limit=53).solver.startswith("eigendecomposition")


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


def test_a_loss_without_labels_to_draw():
    job = _job(nn.Linear(6, 3), *_blobs(), _double_loss)
    for solver in ("ekfac", "kfac"):
        with pytest.raises(ValueError, match=r"cannot be had: The loss is not −log p.* Leave solver out"):
            relevance.metric("IF", job, solver=solver).scores(*_blobs())
        assert np.isfinite(relevance.metric("FK", job, solver=solver).scores(*_blobs())).all()
    assert relevance.metric("IF", job, exact_limit=5).solver.startswith("MINRES")  # chosen by size, it makes do
    with pytest.raises(ValueError, match="exact_limit"):
        relevance.metric("cos-IF", job, exact_limit=5).scores(*_blobs())


def test_an_index_of_rows_by_ekfac(tmp_path):
    options = {"exact_limit": 10, "damping": 1e-6}  # far less, and rounding is what rows differ by
    index = gradindex.build(digits_job(), tmp_path / "wide", metric="cos-IF", metric_options=options)
    assert index.store.header.sketch["kind"] == "countsketch"
    x, _ = digits()
    metric = relevance.metric("cos-IF", digits_job(), **options)
    scores = metric.scores(x[:5])
    assert metric.solver.startswith("EKFAC")
    np.testing.assert_allclose(index.explain(x[:5], k=3).scores, -np.sort(-scores, axis=1)[:, :3], rtol=1e-4)


def test_keras_has_both():
    keras = pytest.importorskip("keras")
    x, y = _blobs()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)])
    weights = _mlp()
    model.set_weights([p.detach().numpy().T for p in weights.parameters()])
    theirs = Job(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), (x, y))
    ours = Job(weights, nn.functional.cross_entropy, (x, y))
    for solver in ("ekfac", "kfac"):
        for name in ("IF", "cos-IF", "l2-IF", "FK"):
            one, other = (relevance.metric(name, job, solver=solver).scores(x[:5], y[:5]) for job in (ours, theirs))
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_the_same_as_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    x, y = _blobs()
    model = _mlp().double()
    for layer in model[::2]:
        nn.init.normal_(layer.bias)
    job = _job(model, x, y)
    rows = np.random.default_rng(1).normal(size=(4, job.engine.size))
    kinds = {"kfac": curvlinops.KFACLinearOperator, "ekfac": curvlinops.EKFACLinearOperator}
    for kind, operator in kinds.items():
        want = operator(
            model,
            nn.CrossEntropyLoss(),
            list(model.parameters()),
            [(torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y))],
            check_deterministic=False,
            fisher_type=curvlinops.FisherType.EMPIRICAL,
            separate_weight_and_bias=True,
            num_per_example_loss_terms=1,
        )
        product = (want @ torch.as_tensor(rows.T)).T.numpy()
        found = curvature.fisher(job, Options(solver=kind, damping=0.0), lambda: np.empty((0, 0))).curvature
        np.testing.assert_allclose(found.power(rows, 0.0, 1.0), product, rtol=1e-5, atol=1e-8)
