"""Attempts to break a proof: cases made hard on purpose, against the plain loop over every sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradindex
from gradindex import kernels
from gradindex.compute.held_queries import hold
from gradindex.kernels import Kernel
from gradindex.search import bounds, certify
from gradindex.sketch.landmark import LandmarkProjector
from tests.jobs import digits


def linear_job(rows, features, classes, scale, seed, bias=False):
    """A linear classifier, by `scale` more or less sure of itself, and samples some of which are cruel.

    Duplicates, zeros (no gradient without a bias), tiny and huge ones, negatives of each other.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    x[rows // 2 : rows // 2 + rows // 8] = x[: rows // 8]
    x[rows // 4 : rows // 4 + 2] = 0
    x[: rows // 10] *= 10.0 ** rng.integers(-18, 3, size=(rows // 10, 1))
    x[-(rows // 8) :] = -x[: rows // 8]
    y = rng.integers(0, classes, rows)
    model = nn.Linear(features, classes, bias=bias)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(scale * rng.normal(size=(classes, features))))
        if bias:
            model.bias.zero_()
    return gradindex.Job(model, nn.CrossEntropyLoss(), (x, y))


def assert_proofs_hold(index, ids, kernel, eps, found, allowed=None):
    """What is said to be proved is no worse than the loop's answer over all allowed rows; what is left is bounded."""
    job, store = index.job, index.store
    gradients = gradindex.exact_gradients(job, np.arange(len(store))).astype(np.float64)
    norms = np.linalg.norm(gradients, axis=1)
    error = bounds.evaluation_error(store.norms, bounds.unit(job.engine))
    mask = np.ones(len(store), bool) if allowed is None else allowed
    for line, one in enumerate(ids):
        values = kernels.values(kernel, gradients[one : one + 1] @ gradients.T, norms[[one]], norms, eps)[0]
        slack = error * kernels.weights(kernel, norms[one], norms, eps) + 1e-30
        for sign, prefix, rows in ((1, "", found.ordered_indices), (-1, "opponent_", found.opponent_indices)):
            got = rows[line][rows[line] >= 0]
            others = mask.copy()
            others[got] = False
            left = found.data[f"{prefix}bound_left"][line]
            if not found.data[f"{prefix}proved"][line]:
                assert np.isfinite(left)
                continue
            assert len(got) == min(rows.shape[1], mask.sum())
            if others.any():
                last = sign * found.data[f"{prefix}scores"][line][len(got) - 1]
                worst = np.argmax(sign * values - slack - np.where(others, 0, np.inf))
                assert sign * values[worst] - slack[worst] <= last + slack[got[-1]], (one, worst, values[worst], last)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    dims=st.integers(1, 20),
    k=st.integers(1, 9),
    kernel=st.sampled_from(list(Kernel)),
    eps=st.sampled_from([0.0, 1e-7, 1e-2]),
    checks=st.sampled_from([None, 10, 25]),
    removed=st.booleans(),
    filtered=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:The gradient of queries")
def test_no_proof_is_wrong(tmp_path_factory, seed, scale, dims, k, kernel, eps, checks, removed, filtered):
    rng = np.random.default_rng(seed)
    job = linear_job(72, 6, 4, scale, seed, bias=bool(seed % 2))
    sketch = gradindex.Landmark(landmarks=20, dims=dims)
    index = gradindex.build(job, tmp_path_factory.mktemp("hard") / "i", sketch=sketch)
    allowed = np.ones(72, bool)
    if removed:
        gone = rng.choice(72, 9, replace=False)
        index.remove(gone)
        allowed[gone] = False
    where = None
    if filtered:
        where = {"label": [0, 2]}
        allowed &= np.isin(index.store.columns["label"], [0, 2])
    ids = rng.choice(72, 5, replace=False)
    asked = {"k": k, "kernel": kernel.value, "eps": eps, "certify": True, "where": where}
    found = index.explain(ids=ids, max_checks=checks, **asked)
    assert_proofs_hold(index, ids, kernel, eps, found, allowed)
    if checks is None:
        assert found.proved.all()
        assert found.opponent_proved.all()
    plain = index.explain(ids=ids, k=k, kernel=kernel.value, eps=eps, where=where, rerank=30)
    assert_proofs_hold(index, ids, kernel, eps, plain, allowed)


def saturated(epochs=300):
    x, y = digits(400)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(epochs):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            optimiser.step()
    return gradindex.Job(model, nn.CrossEntropyLoss(), (x, y))


def test_a_model_that_is_sure_of_everything(tmp_path):
    """p − 1 is rounded to single precision: a gradient in a batch differs from one alone by far more than 1e-6."""
    job = saturated()
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=100, dims=60))
    assert np.median(index.store.norms) < 1e-2 * index.store.norms.max()
    ids = np.arange(0, 400, 23)
    for kernel in Kernel:
        found = index.explain(ids=ids, k=5, kernel=kernel.value, certify=True)
        assert found.proved.all()
        assert_proofs_hold(index, ids, kernel, 0.0, found)
    rows, norms = certify._rows_of(index, hold(job.engine, job.source.take(ids)))
    gradients = gradindex.exact_gradients(job, ids).astype(np.float64)
    np.testing.assert_allclose(norms, np.linalg.norm(gradients, axis=1), rtol=1e-5)
    most = bounds.cosine_bounds(index, rows)
    every = gradindex.exact_gradients(job, np.arange(400)).astype(np.float64)
    cosines = kernels.values(Kernel.COS, gradients @ every.T, norms, np.linalg.norm(every, axis=1))
    error = bounds.evaluation_error(index.store.norms, bounds.unit(job.engine))
    assert (cosines <= most[0] + error).all()
    assert (-cosines <= most[1] + error).all()


def test_small_gradients_are_given_more_room():
    norms = np.array([0, 1e-40, 1e-6, 1e-3, 1], np.float32)
    error = bounds.evaluation_error(norms, 2.0**-24)
    assert error[0] == bounds.EVALUATION
    assert error[1] == 3
    np.testing.assert_allclose(error[2:], 1e-5 + 2.0**-24 / norms[2:].astype(float), rtol=1e-6)
    assert bounds.evaluation_error(norms, 2.0**-8)[4] > 0.03  # a model in half precision


def test_landmarks_that_come_out_otherwise_widen_the_bounds(tmp_path, monkeypatch):
    """Opened where the landmarks' gradients have other bits, coordinates differ: the bound says by how much."""
    job = linear_job(72, 6, 4, 1.0, 1, bias=True)
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=20, dims=8))
    before = index.projector.whitening.error
    again = gradindex.load(tmp_path / "i", job).projector.whitening.error
    assert before <= again <= before + 1e-6
    adopt = LandmarkProjector.adopt

    def shaken(self, recorder):
        for rows, _ in recorder.sides.values():
            rows *= 1 + 1e-4 * np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
        for rows in recorder.whole.values():
            rows *= 1 + 1e-4 * np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
        return adopt(self, recorder)

    monkeypatch.setattr(LandmarkProjector, "adopt", shaken)
    moved = gradindex.load(tmp_path / "i", job)
    error = moved.projector.whitening.error
    assert error > before + 1e-5
    gradients = gradindex.exact_gradients(job, np.arange(72))
    norms = np.linalg.norm(gradients.astype(np.float64), axis=1)
    difference = moved.sketches(gradients, norms) - index.sketches(gradients, norms)
    assert np.linalg.norm(difference[:, :-1], axis=1).max() <= error
