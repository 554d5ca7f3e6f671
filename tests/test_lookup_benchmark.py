"""The short form of benchmarks/lookup.py: real gradients, and recall against the exact kernel above its floor."""

import json
import os
from pathlib import Path

import pytest

from tests import programs

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "lookup.py"


@pytest.mark.skipif("GRADINDEX_DATA" not in os.environ, reason="Fashion-MNIST is not at hand")
def test_recall_and_proofs_on_real_gradients(tmp_path):
    options = ["--rows", "3000", "--queries", "60", "--proofs", "10", "--epochs", "1", "--parts", "index", "proofs"]
    done = programs.run([SCRIPT, *options, "--folder", tmp_path, "--out", tmp_path / "found.json"])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert found["index"]["index_bytes_per_row"] <= 300
    assert found["index"]["checked"]["recall@10"] >= 0.99
    assert found["index"]["checked"]["opponents' recall@10"] >= 0.98
    assert found["index"]["checked"]["checks"] <= 100
    assert found["index"]["unchecked"]["recall@10"] >= 0.8
    for kernel in ("grad_cos", "grad_dot", "grad_asym_dot"):
        assert found["proofs"][kernel]["recall@10"] == 1
        assert found["proofs"][kernel]["opponents' recall@10"] == 1
        assert found["proofs"][kernel]["proved"] == 1
