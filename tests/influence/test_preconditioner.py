"""TracIn with Adam's preconditioner, against Adam's own steps and gradients taken one at a time."""

import numpy as np
import pytest

import gradindex
from gradindex.gradients.training.adam import read_preconditioner
from gradindex.influence import CheckpointRecorder, UnsupervisedJob
from tests.influence.unsupervised_models import KerasKit, TorchKit, X, Z


def trained(models, steps=3, first_moment=0.9, amsgrad=False):
    """An autoencoder after some steps of Adam on one sample each; returns (model, loss_fn, optimizer, recorder)."""
    model, loss_fn = models.autoencoder()
    recorder = CheckpointRecorder(adam=True)
    if models is TorchKit:
        import torch

        optimizer = torch.optim.Adam(model.parameters(), lr=0.03, betas=(first_moment, 0.99), eps=1e-4, amsgrad=amsgrad)
        for one in torch.from_numpy(X[:steps]):
            optimizer.zero_grad()
            loss_fn(model(one[None]), one[None]).backward()
            optimizer.step()
            recorder.record(model, optimizer)
    else:
        import keras

        optimizer = keras.optimizers.Adam(0.03, first_moment, 0.99, epsilon=1e-4, amsgrad=amsgrad)
        model.compile(optimizer, loss_fn)
        model.fit(X[:steps], X[:steps], batch_size=1, shuffle=False, verbose=0)
        recorder.record(model, 0.03, optimizer)
    return model, loss_fn, optimizer, recorder


def weights(models, model):
    return np.concatenate([w.ravel() for w in models.weights(model)])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_momentum_a_step_is_the_gradient_times_the_preconditioner(models, amsgrad):
    before = trained(models, 3, first_moment=0.0, amsgrad=amsgrad)[0]
    after, loss_fn, optimizer, _ = trained(models, 4, first_moment=0.0, amsgrad=amsgrad)
    factors = np.concatenate([one.ravel() for one in read_preconditioner(after, optimizer)])
    gradient = models.gradients(before, lambda one: models.mean([models.call_loss(loss_fn, before(one), one)]), X[3:4])[
        0
    ]
    step = weights(models, before) - weights(models, after)
    np.testing.assert_allclose(0.03 * factors * gradient, step, rtol=2e-3, atol=1e-6)


def naive(models, checkpoints, loss_fn, x, z):
    """Σ_c η_c ⟨g_c(x), d_c ∘ g_c(z)⟩, by hand."""
    model, total = models.autoencoder()[0], 0.0
    for state, rate, factors in checkpoints:
        models.load(model, state)
        of_x, of_z = (
            models.gradients(model, lambda one: models.mean([models.call_loss(loss_fn, model(one), one)]), some)
            for some in (x, z)
        )
        weight = np.ones(of_x.shape[1]) if factors is None else np.concatenate([f.ravel() for f in factors])
        total = total + rate * (of_x * weight) @ of_z.T
    return total


def test_the_kernel_is_the_preconditioned_sum(models, tmp_path):
    model, loss_fn, _, recorder = trained(models)
    checkpoints = [recorder.checkpoints[0], recorder.checkpoints[-1]]
    checkpoints.append((checkpoints[0].state, 0.01))  # and one of plain steps
    job = UnsupervisedJob(model, loss_fn, X, checkpoints=checkpoints)
    want = naive(models, [(*c, None)[:3] for c in checkpoints], loss_fn, X, Z).T
    index = gradindex.build(job, tmp_path / "index")
    result = index.explain(*job.queries(Z), k=14, kernel="grad_dot")
    np.testing.assert_allclose(result.scores, -np.sort(-want, axis=1), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.ordered_indices, np.argsort(-want, axis=1))
    own, ids = index.self_influence(14)
    own_want = np.diagonal(naive(models, [(*c, None)[:3] for c in checkpoints], loss_fn, X, X))
    np.testing.assert_allclose(own, own_want[ids], rtol=1e-4)
    assert index.verify(queries=14, k=3, kernel="grad_dot").recall == 1
    plain = naive(models, [(c[0], c[1], None) for c in checkpoints], loss_fn, X, Z).T
    assert (np.argsort(-plain, axis=1) != result.ordered_indices).any()  # the preconditioner is not idle
    gradindex.load(tmp_path / "index", UnsupervisedJob(model, loss_fn, X, checkpoints=checkpoints))


