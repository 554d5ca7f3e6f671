import json
import re

import matplotlib.image
import numpy as np
import pytest

import gradindex
from gradindex.cli import demo
from gradindex.cli.app import run
from gradindex.kernels import WORDING, KernelName
from tests import programs


@pytest.fixture(scope="module", params=["torch", "tensorflow"])
def shown(request, tmp_path_factory):
    pytest.importorskip(request.param)
    path = tmp_path_factory.mktemp("demo")
    command = ["-m", "gradindex", "demo", "--backend", request.param]
    done = programs.run(command, framework=request.param, cwd=path)
    assert done.returncode == 0, done.stderr
    return request.param, path, done.stdout


def test_says_what_it_did(shown):
    _, path, text = shown
    data = "Data: scikit-learn's digits, 1,347 images of 8×8 to train on and 450 to test, in the place of MNIST."
    assert text.startswith(f"{data}\n")
    assert float(re.search(r"test accuracy (0\.\d+)", text).group(1)) > 0.93
    assert len(re.findall(r"test digit \d+, label \d, predicted \d", text)) == 6
    assert len(re.findall(r"^ +[1-5] +\d+ +\d +[\d.-]+ +\d+ +\d +[\d.-]+ *$", text, re.M)) == 30
    assert (path / "gradindex-demo" / "index" / "store.json").exists()
    picture = matplotlib.image.imread(path / "gradindex-demo" / "neighbours.png")
    assert picture.shape[0] > 300
    assert np.ptp(picture) > 0.5


def test_the_first_digit_is_asked_about_by_whitened_rows_too(shown, monkeypatch):
    backend, path, text = shown
    monkeypatch.chdir(path)
    job = demo.torch_job() if backend == "torch" else demo.tensorflow_job()
    index = gradindex.load(path / "gradindex-demo" / "index", job)
    first, *_, last = re.split(r"(?=test digit)", text.partition("Audit")[0])[1:]
    title = first.partition(",")[0]
    assert last.startswith(f"{title}, label") and "estimate" in last and "exact" not in last
    words = " ".join(text.split())
    cosine, white = (WORDING[name].sentence for name in (KernelName.COS, KernelName.WHITE_DOT))
    assert words.index(cosine) < words.index(title)
    assert words.index(f"{white} Its scores are estimates by whitened rows. {title}") > words.index(title)
    digit = demo.digits(demo.Backend(backend), 0)[2][int(title.split()[-1])]
    found = index.explain(digit[None], k=5, kernel="white_dot")
    shown_ids = re.findall(r"^ +[1-5] +(\d+) +\d +\S+ +(\d+) ", last, re.M)
    want = zip(found.ordered_indices[0], found.opponent_indices[0], strict=True)
    assert shown_ids == [(str(one), str(other)) for one, other in want]


def test_its_json_holds_both_answers(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(demo, "_fit_torch", lambda *arguments: None)
    monkeypatch.setattr(demo, "_interesting", lambda outputs, labels: np.arange(2))
    assert run(["demo", "--json", "--out", str(tmp_path / "d")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["explanation"]["meta"]["params"]["kernel"] == "grad_cos"
    white = found["whitened_explanation"]
    assert white["meta"]["params"]["kernel"] == "white_dot"
    assert np.shape(white["data"]["scores"]) == (1, 5)
    assert not np.any(white["data"]["exact"])


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
    backend, path, text = shown
    command = re.search(r"Ask more: gradindex (.*)$", text, re.M).group(1).split()
    done = programs.run(["-m", "gradindex", *command], framework=backend, cwd=path)
    assert done.returncode == 0, done.stderr
    assert "sample 14, label" in done.stdout


def test_without_the_demo_its_job_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run 'gradindex demo --backend torch' first"):
        demo.torch_job()
