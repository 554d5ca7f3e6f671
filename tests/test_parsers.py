"""Files of any contents under checksums that fit: answered or refused, within limits of time and memory."""

import json
import os
from pathlib import Path

import pytest

from tests import programs
from tests.parsing import KINDS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each kind of file has a process of its own")
def test_whatever_is_in_a_file():
    done = programs.run(["-m", "tests.parsing", "25"], cwd=Path(__file__).parents[1], timeout=400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == KINDS.keys()
    bad = {kind: name for kind, names in found.items() for name in names if "ERROR" in name or "CRASH" in name}
    assert not bad
    assert all(sum(names.values()) >= 20 for names in found.values())
    assert all(any(name.startswith("refused") for name in names) for names in found.values())