def test_a_selection_of_parameters_takes_its_own_factors(models):
    model, loss_fn, _, recorder = trained(models)
    names = [p.name for p in UnsupervisedJob(model, loss_fn, X).engine.parameters]
    whole, some = (
        UnsupervisedJob(model, loss_fn, X, checkpoints=recorder.checkpoints[-1:], parameters=chosen).engine
        for chosen in (None, names[2:])
    )
    batch = UnsupervisedJob(model, loss_fn, X).source.take(np.arange(len(X)))
    rows, part = (engine.gradients(batch.x, batch.y).gradients for engine in (whole, some))
    np.testing.assert_allclose(part, rows[:, -part.shape[1] :], rtol=1e-4, atol=1e-7)
    found = some.embed(batch.x, batch.y, gradindex.Identity().bind(some.parameters, 0))
    np.testing.assert_allclose(found.sketches, part, rtol=1e-5)
    assert some.bytes_per_sample > 3 * part.shape[1] * 4


def test_callbacks_keep_the_preconditioner(tmp_path):
    import keras

    model, loss_fn = KerasKit.autoencoder()
    model.compile(keras.optimizers.AdamW(0.01), loss_fn)
    recorder = CheckpointRecorder(adam=True)
    model.fit(X, X, epochs=2, verbose=0, callbacks=[recorder.keras_callback()])
    assert len(recorder.checkpoints) == 2
    last = recorder.checkpoints[-1].preconditioner
    for one, other in zip(last, read_preconditioner(model, model.optimizer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_without_a_second_moment_count_nothing():
    import torch

    model = torch.nn.Embedding(5, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    (found,) = read_preconditioner(model, optimizer)
    assert (found[[0, 2, 3]] == 0).all()
    assert (found[[1, 4]] > 0).all()


def test_an_index_of_another_preconditioner_is_refused(tmp_path):
    model, loss_fn, _, recorder = trained(TorchKit)
    last = recorder.checkpoints[-1]
    gradindex.build(UnsupervisedJob(model, loss_fn, X, checkpoints=[last]), tmp_path / "index")
    other = last._replace(preconditioner=[2 * f for f in last.preconditioner])
    with pytest.raises(gradindex.MismatchError, match=r"checkpoint0/preconditioner.* has other values"):
        gradindex.load(tmp_path / "index", UnsupervisedJob(model, loss_fn, X, checkpoints=[other]))


def sgd(models):
    model, loss_fn = models.autoencoder()
    if models is TorchKit:
        import torch

        return model, torch.optim.SGD(model.parameters(), lr=0.1)
    import keras

    model.compile(keras.optimizers.SGD(0.1), loss_fn)
    return model, model.optimizer


def test_only_adam_has_a_preconditioner(models):
    model, optimizer = sgd(models)
    with pytest.raises(TypeError, match="SGD keeps no second moment: expected Adam or AdamW"):
        CheckpointRecorder(adam=True).record(model, 0.1, optimizer)
    with pytest.raises(ValueError, match=r"give record\(model, learning_rate, optimizer\)"):
        CheckpointRecorder(adam=True).record(model, 0.1)


def test_a_step_comes_before_the_record():
    import keras
    import torch

    model, _ = TorchKit.autoencoder()
    with pytest.raises(ValueError, match="has made no step yet: record after one"):
        CheckpointRecorder(adam=True).record(model, torch.optim.Adam(model.parameters()))
    model, loss_fn = KerasKit.autoencoder()
    model.compile(keras.optimizers.Adam(), loss_fn)
    with pytest.raises(ValueError, match="has made no step yet: record after one"):
        CheckpointRecorder(adam=True).record(model, 0.1, model.optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[1:], r"Checkpoint 0 is not of this model: its preconditioner has shapes \[\(5,\)"),
        (lambda f: [-f[0] - 1, *f[1:]], "holds negative numbers, NaN or infinity"),
        (lambda f: [f[0] * np.nan, *f[1:]], "holds negative numbers, NaN or infinity"),
    ],
)
def test_preconditioners_that_do_not_fit_are_refused(change, message):
    model, loss_fn, _, recorder = trained(TorchKit)
    state, rate, factors = recorder.checkpoints[-1]
    with pytest.raises(ValueError, match=message):
        UnsupervisedJob(model, loss_fn, X, checkpoints=[(state, rate, change(factors))]).engine  # noqa: B018
