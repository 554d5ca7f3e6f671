"""Every metric by value against naive dense NumPy, in both frameworks."""

import copy
import warnings

import numpy as np
import pytest

import gradindex
from gradindex import relevance
from gradindex.relevance import curvature
from gradindex.relevance.base import Options

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 4))
Y = RNG.integers(0, 3, 40)
Q = RNG.standard_normal((5, 4))
QY = np.array([0, 1, 2, 0, 1])
ALL = (*relevance.METRICS, "RIF")


def torch_job(hidden=3):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 3)).double()
    return gradindex.Job(model, torch.nn.functional.cross_entropy, (X, Y))


def truth(job):
    """Inputs, hidden layer, gradients and Hessian, by torch's plain functions."""
    import torch

    model = copy.deepcopy(job.model)
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat, x, y):
        parts = [p.reshape(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        output = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (torch.tensor(x),))
        return torch.nn.functional.cross_entropy(output, torch.tensor(y))

    def gradients(x, y):
        return np.stack([torch.func.grad(loss)(flat, x[i : i + 1], y[i : i + 1]).numpy() for i in range(len(x))])

    def hidden(x):
        return model[1](model[0](torch.tensor(x))).detach().numpy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at the first forward mode
        hessian = torch.func.hessian(loss)(flat, X, Y).numpy()
    return {"x": (Q, X), "last": (hidden(Q), hidden(X)), "grad": (gradients(Q, QY), gradients(X, Y))}, hessian


def naive(name, features, hessian, damping):
    similarity, feature = relevance.parse(name)
    matrix = feature in ("IF", "FK")
    q, t = features["grad" if matrix else "last" if feature == "all" else feature]
    root = np.eye(q.shape[1])
    if matrix:
        a = hessian if feature == "IF" else t.T @ t / len(t)
        a = a + damping * np.eye(len(a))
        if similarity == "dot":
            return q @ np.linalg.inv(a) @ t.T
        values, vectors = np.linalg.eigh(a)
        root = vectors @ np.diag([0 if v <= 0 else v**-0.5 for v in values]) @ vectors.T
    q, t = q @ root, t @ root
    out = np.empty((len(q), len(t)))
    for i, a in enumerate(q):
        for j, b in enumerate(t):
            out[i, j] = {
                "dot": a @ b,
                "cos": a @ b / np.sqrt((a @ a) * (b @ b)),
                "l2": -((a - b) @ (a - b)),
            }[similarity]
    return out


@pytest.fixture(scope="module")
def case():
    job = torch_job()
    return job, *truth(job)


@pytest.mark.parametrize("name", ALL)
def test_a_metric_is_its_formula(case, name):
    job, features, hessian = case
    found = relevance.metric(name, job, damping=0.01).scores(Q, QY)
    want = naive(name, features, hessian, 0.01)
    np.testing.assert_allclose(found, want, rtol=1e-8, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("name", ["FK", "cos-FK", "l2-FK"])
def test_more_parameters_than_samples_give_the_same_fisher_kernel(name):
    job = torch_job(hidden=20)  # 163 parameters, 40 samples
    features, _ = truth(job)
    found = relevance.metric(name, job, damping=0.05).scores(Q, QY)
    want = naive(name, features, None, 0.05)
    np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-8 * np.abs(want).max())


def test_the_rank_one_fisher_matrix_is_that_of_the_mean_gradient(case):
    job, features, _ = case
    q, t = features["grad"]
    mean = t.mean(axis=0)
    want = q @ np.linalg.inv(np.outer(mean, mean) + 0.01 * np.eye(len(mean))) @ t.T
    found = relevance.metric("FK", job, damping=0.01, fisher="mean").scores(Q, QY)
    np.testing.assert_allclose(found, want, rtol=1e-9)


def test_default_damping_is_relative_to_the_diagonal(case):
    job, _, hessian = case
    study = relevance.metric("IF", job, damping="study").space.inverse("IF")
    assert study.damping == pytest.approx(1e-10 * np.abs(np.diag(hessian)).mean())
    values = np.abs(np.linalg.eigvalsh(hessian))
    own = relevance.metric("IF", job).space.inverse("IF")
    assert own.damping == pytest.approx(0.1 * values[values > 1e-6 * values.max()].mean())


@pytest.mark.parametrize("hidden", [3, 20])
def test_default_damping_of_the_fisher_matrix_is_the_same_by_both_of_its_matrices(hidden):
    job = torch_job(hidden=hidden)
    (_, gradients) = truth(job)[0]["grad"]
    values = np.linalg.eigvalsh(gradients.T @ gradients / len(gradients))
    found = relevance.metric("FK", job).space.inverse("FK").damping
    assert found == pytest.approx(0.1 * values[values > 1e-6 * values.max()].mean())
    study = relevance.metric("FK", job, damping="study").space.inverse("FK").damping
    assert study == pytest.approx(1e-10 * values.sum() / len(values))
    mean = relevance.metric("FK", job, fisher="mean").space.inverse("FK").damping
    assert mean == pytest.approx(0.1 * (gradients.mean(axis=0) ** 2).sum())


def test_the_iterated_hessian_agrees_with_the_formed_one(case):
    job, features, hessian = case
    metric = relevance.metric("IF", job, damping=0.05, solver="minres", tolerance=1e-12)
    np.testing.assert_allclose(metric.scores(Q, QY), naive("IF", features, hessian, 0.05), rtol=1e-5, atol=1e-6)
    assert metric.solver.startswith("MINRES")
    with pytest.raises(ValueError, match="Raise exact_limit"):
        relevance.metric("RIF", job, solver="minres").scores(Q, QY)


def test_top_sorts_and_predicts_labels(case):
    job, _, _ = case
    metric = relevance.metric("GC", job)
    ids, scores = metric.top(Q, k=4)
    labels = job.engine.outputs(Q).argmax(axis=1)
    every = metric.scores(Q, labels)
    np.testing.assert_allclose(scores, -np.sort(-every, axis=1)[:, :4])
    np.testing.assert_allclose(np.take_along_axis(every, ids, 1), scores)
    with pytest.raises(ValueError, match="k must be at least 1"):
        metric.top(Q, k=0)


def test_keras_agrees_with_torch():
    keras = pytest.importorskip("keras")
    job = torch_job()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh", dtype="float64"), keras.layers.Dense(3, dtype="float64")]
    )
    model.set_weights([p.detach().numpy().T for p in job.model.parameters()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    other = gradindex.Job(model, loss, (X, Y))
    ours, theirs = (relevance.metrics(relevance.METRICS, one, damping=0.01) for one in (job, other))
    for name in relevance.METRICS:
        want = ours[name].scores(Q, QY)
        np.testing.assert_allclose(
            theirs[name].scores(Q, QY), want, rtol=1e-4, atol=1e-5 * np.abs(want).max(), err_msg=name
        )


def test_named_layers_and_models_without_hidden_layers():
    import torch

    job = torch_job()
    named = relevance.metric("dot-last", job, layers=("1",)).scores(Q)
    np.testing.assert_allclose(named, relevance.metric("dot-last", job).scores(Q))
    with pytest.raises(ValueError, match="There is no layer 'nine'"):
        relevance.metric("dot-all", job, layers=("nine",)).scores(Q)
    linear = gradindex.Job(torch.nn.Linear(4, 3).double(), torch.nn.functional.cross_entropy, (X, Y))
    with pytest.raises(ValueError, match="has no hidden layer"):
        relevance.metric("cos-last", linear).scores(Q)


def test_options_are_validated(case):
    job = case[0]
    with pytest.raises(ValueError, match=r"Unknown metric 'cosine'\. Expected one of: 'l2-x'"):
        relevance.metric("cosine", job)
    with pytest.raises(ValueError, match="Unknown fisher 'false'"):
        relevance.metric("FK", job, fisher="false")
    with pytest.raises(ValueError, match="damping must be None"):
        relevance.metric("FK", job, damping=-1.0)
    with pytest.raises(ValueError, match="damping must be None, 'study' or"):
        relevance.metric("FK", job, damping="studio")


@pytest.mark.parametrize("options", [{"solver": "svd"}, {"samples": 0}, {"exact_limit": 1.5}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Options(**options)


def test_unused_inputs_do_not_change_the_inverse():
    # Pixels that are always 0 give rows of zeros, which are left out of the decomposition.
    import torch

    x = np.hstack([X, np.zeros((len(X), 3))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 3).double()
    job = gradindex.Job(model, torch.nn.functional.cross_entropy, (x, Y))
    for name in ("IF", "cos-IF", "FK", "cos-FK"):
        metric = relevance.metric(name, job, damping=1e-3)
        inverse = metric.space.inverse(metric.feature)
        if name.endswith("IF"):
            matrix = curvature._product(job)(np.eye(job.engine.size))
        else:
            gradients = metric.space.train("grad")
            matrix = gradients.T @ gradients / len(gradients)
        rows = np.random.default_rng(0).normal(size=(3, job.engine.size))
        want = rows @ np.linalg.inv(matrix + 1e-3 * np.eye(len(matrix)))
        np.testing.assert_allclose(inverse.apply(rows), want, rtol=1e-6, atol=1e-8)


def test_a_layer_that_receives_no_samples_does_not_hide_the_last_one():
    """Embeddings of positions receive their numbers, the same for all samples."""
    import torch

    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = torch.nn.Embedding(9, 4), torch.nn.Embedding(6, 4)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.head((self.words(x) + self.places(torch.arange(6))).mean(1))

    model = Reader()
    x = RNG.integers(0, 9, (20, 6))
    job = gradindex.Job(model, torch.nn.functional.cross_entropy, (x, RNG.integers(0, 3, 20)))
    found = relevance.metric("cos-last", job).scores(x[:3], [0, 1, 2])
    with torch.no_grad():
        rows = (model.words(torch.tensor(x)) + model.places.weight).mean(1)
    rows = torch.nn.functional.normalize(rows.double())
    np.testing.assert_allclose(found, rows[:3] @ rows.T, atol=1e-6)


def test_the_result_says_what_a_negative_eigenvalue_does(case):
    """Of cos-IF the direction is left out; of IF it is kept, with its sign."""
    job, _, hessian = case
    values, vectors = np.linalg.eigh(hessian)
    below = int((values + 0.01 < 0).sum())
    assert 0 < below < int((values < 0).sum())  # the damping makes some of them positive
    told = {name: relevance.metric(name, job, damping=0.01).remark for name in ("IF", "cos-IF", "l2-IF", "FK", "GC")}
    assert told["IF"].startswith(f"{below} of the Hessian's damped eigenvalues are negative: along their directions")
    left_out = f"{below} of the Hessian's damped eigenvalues are negative: their root is imaginary, and the real part"
    assert told["cos-IF"] == told["l2-IF"] == f"{left_out} leaves those directions out."
    assert told["FK"] is None and told["GC"] is None
    assert relevance.metric("cos-IF", job, damping=10.0).remark is None
    inverse = relevance.metric("cos-IF", job, damping=0.01).space.inverse("IF")
    np.testing.assert_allclose(inverse.root(vectors[:, :1].T), 0, atol=1e-8)
    np.testing.assert_allclose(inverse.apply(vectors[:, :1].T), vectors[:, :1].T / (values[0] + 0.01), rtol=1e-6)


@pytest.mark.parametrize("solver", ["ekfac", "cg"])
def test_the_result_says_what_stands_for_the_hessian(case, solver):
    job = case[0]
    expected = "The Gauss-Newton matrix, which has no negative eigenvalue, stands for the Hessian."
    assert relevance.metric("IF", job, solver=solver).remark == expected
    assert relevance.metric("FK", job, solver="ekfac").remark is None
    assert relevance.metric("IF", job, exact_limit=5).remark == expected
