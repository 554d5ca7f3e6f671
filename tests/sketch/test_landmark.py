"""Landmark kernel values by each layer's own path are the inner products of the naive loop's gradients."""

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.compute.landmarks import whiten
from gradindex.sketch import CountSketch, Landmark, bounds_cosine, from_json
from tests import oracles


class Mixed(nn.Module):
    """A look-up, a layer over positions, one called twice, a tied weight, and a plain one."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.along = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.wide = nn.Linear(6, 40)
        self.last = nn.Linear(40, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        h = torch.tanh(self.along(self.words(x))).mean(1)
        h = self.norm(torch.tanh(self.twice(torch.tanh(self.twice(h)))))
        return self.last(torch.tanh(self.wide(h))) @ self.words.weight.T


def mixed_job():
    random = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed()
    return gradindex.Job(model, nn.CrossEntropyLoss(), (random.integers(0, 9, (40, 5)), random.integers(0, 9, 40)))


def kit_job(kit):
    x, y, _, _ = oracles.digits()
    return gradindex.Job(kit.cnn(), kit.loss, (kit.images(x[:40]), y[:40]))


def prepared(job, **options):
    projector = Landmark(**{"landmarks": 24, "dims": 12, **options}).bind(job.engine.parameters, 0)
    ids = projector.draw(40)
    whiten(projector, job, ids)
    return projector, ids


def check(job, **options):
    job.engine.gradients(*((lambda b: (b.x, b.y))(job.source.take(np.arange(4)))))
    projector, ids = prepared(job, **options)
    truth = gradindex.exact_gradients(job, np.arange(40)).astype(np.float64)
    covered = np.concatenate(
        [np.full(p.size, projector.forms.get(p.name, "none") != "none") for p in job.engine.parameters]
    )
    parts = truth * covered
    want = parts @ (parts[ids] / np.linalg.norm(parts[ids], axis=1, keepdims=True)).T
    scale = np.abs(want).max()
    batch = job.source.take(np.arange(40))
    embedded = job.engine.embed(batch.x, batch.y, projector)
    values, rest = np.split(embedded.sketches, [len(ids)], axis=1)
    np.testing.assert_allclose(values / scale, want / scale, atol=3e-6)
    np.testing.assert_allclose(embedded.norms, np.linalg.norm(truth, axis=1), rtol=1e-5)
    formed = projector(job.engine.parameters, truth.astype(np.float32))
    np.testing.assert_allclose(formed[:, : len(ids)] / scale, want / scale, atol=3e-6)
    if projector.options.residual:
        check_residual(job, projector, ids, truth, covered, rest, embedded)
    return projector


def check_residual(job, projector, ids, truth, covered, rest, embedded):
    """What is added up is a CountSketch of the gradient; what is kept, one of what the coordinates leave out."""
    plain = CountSketch(projector.options.residual).bind(job.engine.parameters, 0)
    want = plain(job.engine.parameters, truth.astype(np.float32))
    np.testing.assert_allclose(rest, want, atol=1e-5 * np.abs(want).max())
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    marks = truth[ids] * covered
    marks = (marks / np.linalg.norm(marks, axis=1, keepdims=True)).T @ projector.whitening.matrix  # (P, r), orthonormal
    left = unit - (unit @ marks) @ marks.T
    rows = projector.finish(embedded.sketches, embedded.norms)
    want = plain(job.engine.parameters, left.astype(np.float32))
    want *= (np.linalg.norm(left, axis=1) / np.linalg.norm(want, axis=1))[:, None]
    dims = projector.options.dims
    big = np.linalg.norm(left, axis=1) > 0.05  # else rounding is all there is
    np.testing.assert_allclose(rows[big, dims:], want[big], atol=2e-4)
    np.testing.assert_allclose(projector.lengths_left(rows)[big], np.linalg.norm(left, axis=1)[big], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)
    opposite = projector.opposite(rows)
    np.testing.assert_array_equal(opposite, -rows)


def test_convolutions_and_dense_layers(kit):
    forms = set(check(kit_job(kit)).forms.values())
    assert forms == {"factors", "formed"}


def test_positions_look_ups_and_layers_called_twice():
    forms = check(mixed_job()).forms
    assert forms["wide.weight"] == "factors"
    assert {forms[name] for name in ("words.weight", "along.weight", "twice.weight")} == {"formed"}


@pytest.mark.parametrize("memory", [4 * 24 * 60, 4 * 24 * 200])
def test_what_does_not_fit_is_left_out(memory):
    forms = check(mixed_job(), memory=memory).forms
    assert "none" in forms.values()
    assert set(forms.values()) - {"none"}


@pytest.mark.parametrize("double", [False, True])
def test_other_precisions(double):
    kit = oracles.kit("pytorch")
    x, y = oracles.points(40)
    check(gradindex.Job(kit.mlp(double=double), kit.loss, (x, y)))


@pytest.mark.parametrize("memory", [4 * 24 * 200, 1 << 30])
def test_a_sketch_of_what_is_left_out(kit, memory):
    check(kit_job(kit), residual=32, memory=memory)
    check(mixed_job(), residual=24, memory=memory)


def test_rows_with_a_residual_estimate_cosines_better(kit):
    """Than a CountSketch as wide, and than coordinates alone."""
    job = kit_job(kit)
    truth = gradindex.exact_gradients(job, np.arange(40)).astype(np.float64)
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)

    def error(sketch):
        rows = np.concatenate([block.sketches for block in gradindex.embed(job, sketch=sketch)]).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.sqrt(np.mean((rows @ rows.T - unit @ unit.T) ** 2))

    both = error(Landmark(landmarks=24, dims=12, residual=52))
    assert both < 0.5 * error(CountSketch(64))
    assert both < error(Landmark(landmarks=24, dims=24))


def test_embed_needs_no_store():
    job = mixed_job()
    sketch = Landmark(landmarks=24, dims=12)
    (block,) = gradindex.embed(job, sketch=sketch, batch_size=40)
    assert block.sketches.shape == (40, 13)
    np.testing.assert_allclose(np.linalg.norm(block.sketches, axis=1), 1, atol=1e-4)
    again = np.concatenate([b.sketches for b in gradindex.embed(job, sketch=sketch, batch_size=7)])
    np.testing.assert_allclose(again @ again.T, block.sketches @ block.sketches.T, atol=1e-4)


def test_the_seed_draws_the_landmarks():
    job = mixed_job()
    draw = {seed: Landmark(landmarks=24, dims=12).bind(job.engine.parameters, seed).draw(1000) for seed in (0, 1)}
    assert len(np.unique(draw[0])) == 24
    assert (np.diff(draw[0]) > 0).all()
    assert not np.array_equal(draw[0], draw[1])
    np.testing.assert_array_equal(draw[0], Landmark(landmarks=24, dims=12).bind([], 0).draw(1000))
    assert Landmark().bind([], 0).draw(7).tolist() == list(range(7))


def test_options():
    sketch = Landmark(landmarks=10, dims=4, memory=5000)
    assert sketch.dim == 5
    assert from_json(sketch.to_json()) == sketch
    assert sketch.to_json() == {"kind": "landmark", "landmarks": 10, "dims": 4, "memory": 5000}
    assert Landmark(dims=4, landmarks=10, residual=6).dim == 10
    assert from_json(Landmark(residual=6).to_json()) == Landmark(residual=6)
    with pytest.raises(ValueError, match="residual must be an integer of 0 or more, got -1"):
        Landmark(residual=-1)
    with pytest.raises(ValueError, match="landmarks must be a positive integer, got 0"):
        Landmark(landmarks=0)
    with pytest.raises(ValueError, match=r"memory must be a positive integer, got 1\.5"):
        Landmark(memory=1.5)
    with pytest.raises(ValueError, match="dims is 20, but 10 landmarks span at most as many directions"):
        Landmark(landmarks=10, dims=20)
    with pytest.raises(RuntimeError, match="landmarks are not chosen yet"):
        sketch.bind([], 0).finish(np.zeros((1, 10), np.float32), np.ones(1))


def test_only_rows_of_landmarks_bound_cosines():
    for sketch, wanted in ((Landmark(landmarks=8, dims=4), True), (CountSketch(8), False)):
        assert bounds_cosine(sketch.to_json()) is wanted
        assert sketch.bind([], 0).bounds_cosine is wanted
    assert not bounds_cosine({"kind": "arrays", "dim": 4})
