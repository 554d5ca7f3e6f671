"""Checkpoints collected by loops, Keras and Hugging Face, and refused where they do not fit."""

import subprocess
import sys

import numpy as np
import pytest

from gradindex.gradients.training.checkpoints import check_checkpoints
from gradindex.influence import CheckpointRecorder, UnsupervisedJob
from tests.influence.unsupervised_models import KerasKit, TorchKit, X


def test_what_is_recorded_does_not_change_with_the_model(models):
    model, _ = models.vae()
    recorder, before = CheckpointRecorder(), models.weights(model)
    recorder.record(model, 0.5)
    models.move(model, np.random.default_rng(0))
    state, rate, _ = recorder.checkpoints[0]
    assert rate == 0.5
    models.load(model, state)
    for one, other in zip(before, models.weights(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_keras_fit_records_every_other_epoch():
    import keras

    model, loss_fn = KerasKit.autoencoder()
    rates = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5, staircase=True)
    model.compile(keras.optimizers.SGD(rates), loss_fn)
    recorder = CheckpointRecorder()
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(model.get_weights()))
    model.fit(X, X, batch_size=7, epochs=4, verbose=0, callbacks=[recorder.keras_callback(every=2), watch])
    assert [one.learning_rate for one in recorder.checkpoints] == pytest.approx([0.1 / 4, 0.1 / 16])
    for (state, _, _), weights in zip(recorder.checkpoints, seen[1::2], strict=True):
        for one, other in zip(state, weights, strict=True):
            np.testing.assert_array_equal(one, other)
    job = UnsupervisedJob(model, loss_fn, X, checkpoints=recorder.checkpoints)
    assert job.engine.size == 2 * sum(w.size for w in model.get_weights())


@pytest.mark.parametrize(("unit", "every", "wanted"), [("epoch", 1, 3), ("epoch", 2, 1), ("step", 2, 3)])
def test_a_hugging_face_trainer_records(unit, every, wanted, tmp_path):
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    transformers = pytest.importorskip("transformers.trainer", reason="no Trainer", exc_type=ImportError)
    import torch
    from torch import nn

    class Regressor(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 1)

        def forward(self, x, labels):
            out = self.layer(x)[:, 0]
            return {"loss": nn.functional.mse_loss(out, labels), "logits": out}

    data = [{"x": torch.from_numpy(x), "labels": torch.tensor(1.0)} for x in X]
    options = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=7, learning_rate=0.1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    recorder, model = CheckpointRecorder(adam=True), Regressor()
    trainer = transformers.Trainer(
        model, options, train_dataset=data, callbacks=[recorder.trainer_callback(every, unit)]
    )
    trainer.train()
    rates = [checkpoint.learning_rate for checkpoint in recorder.checkpoints]
    linear = 0.1 * (1 - np.arange(6) / 6)  # of each of the 6 steps; the last one's is not yet 0
    ends = {("epoch", 1): [1, 3, 5], ("epoch", 2): [3], ("step", 2): [1, 3, 5]}[unit, every]
    assert len(rates) == wanted
    assert rates == pytest.approx(linear[ends])
    if ends[-1] == 5:
        torch.testing.assert_close(recorder.checkpoints[-1].state["layer.weight"], model.layer.weight.detach())
        second = trainer.optimizer.state[model.layer.bias]["exp_avg_sq"] / (1 - 0.999**6)
        np.testing.assert_allclose(
            recorder.checkpoints[-1].preconditioner[1], 1 / (second.sqrt() + 1e-8).numpy(), rtol=1e-5
        )


