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
