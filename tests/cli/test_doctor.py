import json

import pytest

from gradindex.cli.app import run
from gradindex.cli.doctor import examine
from tests.jobs import ROWS, digits_job


def test_it_finds_versions_paths_and_speed(capsys, monkeypatch):
    monkeypatch.setattr("gradindex.cli.doctor._SECONDS", 0.2)
    assert run(["doctor", "tests.jobs:digits_job", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"gradindex", "numpy", "torch", "faiss threads", "torch devices"} <= set(found["environment"])
    job = found["job"]
    assert job["gradients_agree"]
    assert 0 < job["largest_error"] < 1e-5
    assert job["paths"] == dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias"], "factored")
    assert job["whole_dataset_seconds"] == pytest.approx(ROWS / job["rows_per_second"])
    assert run(["doctor"]) == 0
    assert "OMP NUM THREADS" in capsys.readouterr().out


def test_wrong_gradients_are_noticed(monkeypatch, capsys):
    monkeypatch.setattr("gradindex.cli.doctor._SECONDS", 0.1)
    job = digits_job()
    real = type(job.engine).gradients

    def wrong(self, x, y):
        found = real(self, x, y)
        found.gradients[0, 7] += 0.1
        return found

    monkeypatch.setattr(type(job.engine), "gradients", wrong)
    assert not examine(job, 8)["gradients_agree"]
    assert run(["doctor", "tests.jobs:digits_job"]) == 1
    assert "The gradients differ from the plain loop's by" in " ".join(capsys.readouterr().err.split())


def test_it_says_how_much_of_the_model_is_in_the_rows(monkeypatch, capsys):
    import torch

    from gradindex.job import Job

    monkeypatch.setattr("gradindex.cli.doctor._SECONDS", 0.1)

    class Mixture(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            self.idle, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(sum(expert(x) for expert in self.experts) + 0 * self.idle(x))

    torch.manual_seed(0)
    model, data = Mixture(), (torch.randn(9, 4), torch.arange(9) % 2)
    found = examine(Job(model, torch.nn.functional.cross_entropy, data), 8)
    assert found["modules"]["experts.*"] == {"numbers": 60, "trainable": 60, "attributed": 60}
    assert found["share_of_the_model"] == 1
    assert found["warnings"] == [
        "Nothing in idle had a gradient in the samples that were compared. Does the model use it?"
    ]
    model.idle.requires_grad_(False)
    found = examine(Job(model, torch.nn.functional.cross_entropy, data, parameters="last_layer"), 8)
    assert found["share_of_the_model"] == 10 / 90
    assert found["share_of_what_is_trainable"] == 10 / 70
    (warning,) = found["warnings"]
    assert warning.startswith("60 numbers that may be trained are left out of the rows, in experts.*. Rows say nothing")
    monkeypatch.setattr("gradindex.cli.inputs.job_of", lambda _: Job(model, torch.nn.functional.cross_entropy, data))
    assert run(["doctor", "any:job"]) == 0
    assert "experts.*" in capsys.readouterr().out


def test_it_knows_kerass_modules(monkeypatch):
    keras = pytest.importorskip("keras")
    from gradindex.gradients import make_engine
    from gradindex.gradients.shares import shares
    from gradindex.words import Backend

    model = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(3, name="first"), keras.layers.Dense(2, name="last")]
    )
    model.layers[0].trainable = False
    engine = make_engine(model, keras.losses.MeanSquaredError(), backend=Backend.TENSORFLOW)
    first, last = shares(model, engine)
    assert (first.numbers, first.trainable, first.attributed) == (15, 0, 0)
    assert (last.numbers, last.trainable, last.attributed) == (8, 8, 8)
