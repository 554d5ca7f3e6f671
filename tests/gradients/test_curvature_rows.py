"""Whitened rows against the powers of the curvature, in every form that gradients come in."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gradindex.data.dataset_types import as_source
from gradindex.gradients.curvature import Curvature, Leading, Whitened
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import CountSketch, Identity
from tests.gradients.test_curvature import MODELS, case, formed

EVERY = pytest.mark.parametrize("name", list(MODELS))
KINDS = pytest.mark.parametrize("kind", ["kfac", "factored", "ekfac"])


def fitted(engine, source, kind):
    found = Curvature.fit(engine, source, "kfac" if kind == "factored" else kind)
    return found.with_factored_damping() if kind == "factored" else found


@EVERY
@KINDS
def test_whitened_rows_have_the_scores_as_inner_products(name, kind):
    engine, x, y = case(name)
    curvature = fitted(engine, as_source((x, y)), kind)
    want = curvature.root(formed(engine, x, y), 0.01)
    scores = want @ want.T
    for projector in (
        Whitened(curvature, Identity().bind(engine.parameters, 0), 0.01),
        Leading(curvature, engine.size, 0.01),
    ):
        found = engine.embed(x, y, projector)
        rows = projector.finish(found.sketches, found.norms).astype(float)
        np.testing.assert_allclose(rows @ rows.T, scores, rtol=1e-4, atol=1e-5 * scores.max())
        np.testing.assert_allclose(found.norms, np.sqrt(np.diag(scores)), rtol=1e-5)


@EVERY
@KINDS
def test_factors_and_formed_gradients_make_the_same_rows(name, kind, monkeypatch):
    engine, x, y = case(name)
    curvature = fitted(engine, as_source((x, y)), kind)
    gradients = formed(engine, x, y)
    used = set()
    for projector in (Leading(curvature, 30), Whitened(curvature, CountSketch(64).bind(engine.parameters, 0))):
        with monkeypatch.context() as patch:
            for cheap, costs in ((0.0, 1e12), (1e12, 0.0)):  # by factors wherever that can be, and nowhere
                patch.setattr(type(projector), "cost", lambda *_, c=costs: c)
                if cheap:
                    patch.setattr(type(projector), "factor_cost", lambda *_: np.inf)
                inner, taken = type(projector).add_factors, []
                patch.setattr(type(projector), "add_factors", lambda *a, i=inner, t=taken: t.append(1) or i(*a))
                found = engine.embed(x, y, projector)
                used.add(bool(taken))
                out = np.zeros((len(x), projector.dim), np.float32)
                squares = projector.add_all(out, engine.parameters, gradients)
                np.testing.assert_allclose(found.sketches, out, rtol=1e-3, atol=1e-4 * np.abs(out).max())
                np.testing.assert_allclose(found.norms, np.sqrt(squares), rtol=1e-5)
    assert used == {True, False}


def test_leading_coordinates_are_those_with_the_largest_second_moment():
    engine, x, y = case("conv2d")
    curvature = Curvature.fit(engine, as_source((x, y)), "ekfac")
    every = Leading(curvature, engine.size)
    rows = engine.embed(x, y, every).sketches
    kept = Leading(curvature, 20)
    moments = np.sort((rows.astype(float) ** 2).mean(axis=0))[::-1]
    found = np.sort((engine.embed(x, y, kept).sketches.astype(float) ** 2).mean(axis=0))[::-1]
    np.testing.assert_allclose(found, moments[:20], rtol=1e-4)
    values = np.sort(np.concatenate([block.values.ravel() for block in curvature.blocks]))[::-1][:20]
    np.testing.assert_allclose(found, values / (values + curvature.damping), rtol=1e-4)
    assert kept.dim == kept.width == 20
    assert every.dim == engine.size
    assert Leading(curvature, 10**6).dim == engine.size
    with pytest.raises(ValueError, match="count must be at least 1"):
        Leading(curvature, 0)


def test_a_few_leading_coordinates_keep_more_than_as_wide_a_sketch():
    from tests.jobs import digits_job

    job = digits_job()
    curvature = Curvature.fit(job.engine, job.source, "ekfac")
    batch = job.source.take(np.arange(100))
    want = job.engine.gradients(batch.x, batch.y).gradients
    scores = curvature.apply(want) @ want.T
    near = {}
    for name, projector in {
        "leading": Leading(curvature, 512),
        "sketch": Whitened(curvature, CountSketch(512).bind(job.engine.parameters, 0)),
    }.items():
        rows = job.engine.embed(batch.x, batch.y, projector).sketches
        near[name] = np.corrcoef((rows @ rows.T)[~np.eye(100, dtype=bool)], scores[~np.eye(100, dtype=bool)])[0, 1]
    assert near["leading"] > 0.98
    assert near["sketch"] < near["leading"] - 0.05


def test_paths_without_factors_make_the_same_rows():
    engine, x, y = case("linear")
    curvature = Curvature.fit(engine, as_source((x, y)), "ekfac")
    rows = {}
    for path in ("factored", "vmap", "loop"):
        assert set(engine.paths.values()) == {path}
        projectors = Leading(curvature, 20), Whitened(curvature, CountSketch(64).bind(engine.parameters, 0))
        rows[path] = [engine.embed(x, y, projector) for projector in projectors]
        engine.lower()
    for path in ("vmap", "loop"):
        for one, other in zip(rows[path], rows["factored"], strict=True):
            np.testing.assert_allclose(one.sketches, other.sketches, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one.norms, other.norms, rtol=1e-6)


def test_a_parameter_that_no_loss_depends_on_is_left_out():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        engine = TorchEngine(Idle().double(), nn.CrossEntropyLoss())
    random = np.random.default_rng(0)
    x, y = random.standard_normal((20, 4)), random.integers(0, 3, 20)
    for kind in ("kfac", "ekfac"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The loss does not depend on 2 parameters")
            curvature = fitted(engine, as_source((x, y)), kind)
        alone = Curvature.fit(TorchEngine(engine.model, nn.CrossEntropyLoss(), "used.*"), as_source((x, y)), kind)
        assert curvature.damping == pytest.approx(alone.damping)
        gradients = engine.gradients(x, y).gradients
        rows = engine.embed(x, y, Leading(curvature, 15)).sketches.astype(float)
        np.testing.assert_allclose(rows @ rows.T, curvature.apply(gradients) @ gradients.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone.apply(gradients[:, :15]), curvature.apply(gradients)[:, :15], rtol=1e-9)


@KINDS
@pytest.mark.parametrize("formed_first", [False, True])
def test_columns_that_come_in_another_order(kind, formed_first, monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 3))
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 8, 6, 6)).astype(np.float32), random.integers(0, 3, 40)
    engine = TorchEngine(model, nn.CrossEntropyLoss())
    curvature = fitted(engine, as_source((x, y)), kind)
    plain = fitted(TorchEngine(model.double(), nn.CrossEntropyLoss()), as_source((x.astype(float), y)), kind)
    model.float()
    np.testing.assert_allclose(curvature.blocks[0].columns.values, plain.blocks[0].columns.values, rtol=1e-3, atol=1e-4)
    want = curvature.root(formed(engine, x, y), 0.01)
    seen = []
    for projector in (
        Whitened(curvature, Identity().bind(engine.parameters, 0), 0.01),
        Leading(curvature, engine.size, 0.01),
    ):
        if formed_first:
            monkeypatch.setattr(type(projector), "factor_cost", lambda *_: np.inf)
        else:
            monkeypatch.setattr(type(projector), "cost", lambda *_: np.inf)
        for name in ("add_measured", "add_factors"):
            real = getattr(type(projector), name)
            spy = lambda s, o, p, *a, r=real: seen.append(p.input_order) or r(s, o, p, *a)  # noqa: E731
            monkeypatch.setattr(type(projector), name, spy)
        rows = engine.embed(x, y, projector).sketches.astype(float)
        scores = want @ want.T
        np.testing.assert_allclose(rows @ rows.T, scores, rtol=1e-3, atol=1e-4 * scores.max())
    assert (1, 0) in seen  # channels last: a patch's places come before its channels
