"""The page "Larger than one machine", line by line, on the two-node cluster."""

import os
import re
import shlex
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq

import gradindex
from gradindex.cli.app import run
from gradindex.job import load_job
from tests import programs
from tests.distributed.test_build import files
from tests.jobs import ROWS, digits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples/docs/pages/cluster.md").read_text(encoding="utf-8")


def block(language, shared):
    """Return the page's block of a language; what it calls /shared lies elsewhere here."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    assert "/shared/digits" in found
    return found.replace("/shared", str(shared))


def follow(nodes, folder, *command):
    """Run Python in a folder as on a machine of the cluster; return what it prints."""
    environment = {**os.environ, "RAY_ADDRESS": nodes.address, "PYTHONPATH": str(ROOT)}
    done = programs.run(command, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_is_followed_line_by_line(nodes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    here = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"  # workers know the module by its path alone
    (tmp_path / "my_model.py").write_text(f"{here}from tests.jobs import digits_job as job\n")
    lines = [shlex.split(line) for line in block("sh", shared).strip().splitlines()]
    assert [line[:2] for line in lines] == [["gradindex", name] for name in ("plan", "build", "export")]
    plan, build, export = (line[1:] for line in lines)

    assert run([*plan, "--seconds", "1"]) == 0
    assert "1,000,000,000 rows, 64 worker(s) as fast as this process" in " ".join(capsys.readouterr().out.split())

    follow(nodes, tmp_path, "-m", "gradindex", *build)
    here = gradindex.build(load_job(f"{tmp_path}/my_model.py:job"), tmp_path / "here")
    assert files(shared / "digits") == files(tmp_path / "here")

    assert run(export) == 0
    assert sorted(pq.read_table(shared / "parquet")["id"].to_pylist()) == list(range(ROWS))
    assert faiss.read_index(str(shared / "digits.faiss")).ntotal == ROWS

    program = tmp_path / "program.py"
    program.write_text("import gradindex\nfrom tests.jobs import digits\nx, y = digits()\n" + block("py", shared))
    found = follow(nodes, tmp_path, str(program))
    want = here.explain(digits()[0][:3], k=5)
    np.testing.assert_array_equal(np.array(re.findall(r"\d+", found), int), want.ordered_indices.ravel())
