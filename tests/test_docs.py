"""The documentation: its code runs as printed, and the reference builds without a warning."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradindex

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "examples" / "docs"
# What the pages take for granted.
GIVEN = """
import torch
from tests.jobs import digits, trained
x, y = digits()
model, loss_fn = trained(), torch.nn.CrossEntropyLoss()
x_train, y_train, x_test, y_test = x[:200], y[:200], x[200:], y[200:]
"""


def run(*command, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=cwd, timeout=300, env=environment
    )


def test_the_code_runs_as_printed(tmp_path):
    pages = [(DOCS / "pages" / name).read_text(encoding="utf-8") for name in ("alibi.md", "attribution.md")]
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page, re.S)]
    assert len(blocks) == 5
    done = run("-W", "error::UserWarning", "-c", "\n".join([GIVEN, *blocks]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(3, 200) (3, 5, 64)",
        "(3, 5) True",
        "(3, 5)",
        "(3, 5) (3, 5) (3, 5)",
        "(5, 3) (5, 3)",
    ]


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="pip install mkdocs-material mkdocstrings")
def test_the_reference_builds_without_a_warning(tmp_path):
    done = run("-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "mkdocs.yml"), "-d", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    for name in ("Index.explain", *gradindex.__all__):
        assert f'id="gradindex.{name}"' in pages, name
