"""The short form of benchmarks/faults.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fault benchmark forks")
def test_killed_builds_and_damaged_indexes():
    command = [sys.executable, str(SCRIPT), "--kills", "9", "--damages", "300", "--states", "0", "--minutes", "0.15"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["kills"]["killed"] >= 9
    assert found["kills"]["same as undisturbed"] >= 3
    assert found["kills"]["killed: change"] > 0
    for how in ("opened", "contents checked"):
        assert sum(times for name, times in found["damages"].items() if f", {how}:" in name) == 300
    refused = [times for name, times in found["damages"].items() if name.endswith("contents checked: refused")]
    assert sum(refused) > 200
    assert found["at once"]["read a state that existed"] > 0 and found["at once"]["read the old or the new index"] > 0
