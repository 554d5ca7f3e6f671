import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradindex.cli.app import app

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_python_runs_as_printed(tmp_path):
    """All Python blocks, one after the other, as a reader would paste them."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(blocks("python"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "(3, 500) (3, 5, 64)" in done.stdout
    assert "recall@10, 50 exact checks" in done.stdout


def test_the_commands_exist_with_the_options_shown():
    from typer.main import get_command

    commands = get_command(app).commands
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("gradindex ")]
    assert len(lines) >= 9
    for line in lines:
        words = line.split()
        known = {option for parameter in commands[words[1]].params for option in parameter.opts}
        assert {word for word in words if re.match(r"-{1,2}[a-z]", word)} <= known


def test_the_two_lines_of_the_first_screen():
    first = README.splitlines()[:26]
    commands = [line for line in first if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert "gradindex demo" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(path):
    assert (Path(__file__).parents[1] / path).exists(), path