def test_checkpoints_may_be_files(tmp_path):
    import torch

    model, _ = TorchKit.vae()
    torch.save(model.state_dict(), tmp_path / "torch.pt")
    ((state, rate, _),) = check_checkpoints(model, [(tmp_path / "torch.pt", 0.1)])
    assert rate == 0.1
    torch.testing.assert_close(dict(state), dict(model.state_dict()))
    model, _ = KerasKit.vae()
    model.save_weights(tmp_path / "keras.weights.h5")
    saved = KerasKit.weights(model)
    KerasKit.move(model, np.random.default_rng(0))
    before = KerasKit.weights(model)
    ((state, _, _),) = check_checkpoints(model, [(str(tmp_path / "keras.weights.h5"), 0.1)])
    for one, other in zip(saved, state, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(before, KerasKit.weights(model), strict=True):
        np.testing.assert_array_equal(one, other)


def torch_state(**changes):
    return TorchKit.vae()[0].state_dict() | changes


class Groups:
    param_groups = ({"lr": 0.1}, {"lr": 0.2})


@pytest.mark.parametrize(
    ("checkpoints", "error", "message"),
    [
        ([], ValueError, "There are no checkpoints"),
        (3, TypeError, r"must be a sequence of \(state, learning_rate\)"),
        ([{}], TypeError, r"must be a sequence of \(state, learning_rate\)"),
        ([(torch_state(), 0)], ValueError, "positive and finite, got 0.0"),
        ([(torch_state(), np.nan)], ValueError, "positive and finite, got nan"),
        ([(torch_state(), 0.1), ([], 0.1)], ValueError, "Checkpoint 1 is not of this model: expected a state_dict"),
        ([(torch_state(more=np.ones(3)), 1)], ValueError, r"'more' has shape \(3,\), expected None"),
        ([({}, 1)], ValueError, "'encoder.0.weight' has shape None, expected"),
        ([("no.pt", 1)], FileNotFoundError, "There is no checkpoint .*no.pt"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(checkpoints, error, message):
    with pytest.raises(error, match=message):
        check_checkpoints(TorchKit.vae()[0], checkpoints)


def test_keras_checkpoints_that_do_not_fit_are_refused():
    model, _ = KerasKit.vae()
    weights = model.get_weights()
    with pytest.raises(ValueError, match=r"expected the list of get_weights\(\), got dict"):
        check_checkpoints(model, [({}, 1)])
    with pytest.raises(ValueError, match="it has 1 weights, the model 8"):
        check_checkpoints(model, [(weights[:1], 1)])
    with pytest.raises(ValueError, match=r"weight '0 .*' has shape \(1,\), expected \(12, 7\)"):
        check_checkpoints(model, [([np.ones(1), *weights[1:]], 1)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.record(TorchKit.vae()[0], Groups()), r"several learning rates, \[0.1, 0.2\]: give one number"),
        (lambda r: r.record(TorchKit.vae()[0], -1), "positive and finite, got -1.0"),
        (lambda r: r.keras_callback(0), "every must be a positive integer, got 0"),
        (lambda r: r.trainer_callback(1, "week"), "Unknown unit 'week'"),
        (lambda r: r.trainer_callback(True, "step"), "every must be a positive integer, got True"),
    ],
)
def test_recording_refuses(call, message):
    if "every" in message and "True" in message:
        pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=message):
        call(CheckpointRecorder())


def test_transformers_loads_only_for_its_callback(monkeypatch):
    code = (
        "import sys, gradindex.influence as i; i.CheckpointRecorder(); i.TracInEngine; i.UnsupervisedJob; "
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "gradindex.gradients.training.transformers_callback", raising=False)
    with pytest.raises(ImportError, match="Type: pip install transformers accelerate"):
        CheckpointRecorder().trainer_callback()


def test_importing_influence_loads_next_to_nothing():
    heavy = ("torch", "tensorflow", "keras", "faiss", "scipy", "sklearn", "matplotlib", "transformers", "pyarrow")
    code = f"import sys, gradindex.influence as i; i.KNNInfluence; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_unknown_names_are_attribute_errors():
    import gradindex.influence

    with pytest.raises(AttributeError, match=r"module 'gradindex.influence' has no attribute 'nothing'"):
        gradindex.influence.nothing  # noqa: B018
    assert all(hasattr(gradindex.influence, name) for name in gradindex.influence.__all__)
