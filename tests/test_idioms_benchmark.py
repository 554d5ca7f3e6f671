"""The short form of benchmarks/idioms.py: every model takes the factored path."""

import json
from pathlib import Path

import pytest

from tests import programs

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "idioms.py"


def test_every_model_is_factored(tmp_path):
    pytest.importorskip("transformers")
    done = programs.run([SCRIPT, "--quick", "--json", tmp_path / "found.json"])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["quick"] is True
    assert {row["model"]: row["paths"] for row in found["rows"]} == {
        row["model"]: ["factored"] for row in found["rows"]
    }
    assert len(found["rows"]) == 10
    for row in found["rows"]:
        assert row["engine/plain"] > 0
        assert row["together/apart"] > 0
