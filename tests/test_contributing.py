"""CONTRIBUTING.md: a map of ten lines at most, recipes of five, and paths that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^\*\*(.+?)\.\*\*\n((?:.+\n)+)", TEXT, re.M)


def test_the_map_has_at_most_ten_lines():
    (block,) = re.findall(r"## The map\n.*?```\n(.*?)```", TEXT, re.S)
    assert 0 < len(block.splitlines()) <= 10


def test_the_map_shows_every_folder():
    (block,) = re.findall(r"## The map\n.*?```\n(.*?)```", TEXT, re.S)
    words = {word for line in block.splitlines() for word in re.split(r"\s+", re.split(r"\s{3,}", line)[0])}
    folders = {path.name for path in (ROOT / "gradindex").iterdir() if (path / "__init__.py").exists()}
    assert {path for path in folders if path not in words} == set()
    assert {word for word in words if not (ROOT / "gradindex" / word).exists()} == set()


@pytest.mark.parametrize(("title", "body"), RECIPES)
def test_a_recipe_has_five_lines(title, body):
    steps = [line for line in body.splitlines() if re.match(r"\d\. ", line)]
    assert [step[0] for step in steps] == list("12345"), title


def test_the_recipes_are_those_that_are_asked_for():
    assert [title for title, _ in RECIPES] == [
        "Add a layer rule for torch",
        "Add a sketch",
        "Add a kernel",
        "Change how a shard is published",
        "Add a dataset type",
        "Add a command-line option to `build`",
    ]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:gradindex|tests|benchmarks|examples)/[^`\s]*)`", TEXT))))
def test_paths_exist(path):
    assert (ROOT / path).exists()


def test_build_is_where_its_recipe_says():
    (body,) = [body for title, body in RECIPES if "command-line" in title]
    (path,) = re.findall(r"to `build` in `(\S+)`", body)
    assert "def build(" in (ROOT / path).read_text(encoding="utf-8")
