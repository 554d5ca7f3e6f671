"""Re-ranking by curvature: candidates' scores are those of the formula, and of the scan of all samples."""

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex import relevance
from gradindex.relevance.rerank import Reranker, recall

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6))
Y = RNG.integers(0, 3, 50)


def torch_job(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return gradindex.Job(model, nn.functional.cross_entropy, (X.astype(str(dtype).split(".")[1]), Y))


def gauss_newton(job):
    """Σ_i J_iᵀ H_i J_i / n by torch's own Jacobian, H = diag p − p pᵀ."""
    model, names = job.model, [name for name, _ in job.model.named_parameters()]
    values = [p.detach() for p in model.parameters()]

    def outputs(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (torch.as_tensor(X),))

    parts = torch.autograd.functional.jacobian(outputs, tuple(values))
    jacobian = torch.cat([part.flatten(2) for part in parts], 2).numpy()
    chances = torch.softmax(outputs(*values), 1).numpy()
    bend = np.stack([np.diag(p) - np.outer(p, p) for p in chances])
    return np.einsum("bip,bij,bjq->pq", jacobian, bend, jacobian) / len(X)


def keras_job():
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Dense(5, "tanh", dtype="float64"), keras.layers.Dense(3, dtype="float64")]
    model = keras.Sequential([keras.Input((6,), dtype="float64"), *layers])
    model.set_weights([p.detach().numpy().T for p in torch_job().model.parameters()])
    return gradindex.Job(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), (X, Y))


def test_the_gauss_newton_matrix():
    job = torch_job()
    found = job.engine.gauss_newton_product(X, Y, np.eye(job.engine.size)) / len(X)
    np.testing.assert_allclose(found, gauss_newton(job), atol=1e-12)
    hessian = job.engine.hessian_product(X, Y, np.eye(job.engine.size)) / len(X)
    assert np.abs(hessian - found).max() > 1e-3


def test_the_gauss_newton_matrix_in_keras():
    theirs, ours = keras_job().engine, torch_job().engine
    rows = RNG.standard_normal((3, ours.size))
    turned = np.concatenate(
        [
            block.reshape(3, *p.matrix_shape).transpose(0, 2, 1).reshape(3, -1) if len(p.shape) > 1 else block
            for p, place in ours.slices()
            for block in [rows[:, place]]
        ],
        axis=1,
    )
    want = ours.gauss_newton_product(X, Y, rows)
    found = theirs.gauss_newton_product(X, Y, turned)
    back = np.einsum("ij,ij->i", found, turned)
    np.testing.assert_allclose(back, np.einsum("ij,ij->i", want, rows), rtol=1e-6)


def test_an_engine_of_other_rows_has_none():
    engine = torch_job().with_metric(relevance.spec("cos-x")).engine
    with pytest.raises(Exception, match="has no Gauss-Newton matrix"):
        engine.gauss_newton_product(X, Y, np.zeros((1, 6)))


@pytest.mark.parametrize("solver", ["ekfac", "kfac", "cg"])
@pytest.mark.parametrize("make", [torch_job, keras_job])
def test_scores_are_the_formula(make, solver):
    job = make()
    found = Reranker(job, solver=solver, tolerance=1e-8, damping=0.01)
    queries = RNG.standard_normal((2, 6))
    labels = np.array([0, 2])
    ids = RNG.permuted(np.tile(np.arange(50), (2, 1)), axis=1)[:, :12]
    ids[1, 3] = -1
    scores, every = found.scores(ids, queries, labels), found.scan(queries, labels)
    assert scores[1, 3] == -np.inf
    np.testing.assert_allclose(scores[ids >= 0], np.take_along_axis(every, ids, 1)[ids >= 0], rtol=1e-5, atol=1e-9)
    gradients, training = (job.engine.gradients(*pair).gradients for pair in ((queries, labels), (X, Y)))
    want = found.inverse.apply(gradients) @ training.T
    np.testing.assert_allclose(every, want, rtol=1e-5, atol=1e-9)
    if solver == "cg" and job.backend == "torch":
        matrix = gauss_newton(job) + 0.01 * np.eye(job.engine.size)
        np.testing.assert_allclose(every, gradients @ np.linalg.inv(matrix) @ training.T, rtol=1e-5, atol=1e-7)


def test_conjugate_gradients_in_single_precision_say_when_they_stop(caplog):
    job = torch_job(torch.float32)
    found = Reranker(job, solver="cg", tolerance=1e-9, iterations=2)
    found.scan(X[:1], Y[:1])
    assert "conjugate gradients stopped after 2 iterations at row 0" in caplog.text
    with pytest.raises(ValueError, match="Use 'ekfac'"):
        relevance.metric("cos-IF", job, solver="cg").scores(X[:2].astype(np.float32), Y[:2])
    assert relevance.metric("IF", job, solver="cg").solver.startswith("conjugate gradients (tolerance 0.001), precond")


def test_labels_are_predicted_where_none_are_given():
    job = torch_job()
    found = Reranker(job)
    ids = np.arange(20).reshape(2, 10)
    labels = job.engine.outputs(X[:2]).argmax(axis=1)
    np.testing.assert_allclose(found.scores(ids, X[:2]), found.scores(ids, X[:2], labels))


def test_recall_of_candidates():
    scores = np.array([[5.0, 4, 3, 2, 1, 0]])
    assert recall(scores, np.array([[0, 1, 5]]), 2) == 1.0
    assert recall(scores, np.array([[0, 4, 5]]), 2) == 0.5
    assert recall(scores, np.array([[0, -1, -1]]), 2) == 0.5
    with pytest.raises(ValueError, match="k must be between 1 and 3"):
        recall(scores, np.array([[0, 1, 5]]), 4)


def test_bad_input():
    job = torch_job()
    with pytest.raises(ValueError, match="without metric and checkpoints"):
        Reranker(job.with_metric(relevance.spec("cos-x")))
    with pytest.raises(ValueError, match="Unknown solver"):
        Reranker(job, solver="lu")
    found = Reranker(job)
    with pytest.raises(ValueError, match=r"shape \(m, c\)"):
        found.scores(np.arange(3), X[:1], Y[:1])
    with pytest.raises(ValueError, match="ids are of 2 queries, X holds 1"):
        found.scores(np.zeros((2, 3), int), X[:1], Y[:1])
    with pytest.raises(IndexError):
        found.scores(np.array([[50]]), X[:1], Y[:1])
