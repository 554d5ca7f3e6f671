import json
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

import gradindex
from gradindex.cli import demo


@pytest.fixture(scope="module", params=["torch", "tensorflow"])
def shown(request, tmp_path_factory):
    pytest.importorskip(request.param)
    path = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "gradindex", "demo", "--backend", request.param]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path, timeout=300)
    assert done.returncode == 0, done.stderr
    return request.param, path, done.stdout


def test_says_what_it_did(shown):
    _, path, text = shown
    assert float(re.search(r"test accuracy (0\.\d+)", text).group(1)) > 0.93
    assert len(re.findall(r"test digit \d+, label \d, predicted \d", text)) == 5
    assert len(re.findall(r"^ +[1-5] +\d+ +\d +[\d.-]+ +\d+ +\d +[\d.-]+ *$", text, re.M)) == 25
    assert (path / "gradindex-demo" / "index" / "store.json").exists()
    picture = matplotlib.image.imread(path / "gradindex-demo" / "neighbours.png")
    assert picture.shape[0] > 300
    assert np.ptp(picture) > 0.5


def test_the_audit_shown_is_the_one_measured(shown, monkeypatch):
    backend, path, text = shown
    saved = json.loads((path / "gradindex-demo" / "index" / "audit.json").read_text())
    row = re.search(r"recall@10, with 50 exact checks +(\S+) +(\S+) to (\S+)", text)
    assert row.group(1) == f"{saved['recall']:.4f}"
    assert row.group(2) == f"{saved['recall_interval'][0]:.4f}"
    assert saved["recall"] >= 0.99
    monkeypatch.chdir(path)
    job = demo.torch_job() if backend == "torch" else demo.tensorflow_job()
    again = gradindex.load(path / "gradindex-demo" / "index", job).verify(queries=200, k=10).to_json()
    for name in set(saved) - {"seconds", "seal", "stages", "pairs"}:
        same = saved[name] if isinstance(saved[name], str) else pytest.approx(saved[name], abs=1e-4)
        assert again[name] == same, name


def test_most_neighbours_have_the_predicted_class(shown):
    _, _, text = shown
    shares = []
    for table in re.split(r"(?=test digit)", text)[1:]:
        predicted = re.search(r"predicted (\d)", table).group(1)
        labels = re.findall(r"^ +[1-5] +\d+ +(\d) ", table, re.M)
        shares.append(np.mean([label == predicted for label in labels]))
    assert np.mean(shares) >= 0.9


def test_what_it_suggests_works(shown):
    _, path, text = shown
    command = re.search(r"Ask more: gradindex (.*)$", text, re.M).group(1).split()
    done = subprocess.run(
        [sys.executable, "-m", "gradindex", *command], capture_output=True, text=True, cwd=path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "sample 14, label" in done.stdout


def test_without_the_demo_its_job_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run 'gradindex demo --backend torch' first"):
        demo.torch_job()
