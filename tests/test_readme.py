"""The README: short, its code runs as printed, its first screen holds the two lines, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from tests import programs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_python_runs_as_printed(tmp_path):
    """As a reader would paste it: a model is trained, indexed, explained and audited."""
    (block,) = blocks("python")
    assert len(block.splitlines()) <= 25
    done = programs.run(
        [
            "-W",
            "error::UserWarning",
            "-c",
            f"{block}\nprint(result.exact.all())\nprint(float((model(x[1500:]).argmax(1) == y[1500:]).float().mean()))",
        ],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    *_, exact, accuracy = done.stdout.splitlines()
    assert "recall@10, 50 exact checks" in done.stdout
    assert exact == "True"
    assert float(accuracy) > 0.8


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert max(map(len, README.splitlines())) <= 250


def test_the_two_lines_of_the_first_screen():
    first = README.splitlines()[:26]
    commands = [line for line in first if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert "gradindex demo" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)[)#]", README))))
def test_links_lead_somewhere(path):
    assert (Path(__file__).parents[1] / path).exists(), path
