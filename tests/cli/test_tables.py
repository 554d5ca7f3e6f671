"""What people named is printed as it is, and ids and scores whatever the width."""

import json
import re

import numpy as np
import pytest

import gradindex
from gradindex.cli import console
from gradindex.cli.app import run
from gradindex.kernels import WORDING, KernelName
from gradindex.plots.read import class_name
from tests.jobs import ROWS, digits_job

NAMES = ["[other]", "a [b] c", "van [/misc]", ":dog:", "back\\", "[bold]x", "$5 and $6", "\ud800 broken"]
COLUMNS = {
    "speed [/s]": [i / 3 for i in range(ROWS)],
    ":cat:": [f"[red]{i}[/red]" for i in range(ROWS)],
    "file": [f"/data/2024/scans/batch_{i:03}.png" for i in range(ROWS)],
    "annotator": ["second-reader@example.org"] * ROWS,
    "a=b": ["yes" if i % 2 else "no" for i in range(ROWS)],
}


def job():
    """Class names and columns that other programs would read as markup; fewer names than classes."""
    return digits_job(class_names=NAMES, columns=COLUMNS)


JOB = "tests.cli.test_tables:job"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("[b]tables") / ":dog:"
    gradindex.build(job(), path)
    return path


def cli(capsys, *arguments):
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("width", [400, 120, 80, 60, 40, 20])
def test_ids_and_scores_at_every_width(path, capsys, monkeypatch, width):
    monkeypatch.setattr(console.out, "width", width)
    call = "explain", path, JOB, "--ids", "1,8", "-k", 3
    data = json.loads(cli(capsys, *call, "--json")[1])["data"]
    code, text, _ = cli(capsys, *call)
    assert code == 0
    words = text.split()
    for side in ("ordered_indices", "opponent_indices"):
        assert all(str(i) in words for line in data[side] for i in line)
    for side in ("scores", "opponent_scores"):
        assert all(f"{value:.4g}" in words for line in data[side] for value in line)
    shown = [name for name in COLUMNS if name in text.replace(f"no room for {', '.join(COLUMNS)}", "")]
    if width == 400:
        assert shown == list(COLUMNS) and "no room" not in text
        assert f"[red]{data['ordered_indices'][0][1]}[/red]" in text
    if width <= 60:
        assert f"no room for {', '.join(sorted(COLUMNS))}" in " ".join(words)
    if width >= 80:
        assert max(map(len, text.splitlines())) <= width


def test_names_are_printed_as_they_are(path, capsys, monkeypatch):
    monkeypatch.setattr(console.out, "width", 400)
    code, text, _ = cli(capsys, "explain", path, JOB, "--ids", ",".join(map(str, range(10))), "-k", 2)
    assert code == 0
    for name in [*NAMES[:7], "? broken", "label 8", "label 9"]:
        assert name in text
    code, text, _ = cli(capsys, "info", path)
    assert code == 0 and str(path) in text and "speed [/s]" in text and ":cat:" in text
    code, _, said = cli(capsys, "explain", path, JOB, "--ids", 1, "--where", "[red]=1")
    assert code == 1 and "There is no column '[red]'" in " ".join(said.split())


def test_a_condition_on_a_name_with_an_equals_sign(path, capsys):
    call = "explain", path, JOB, "--ids", 1, "-k", 3, "--where", "a=b=no", "--json"
    ids = json.loads(cli(capsys, *call)[1])["data"]["ordered_indices"][0]
    assert all(i % 2 == 0 for i in ids)


@pytest.mark.parametrize(
    ("value", "name"),
    [(0, "a"), (1.0, "b"), (np.int64(2), "2"), (-1, "-1"), (-1.0, "-1"), (0.5, "0.5"), (np.nan, "nan"), ("x", "x")],
)
def test_names_of_classes(value, name):
    assert class_name(["a", "b"], value) == name


@pytest.mark.parametrize("option", [("--rows", "s3://b/x.npz"), ("--plot", "s3://b/x.png")])
def test_files_on_this_machine_are_no_urls(path, capsys, option):
    command = ["explain", path, JOB] if option[0] == "--rows" else ["verify", path, JOB]
    code, _, said = cli(capsys, *command, *option)
    said = re.sub(r"\W+", " ", said)
    assert code == 2 and "takes a path on this machine got s3 b x" in said


def test_the_kernel_says_which_question_it_answers(capsys, tmp_path):
    index = gradindex.build(job(), tmp_path / "index")
    asked = ["explain", tmp_path / "index", JOB, "--ids", "3", "-k", "2"]
    assert " finds samples " not in cli(capsys, *asked)[1]
    index.whiten()
    words = {}
    for kernel in ("grad_cos", "grad_dot", "white_dot"):
        words[kernel] = " ".join(cli(capsys, *asked, "--kernel", kernel)[1].split())
        assert WORDING[KernelName(kernel)].sentence in words[kernel]
    assert "--kernel white_dot estimates whose removal would change the query most." in words["grad_dot"]
    assert "Its scores are estimates by whitened rows." in words["white_dot"]
    assert "--kernel" not in words["white_dot"]


@pytest.mark.parametrize(
    ("columns", "width"), [("0", 80), ("1", 20), ("19", 20), ("20", None), ("200", None), ("", None)]
)
def test_a_terminal_without_columns_is_printed_to(columns, width):
    assert console.width(columns) == width
