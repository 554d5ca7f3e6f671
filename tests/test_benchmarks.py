"""Scripts outside the package keep up with it: what they import exists, and two of them run in a short form."""

import ast
import json
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


def unresolved(source):
    """Return the names that a script takes from gradindex and that are not there; imports in functions count."""
    lost = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names if one.name.partition(".")[0] == "gradindex"]
            lost += [name for name in names if find_spec(name) is None]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gradindex":
            module = import_module(node.module)
            for one in node.names:
                if not hasattr(module, one.name):
                    try:
                        import_module(f"{node.module}.{one.name}")
                    except ModuleNotFoundError:
                        lost.append(f"{node.module}.{one.name}")
    return lost


def attributes(source):
    """Return ``module.name`` for each name that a script takes from a module of gradindex that it imported."""
    tree, modules = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gradindex":
            for one in node.names:
                found = getattr(import_module(node.module), one.name, None)
                if type(found) is type(ast):
                    modules[one.asname or one.name] = found
        elif isinstance(node, ast.Import) and any(one.name == "gradindex" for one in node.names):
            modules["gradindex"] = import_module("gradindex")
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in stored:
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_takes_from_the_package_is_there(path):
    if path.name == "13_quanda.py":
        pytest.importorskip("quanda")
    source = path.read_text(encoding="utf-8")
    compile(source, str(path), "exec")
    assert unresolved(source) == []
    assert list(attributes(source)) == []


def test_a_name_that_moved_away_is_seen():
    assert len(SCRIPTS) > 30
    assert unresolved("def f():\n    from gradindex.search import cascade, nothing") == ["gradindex.search.nothing"]
    assert unresolved("import gradindex.nowhere") == ["gradindex.nowhere"]
    assert list(
        attributes("import gradindex\nfrom gradindex.search import norm_scan\nnorm_scan.gone(gradindex.Job)")
    ) == ["norm_scan.gone"]


def run(tmp_path, script, *options, framework="torch"):
    """Run a benchmark; return what it measured."""
    if "GRADINDEX_DATA" not in os.environ:
        pytest.skip("GRADINDEX_DATA names no folder of data")
    out = tmp_path / "found.json"
    done = programs.run([ROOT / "benchmarks" / script, *options, "--out", out], framework=framework, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text(encoding="utf-8"))["results"]


def test_scores_agree_with_a_loop(tmp_path):
    found = run(tmp_path, "agreement.py", "--epochs", "1", "--queries", "10", framework="tensorflow")
    kernels = ("grad_dot", "grad_cos", "grad_asym_dot")
    assert [(one["backend"], one["kernel"]) for one in found] == [
        (backend, kernel) for backend in ("torch", "tensorflow") for kernel in kernels
    ]
    for one in found:
        assert 0 < one["error"] < 2e-6
        assert one["recall"] == 1
        assert one["opponent_recall"] >= 0.98


def test_no_bound_fails_and_no_proof_is_wrong(tmp_path):
    sizes = ["--models", "mlp", "--rows", "600", "--queries", "10", "--landmarks", "100", "--dims", "60"]
    (one,) = run(tmp_path, "certified.py", *sizes, "--losses", "single", "--epochs", "1", "1")
    assert (one["model"], one["rows"], one["dims"], one["pairs"]) == ("mlp", 600, 60, 6000)
    assert one["violations"] == 0
    assert one["wrong"] == 0
    assert one["proved"] == 1
    assert 10 <= one["median_checked"] < 600
