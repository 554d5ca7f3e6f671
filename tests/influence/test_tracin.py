"""TracIn's sum against gradients of each checkpoint taken one sample at a time."""

import json

import numpy as np
import pytest

import gradindex
from gradindex.compute import exact
from gradindex.influence import CheckpointRecorder, UnsupervisedJob
from tests.influence.unsupervised_models import LATENT, TorchKit, X, Z

RATES = (0.3, 0.1, 0.02)


def steps(models, rates=RATES):
    """A VAE and checkpoints: three sets of weights, each with its learning rate."""
    model, loss_fn = models.vae()
    recorder, random = CheckpointRecorder(), np.random.default_rng(5)
    for rate in rates:
        models.move(model, random)
        recorder.record(model, rate)
    models.move(model, random)  # what the model is now is none of them
    return model, loss_fn, recorder.checkpoints


def vae_job(models, rates=RATES, **options):
    model, loss_fn, checkpoints = steps(models, rates)
    checkpoints = options.pop("checkpoints", checkpoints)
    return UnsupervisedJob(
        model, loss_fn, X, takes="model", noise=(LATENT,), draws=2, checkpoints=checkpoints, **options
    )


def naive(models, job, x):
    """Gradients (C, n, P) of every checkpoint, by hand."""
    model, loss_fn, checkpoints = steps(models)

    def loss(one):
        return models.mean([loss_fn(model, one, models.tensor(draw[None])) for draw in job.noise_values])

    found = []
    for state, _, _ in checkpoints:
        models.load(model, state)
        found.append(models.gradients(model, loss, x))
    return np.stack(found)


def tracin(models, job, x, z):
    return np.einsum("c,cnp,cmp->nm", RATES, naive(models, job, x), naive(models, job, z))


def test_the_kernel_is_tracins_sum_and_the_weights_come_back(models, tmp_path):
    job = vae_job(models)
    before = models.weights(job.model)
    index = gradindex.build(job, tmp_path / "index")
    result = index.explain(*job.queries(Z), k=14, kernel="grad_dot")
    want = tracin(models, job, X, Z).T
    np.testing.assert_allclose(result.scores, -np.sort(-want, axis=1), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.ordered_indices, np.argsort(-want, axis=1))
    own, ids = index.self_influence(14)
    want = np.diagonal(tracin(models, job, X, X))
    np.testing.assert_allclose(own, want[ids], rtol=1e-4)
    assert index.verify(queries=14, k=3, kernel="grad_dot").recall == 1
    for one, other in zip(before, models.weights(job.model), strict=True):
        np.testing.assert_array_equal(one, other)
    gradindex.load(tmp_path / "index", vae_job(models))


@pytest.mark.parametrize("certify", [False, True])
def test_queries_held_as_factors_have_their_learning_rates(models, tmp_path, monkeypatch, certify):
    monkeypatch.setattr(exact, "_SMALL", 0)
    job = vae_job(models)
    index = gradindex.build(job, tmp_path / "index", sketch=gradindex.Landmark(landmarks=10, dims=8))
    result = index.explain(*job.queries(Z), k=3, kernel="grad_dot", rerank=14, certify=certify)
    want = tracin(models, job, X, Z).T
    np.testing.assert_allclose(result.scores, -np.sort(-want, axis=1)[:, :3], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.ordered_indices, np.argsort(-want, axis=1)[:, :3])
    if certify:
        assert result.proved.all()
    else:
        assert result.meta["params"]["exact_method"] == "factors"


