"""The short form of benchmarks/recall.py: answers hold what was wanted, on queries that calibrated nothing."""

import json
import os
from pathlib import Path

import pytest

from tests import programs

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "recall.py"


@pytest.mark.skipif("GRADINDEX_DATA" not in os.environ, reason="the vehicles are not at hand")
def test_calibrated_recall_on_real_gradients(tmp_path):
    options = ["--cases", "vehicle", "--queries", "400", "--epochs", "2"]
    done = programs.run([SCRIPT, *options, "--out", tmp_path / "found.json"])
    assert "Traceback" not in done.stderr, done.stderr  # the exit code says whether 200 queries were lucky
    (split,) = json.loads((tmp_path / "found.json").read_text())["results"]["vehicle"]["splits"]
    assert split["queries"] == [200, 200]
    for wanted in ("0.9", "0.99"):
        found = split["wanted"][wanted]
        assert found["interval"][1] >= float(wanted) - 0.005
        assert found["median checks"] < split["rerank=50"]["median checks"]
    assert "it takes 999 or more" in split["wanted"]["0.999"]["refused"]
