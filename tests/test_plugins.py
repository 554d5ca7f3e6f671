"""Sketches and metrics of another package: found by their names, loaded when asked for, named in errors."""

import sys

import numpy as np
import pytest

import gradindex
from gradindex import relevance
from gradindex.cli.app import run
from gradindex.runtime import plugins
from gradindex.sketch import base, from_json
from tests import programs
from tests.jobs import ROWS, digits, digits_job

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradindex.gradients.projector import Projector
from gradindex.relevance import FeatureMap
from gradindex.sketch import Sketch


@dataclass(frozen=True)
class First(Sketch):
    """The gradients of the first parameter that has enough numbers: no good sketch, but a linear one."""

    dim: int = 10
    sign: int = 1
    kind: ClassVar[str] = "acme-first"

    def bind(self, parameters, seed):
        return _First(self, next(one.name for one in parameters if one.size >= self.dim))


class _First(Projector):
    def __init__(self, options, name):
        self.dim, self._sign, self._name = options.dim, options.sign, name

    def add(self, out, parameter, gradients):
        if parameter.name == self._name:
            out += self._sign * gradients[:, : self.dim]


halves = FeatureMap("cos", lambda job, x: np.stack([x[:, :32].sum(axis=1), x[:, 32:].sum(axis=1)], axis=1))
far = FeatureMap("l2", lambda job, x: np.asarray(x)[:, :3])
short = FeatureMap("dot", lambda job, x: np.zeros((1, 2)))
number = 7
'''
POINTS = """
[gradindex.sketches]
acme-first = acme_plugin:First
acme-number = acme_plugin:number
acme-other = acme_plugin:First
acme-broken = acme_broken:First
countsketch = acme_plugin:First

[gradindex.metrics]
acme-halves = acme_plugin:halves
acme-far = acme_plugin:far
acme-short = acme_plugin:short
acme-number = acme_plugin:number
acme-gone = acme_plugin:gone
GC = acme_plugin:far
"""


def distribution(folder, name, points):
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def acme(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    distribution(folder, "acme", POINTS)
    (folder / "acme_plugin.py").write_text(MODULE)
    (folder / "acme_broken.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("acme_plugin", None)
    base._KINDS.pop("acme-first", None)


def test_a_sketch_is_loaded_when_its_kind_is_asked_for(acme, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown sketch 'nothing'.*'acme-first' \| .*'sjlt'"):
        from_json({"kind": "nothing"})
    assert "acme_plugin" not in sys.modules
    sketch = from_json({"kind": "acme-first", "dim": 8, "sign": -1})
    assert type(sketch).__module__ == "acme_plugin" and (sketch.dim, sketch.sign) == (8, -1)
    with pytest.raises(ValueError, match="Bad options for sketch 'acme-first'"):
        from_json({"kind": "acme-first", "width": 8})
    built = gradindex.build(digits_job(), tmp_path / "i", sketch=sketch)
    x, y = digits()
    rows = digits_job().engine.gradients(x[:5], y[:5]).gradients[:, :8]
    wanted = -rows / np.linalg.norm(rows, axis=1, keepdims=True)
    given = built.sketch(x[:5], y[:5])
    assert given.shape == (5, 8)
    assert np.allclose(given / np.linalg.norm(given, axis=1, keepdims=True), wanted, atol=1e-3)


def test_a_store_opens_in_another_process_and_says_who_is_missing(acme, tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", sketch=from_json({"kind": "acme-first"}))
    code = (
        f"import sys; sys.path[:0] = [{str(acme)!r}]\n"
        "import gradindex\nfrom tests.jobs import digits_job, digits\n"
        f"print(gradindex.Store.open({str(tmp_path / 'i')!r}).norms.shape)\n"
        f"index = gradindex.load({str(tmp_path / 'i')!r}, digits_job())\n"
        "print(index.explain(digits()[0][:1], k=1).ordered_indices.shape)\n"
    )
    done = programs.run(["-c", code])
    assert done.stdout.splitlines() == ["(240,)", "(1, 1)"], done.stderr
    lost = programs.run(["-c", code.split("\n", 1)[1]])
    assert lost.stdout == "(240,)\n" and "Unknown sketch 'acme-first'" in lost.stderr


def test_own_kinds_come_first(acme):
    assert type(from_json({"kind": "countsketch"})) is gradindex.CountSketch
    assert relevance.parse("GC") == ("cos", "grad")
    assert "acme_plugin" not in sys.modules


@pytest.mark.parametrize("ask", [lambda name: from_json({"kind": name}), relevance.parse])
def test_what_is_no_sketch_or_metric_is_named(acme, ask):
    with pytest.raises(TypeError, match=r"plugin 'acme-number' of package acme 1.2 \(acme_plugin:number, group grad"):
        ask("acme-number")


def test_errors_name_the_plugin(acme):
    with pytest.raises(TypeError, match=r"plugin 'acme-other' .* is no subclass of .* with that kind"):
        from_json({"kind": "acme-other"})
    with pytest.raises(ImportError, match=r"plugin 'acme-broken' of package acme 1.2 .* RuntimeError: no licence"):
        from_json({"kind": "acme-broken"})
    with pytest.raises(ImportError, match=r"plugin 'acme-gone' of package acme 1.2 .* AttributeError"):
        relevance.parse("acme-gone")
    distribution(acme.parent / "second", "rival", "[gradindex.metrics]\nacme-halves = rival:one\n")
    sys.path.insert(0, str(acme.parent / "second"))
    try:
        with pytest.raises(ValueError, match=r"Several packages.*package (rival|acme) 1.2.*package (acme|rival) 1.2"):
            relevance.parse("acme-halves")
    finally:
        sys.path.remove(str(acme.parent / "second"))


def test_a_kind_is_not_taken_over():
    with pytest.raises(TypeError, match=r"has the kind 'sjlt' of gradindex.sketch.sjlt.SJLT"):
        type("Other", (base.Sketch,), {"kind": "sjlt", "__module__": "other"})
    assert type(from_json({"kind": "sjlt"})) is gradindex.SJLT


def test_a_metric_of_a_package(acme, tmp_path):
    x, y = digits(ROWS + 4)
    job = digits_job()
    rows = np.stack([x[:, :32].sum(axis=1), x[:, 32:].sum(axis=1)], axis=1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = rows[ROWS:] @ rows[:ROWS].T
    assert np.allclose(relevance.metric("acme-halves", job).scores(x[ROWS:], y[ROWS:]), wanted)
    built = gradindex.build(job, tmp_path / "i", metric="acme-halves")
    index = gradindex.load(tmp_path / "i", job)
    assert index.store.header.metric["name"] == "acme-halves"
    for one in (built, index):
        found = one.explain(x[ROWS:], k=3)
        assert np.allclose(found.scores, -np.sort(-wanted, axis=1)[:, :3], atol=1e-5)
    far = relevance.metric("acme-far", job).scores(x[ROWS:])
    assert np.allclose(far, -((x[ROWS:, None, :3] - x[None, :ROWS, :3]) ** 2).sum(axis=2), atol=1e-5)
    with pytest.raises(ValueError, match=r"'acme-far' is no inner product.* Use gradindex.relevance.metric"):
        relevance.spec("acme-far")
    with pytest.raises(
        ValueError, match=r"plugin of the metric 'acme-short' returned float64 values of shape \(1, 2\)"
    ):
        relevance.metric("acme-short", job).scores(x[:3])
    with pytest.raises(ValueError, match=r"Unknown metric 'nothing'.*'acme-halves'"):
        relevance.parse("nothing")
    with pytest.raises(ValueError, match="Unknown similarity 'near'"):
        relevance.FeatureMap("near", lambda job, x: x)


def test_the_commands_take_plugins(acme, tmp_path, capsys):
    asked = ["build", "tests.jobs:digits_job", str(tmp_path / "s"), "--sketch", "acme-first", "--dim", "12"]
    assert run(asked) == 0
    assert gradindex.Store.open(tmp_path / "s").header.sketch["kind"] == "acme-first"
    assert run(["build", "tests.jobs:digits_job", str(tmp_path / "m"), "--metric", "acme-halves"]) == 0
    capsys.readouterr()
    assert run(["build", "tests.jobs:digits_job", str(tmp_path / "n"), "--sketch", "nothing"]) == 2
    assert "Unknown sketch 'nothing'" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_names_are_listed_without_an_import(acme):
    assert {"acme-far", "acme-halves"} <= set(plugins.names(plugins.METRICS))
    assert "acme_plugin" not in sys.modules