def test_every_path_gives_the_concatenated_gradients(models):
    job = vae_job(models)
    batch = job.source.take(np.arange(len(X)))
    want = np.concatenate([g * np.sqrt(r) for g, r in zip(naive(models, job, X), RATES, strict=True)], axis=1)
    engine = job.engine
    for found in (engine.gradients(batch.x, batch.y), engine.batched_gradients(batch.x, batch.y)):
        np.testing.assert_allclose(found.gradients, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradindex.exact_gradients(job, [2, 5]), want[[2, 5]], rtol=1e-3, atol=1e-5)
    identity = gradindex.Identity().bind(engine.parameters, 0)
    found = engine.embed(batch.x, batch.y, identity)
    np.testing.assert_allclose(found.sketches, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.norms, np.linalg.norm(want, axis=1), rtol=1e-4)
    dots, losses = engine.directional(batch.x, batch.y, want[0])
    np.testing.assert_allclose(dots, want @ want[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(losses, found.losses, rtol=1e-5)
    assert set(engine.paths.values()) == {"factored"}
    assert set(engine.paths) == {p.name for p in engine.parameters}
    assert engine.unused(batch.select(slice(0, 1)).x, batch.select(slice(0, 1)).y) == []


def test_losses_and_outputs_are_the_last_checkpoints(models):
    job = vae_job(models)
    last = vae_job(models, checkpoints=[job.checkpoints[-1]])
    np.testing.assert_allclose(job.losses(Z), last.losses(Z), rtol=1e-6)
    batch = job.source.take(np.arange(3))
    np.testing.assert_allclose(
        job.engine.gradients(batch.x, batch.y).losses, last.engine.gradients(batch.x, batch.y).losses, rtol=1e-6
    )


def test_a_sketch_is_the_sum_of_independent_sketches_of_the_checkpoints():
    job = vae_job(TorchKit)
    batch = job.source.take(np.arange(len(X)))
    sketch = gradindex.CountSketch(32)
    projector = sketch.bind(job.engine.parameters, 3)
    found = job.engine.embed(batch.x, batch.y, projector).sketches
    rows = job.engine.gradients(batch.x, batch.y).gradients
    np.testing.assert_allclose(found, projector(job.engine.parameters, rows), rtol=1e-4, atol=1e-5)
    first = vae_job(TorchKit, checkpoints=[(job.checkpoints[0].state, 1.0)])
    TorchKit.load(first.model, job.checkpoints[0].state)
    alone = UnsupervisedJob(first.model, first.loss_fn, X, takes="model", noise=(LATENT,), draws=2)
    parts = [
        one.engine.embed(batch.x, batch.y, sketch.bind(one.engine.parameters, 3)).sketches for one in (first, alone)
    ]
    np.testing.assert_allclose(*parts, rtol=1e-5, atol=1e-6)  # one checkpoint has the hashes of the plain model


def test_classifiers_predict_with_the_last_checkpoint(tmp_path):
    import torch
    from torch import nn

    from tests.jobs import digits

    x, y = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer, recorder = torch.optim.SGD(model.parameters(), lr=0.5), CheckpointRecorder()
    for _ in range(3):
        recorder.record(model, optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            optimizer.step()
    predicted = []
    for state, rate, _ in recorder.checkpoints:
        assert rate == 0.5
        model.load_state_dict(state)
        predicted.append(model(torch.from_numpy(x[:20])).argmax(dim=1).numpy())
    assert (predicted[0] != predicted[-1]).any()
    job = gradindex.Job(model, nn.CrossEntropyLoss(), (x, y), checkpoints=recorder.checkpoints)
    found = gradindex.build(job, tmp_path / "index").explain(x[:20], k=1, kernel="grad_dot")
    np.testing.assert_array_equal(found.query_predictions, predicted[-1])


def test_weights_come_back_after_an_error(models):
    model, loss_fn, checkpoints = steps(models)

    def fails(model, x, noise):
        raise RuntimeError("out of luck")

    before = models.weights(model)
    job = UnsupervisedJob(model, loss_fn, X, takes="model", noise=(LATENT,), checkpoints=checkpoints)
    batch = job.source.take(np.arange(2))
    engine = job.engine._engine
    inner, engine.gradients = engine.gradients, fails
    with pytest.raises((RuntimeError, TypeError)) as caught:
        job.engine.gradients(batch.x, batch.y)
    engine.gradients = inner
    for one, other in zip(before, models.weights(model), strict=True):  # while the traceback still holds the frames
        np.testing.assert_array_equal(one, other)
    assert caught.tb is not None


def test_an_index_of_other_checkpoints_is_refused(tmp_path):
    gradindex.build(vae_job(TorchKit), tmp_path / "index")
    other = vae_job(TorchKit, rates=(0.3, 0.1, 0.05))
    with pytest.raises(gradindex.MismatchError, match=r"checkpoint2/learning rate.* has other values"):
        gradindex.load(tmp_path / "index", other)
    fewer = vae_job(TorchKit)
    fewer = vae_job(TorchKit, checkpoints=fewer.checkpoints[:2])
    with pytest.raises(gradindex.MismatchError, match=r"parameter 'checkpoint2/.* is missing"):
        gradindex.load(tmp_path / "index", fewer)


def test_a_selection_keeps_the_hashes_of_the_rest():
    job, some = vae_job(TorchKit), vae_job(TorchKit, parameters="encoder")
    positions = {p.name: p.position for p in job.engine.parameters}
    assert 0 < len(some.engine.parameters) < len(positions)
    assert all(positions[p.name] == p.position for p in some.engine.parameters)


def tracin_job():
    """Named by the command line's test."""
    return vae_job(TorchKit)


def test_the_command_line_takes_such_jobs(tmp_path, capsys):
    from gradindex.cli.app import run

    job = "tests.influence.test_tracin:tracin_job"
    assert run(["build", job, str(tmp_path / "index"), "--dim", "64", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert run(["verify", str(tmp_path / "index"), job, "--kernel", "grad_dot", "--queries", "14", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] == 1
    found = gradindex.load(tmp_path / "index").self_influence(14)[0]
    np.testing.assert_allclose(found, np.sort(np.diagonal(tracin(TorchKit, tracin_job(), X, X)))[::-1], rtol=1e-3)


def test_checkpoints_are_not_printed_with_the_job():
    assert "checkpoints" not in repr(vae_job(TorchKit))
