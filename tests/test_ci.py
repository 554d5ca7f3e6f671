"""`.ci/run` does what a reader of the README does, and prepares nothing that a reader would not have."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = re.findall(r"^python3 -m venv .*", (ROOT / "README.md").read_text(), re.MULTILINE)
CHECKS = (".venv/bin/ruff ", ".venv/bin/mypy ", ".venv/bin/lint-imports ")
# Every command writes itself into a log. A new environment holds such commands, and none can be made where one is.
LOGS = """#!/usr/bin/env bash
echo "{name} $*" >>"$LOG"
"""
PYTHON = """
set -e
mkdir "$3" "$3/bin"
for name in pip python gradindex ruff mypy lint-imports; do
  sed "s|^echo .*|echo \\"$3/bin/$name \\$*\\" >>\\"\\$LOG\\"|" "$0" | head -2 >"$3/bin/$name"
  chmod +x "$3/bin/$name"
done
"""


def command(path, text=""):
    path.parent.mkdir(exist_ok=True)
    path.write_text(LOGS.format(name=path.name) + text)
    path.chmod(0o755)


def commands_run(folder):
    """The commands of `.ci/run` in a folder that holds an old environment, as lines of words."""
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    shutil.copy(ROOT / "README.md", folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    command(folder / ".ci" / "optional")
    command(folder / "bin" / "python3", PYTHON)
    command(folder / "bin" / "git", r'printf "README.md\0"')
    for name in ("chromium", "pip", "pip3", "uv", "python"):
        command(folder / "bin" / name)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(folder / "log")}
    done = subprocess.run(
        ["bash", folder / ".ci" / "run"], capture_output=True, text=True, timeout=60, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return (folder / "log").read_text().splitlines()


def test_the_readmes_lines_are_run_as_they_stand(tmp_path):
    wanted = [" ".join(shlex.split(part)) for line in LINES for part in line.split(" && ")]
    found = [line for line in commands_run(tmp_path) if not line.startswith((*CHECKS, "git "))]
    assert found == [*wanted, "optional "]


def test_linters_and_types_are_checked_before_the_tests(tmp_path):
    found = commands_run(tmp_path)
    checks = [line for line in found if line.startswith(CHECKS)]
    ruff = [".venv/bin/ruff check .", ".venv/bin/ruff format --check ."]
    assert checks == [*ruff, ".venv/bin/mypy ", ".venv/bin/lint-imports --no-cache"]
    assert max(map(found.index, checks)) < found.index(".venv/bin/python -m pytest")
