"""What runs on push is `.ci/run`, and what runs each week `.ci/pythons`, with the Pythons that the package declares."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def workflow(name):
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    return found[True], found["jobs"]  # "on" is a truth value in YAML


def test_a_push_runs_what_a_change_must_pass():
    on, jobs = workflow("ci.yml")
    assert set(on) == {"push", "pull_request"}
    (job,) = jobs.values()
    assert job["runs-on"].startswith("ubuntu")
    assert [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")] == [
        "3.11"
    ]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").exists()


def test_every_python_is_run():
    _, jobs = workflow("pythons.yml")
    (job,) = jobs.values()
    pythons = job["strategy"]["matrix"]["python"]
    script = (ROOT / ".ci" / "pythons").read_text(encoding="utf-8")
    assert re.search(r"for version in ([\d. ]+);", script).group(1).split() == pythons
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert lowest == f">={pythons[0]}"
    assert any(".ci/pythons" in step.get("run", "") for step in job["steps"])
