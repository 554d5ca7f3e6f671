"""Programs that use gradindex are type-checked with its own types: `py.typed` is there and says the truth."""

import configparser
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import gradindex
from tests import typed_example
from tests.jobs import ROWS, digits, trained

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages, as pip fills one, with gradindex in it, and mypy's settings and cache beside it."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "site" / "gradindex").mkdir(parents=True)
    for path in (ROOT / "gradindex").iterdir():
        if path.name != "__pycache__":
            (folder / "site" / "gradindex" / path.name).symlink_to(path)
    settings = configparser.ConfigParser()
    settings["mypy"] = {"strict": "True", "cache_dir": str(folder / "cache")}
    for override in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]:
        for module in override["module"]:  # frameworks are large, and not followed
            settings[f"mypy-{module}"] = {"ignore_missing_imports": "True", "follow_imports": "skip"}
    with (folder / "mypy.ini").open("w") as file:
        settings.write(file)
    return folder


def checked(folder, text):
    (folder / "program.py").write_text(text)
    python = folder / "python"  # another name than that of mypy's own: it then asks for the path of packages
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", python, "program.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
    )
    return done.returncode, done.stdout + done.stderr


def test_a_typed_program_passes(site):
    text = Path(typed_example.__file__).read_text()
    assert checked(site, text) == (0, "Success: no issues found in 1 source file\n")
    wrong = text.replace("return ids\n", "return answer\n").replace(
        "gradindex.CountSketch(256)", "gradindex.Sketched(256)"
    )
    code, said = checked(site, wrong)
    assert code == 1 and 'got "Explanation"' in said and 'has no attribute "Sketched"' in said
    (site / "site" / "gradindex" / "py.typed").unlink()
    code, said = checked(site, text)
    assert code == 1 and "py.typed marker" in said


def test_the_typed_program_runs(tmp_path):
    x, y = digits(ROWS + 3)
    job = typed_example.job_of(trained(), x[:ROWS], y[:ROWS])
    ids = typed_example.nearest(job, tmp_path, x[ROWS:])
    assert ids.shape == (3, 5) and ids.dtype == np.int64
    index = gradindex.load(tmp_path / "index", job)
    assert len(typed_example.suspicious(index, x[:2])) == 7
    (tmp_path / "d.csv").write_text("id,decision,new_label\n3,remove,\n")
    assert typed_example.removed(tmp_path / "d.csv").tolist() == [3]
