"""The documentation: its code and commands run as printed, and the reference builds without a warning."""

import importlib.util
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import gradindex
from gradindex.cli.app import app, run
from tests import programs
from tests.jobs import digits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "examples" / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((DOCS / "pages").glob("*.md"))}
# What the pages take for granted.
GIVEN = """
import torch
from tests.jobs import digits, trained
x, y = digits()
model, loss_fn = trained(), torch.nn.CrossEntropyLoss()
x_train, y_train, x_test, y_test = x[:200], y[:200], x[200:], y[200:]
"""
# Of pages that take other things for granted.
OF_PAGES = {"language.md": "from tests.language.kit import TEXTS as texts, save\nsave('my-model')"}
# Of the pages with Python: how many blocks there are, and what they print, as patterns of lines in this order.
PRINTED = {
    "alibi.md": (2, [r"\(3, 200\) \(3, 5, 64\)", r"\(3, 5\) True"]),
    "attribution.md": (
        5,
        [
            r"\(3, 5\)",
            r"\(3, 200\)",
            r"\(3, 5\) \(3, 5\) \(3, 5\)",
            r"\(10,\) \['rank', 'id', 'score'.*\]",
            r"\(5, 3\) \(5, 3\)",
        ],
    ),
    "files.md": (3, [r"\d\d+", r"\['(scan|photo)', '(scan|photo)', '(scan|photo)'\]", "0"]),
    "language.md": (5, [r"(1\.0|0\.\d)\d+  .*", r"\[.*\] \(1, \d+, 3\)", r"\[.*\] \[.*", r"\['<\|start\|>', .*\]"]),
    "metrics.md": (
        2,
        [r"\{'skew': .*, 'won': .*\}", r"\[NeighbourLabels\(.*\)\]", r"\(3, \d+\)", r"\[\[(1\.|0\.9).*", r".*\]\]"],
    ),
    "retraining.md": (1, [r"Use .* for this model: its LDS is 0\.\d.*", r"-?0\.\d+ \(.* to .*\)"]),
    "review.md": (2, [r"(\d+ \d (\d|None) 0\.\d+ \d\.\d+ \(.*\))", r"\['kind', 'rank', .*'decision', 'new_label'\]"]),
    "serving.md": (2, []),
    "sets.md": (
        3,
        [
            r"\(1, 5\) True",
            r"Chosen by mean gradient cosine: 10 of 200 samples \(5.0%\), scores .*",
            r"Similarity of hidden vectors would choose .*% of them \(5.0% by chance\)\.",
            r"\(10,\) \['rank', 'id', 'score', 'hidden', 'label', 'prediction', 'loss'\]",
            r"\(3, 5\) \[.*'hidden'.*\]",
        ],
    ),
    "studies.md": (1, [r"\(3, 5\)", r"\(5,\)"]),
    "whitening.md": (
        2,
        [r"whitened rows False", r".*white_dot", r"recall@10, no exact checks +(1\.|0\.9).*", r"\(0\.\d+.*"],
    ),
    "use.md": (
        6,
        [
            r"\(3, 5\) \(3, 5\) True",
            r".*recall@10, 50 exact checks.*",
            r"recall@5 of grad_cos on 40 held-out queries, 200 rows",
            r"\[0\.9[5-9].*'calibrated': True.*",
            r"\[ True  True  True\] \[.*",
        ],
    ),
}
# Of the pages with commands: those that are not run here, and where they are.
ELSEWHERE = {
    ("cluster.md", "plan"): "tests/distributed/test_docs_cluster.py",
    ("cluster.md", "build"): "tests/distributed/test_docs_cluster.py",
    ("cluster.md", "export"): "tests/distributed/test_docs_cluster.py",
    ("serving.md", "serve"): "tests/serve/test_server.py",
    ("operating.md", "serve"): "tests/serve/test_limits.py",
    ("review.md", "serve"): "tests/serve/test_review_page.py",
}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def commands(page):
    """The command lines of a page, as lists of words after `gradindex`."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert all(line.startswith("gradindex ") for line in lines), lines
    return [shlex.split(line)[1:] for line in lines]


def python(*command, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    return programs.run(command, cwd=cwd, env=environment)


def test_every_page_with_python_is_run():
    assert {page for page in PAGES if blocks(page, "python")} == set(PRINTED)


@pytest.mark.parametrize("page", PRINTED)
def test_the_python_runs_as_printed(page, tmp_path):
    count, wanted = PRINTED[page]
    code = blocks(page, "python")
    assert len(code) == count
    strict = () if page in OF_PAGES else ("-W", "error::UserWarning")  # transformers warns of pinned memory
    if page == "language.md":
        pytest.importorskip("peft")
    done = python(*strict, "-c", "\n".join([OF_PAGES.get(page, GIVEN), *code]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = iter(done.stdout.splitlines())
    for pattern in wanted:  # each is found behind the one before it
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, done.stdout)


def test_the_hugging_face_block_runs_as_printed(tmp_path):
    pytest.importorskip("datasets")
    (block,) = blocks("files.md", "py")
    given = f"{GIVEN}\nimport datasets, gradindex\nds = datasets.Dataset.from_dict({{'pixels': x, 'label': y}})\n"
    done = python("-c", f"{given}{block}\nprint(samples['label'], ds.column_names)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'gradient'" in done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")])
def test_the_commands_run_as_printed(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    # As a data set does, the job's grows: `gradindex add` adds what is new.
    grows = "from tests.jobs import digits_job, more_job\njob = more_job if Path('grown').exists() else digits_job\n"
    fit = "from tests.jobs import digits_fit as fit\n"
    (tmp_path / "my_model.py").write_text(f"{here}from pathlib import Path\n{grows}{fit}")
    x, y = digits()
    np.savez("test.npz", x=x[:20], y=y[:20])
    np.savez("held_out.npz", x=digits(400)[0][340:], y=digits(400)[1][340:])
    Path("decisions.csv").write_text("id,decision,new_label\n3,remove,\n14,relabel,9\n")
    if page == "whitening.md":
        assert run(["build", "my_model.py:job", "runs/digits"]) == 0
    if page == "operating.md":
        assert run(["build", "my_model.py:job", "runs/digits"]) == 0
    if page == "serving.md":
        assert run(["build", "my_model.py:job", "runs/pictures"]) == 0
    for words in commands(page):
        if (page, words[0]) in ELSEWHERE:
            assert (ROOT / ELSEWHERE[page, words[0]]).exists()
            continue
        if words[0] == "add":
            Path("grown").touch()
        assert run(words) == 0, (words, capsys.readouterr().err)
    for words in commands(page):  # what they were to write is there
        for option in ("-o", "--plot"):
            assert option not in words or Path(words[words.index(option) + 1]).stat().st_size > 0


def test_the_commands_have_the_options_shown():
    from typer.main import get_command

    known = get_command(app).commands
    lines = [words for page in PAGES for words in commands(page)]
    assert len(lines) >= 15
    for name, *words in lines:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in words if re.match(r"-{1,2}[a-z]", word)} <= options


def test_the_glossary_has_at_most_twenty_words_in_order():
    words = re.findall(r"^\| ([a-z][^|]*) \|", PAGES["glossary.md"], re.M)[1:]
    assert 0 < len(words) <= 20
    assert words == sorted(words)


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_pages_name_exist(page):
    paths = re.findall(r"`((?:examples|benchmarks|gradindex|tests)/[^`\s]*\.(?:py|md))`", PAGES[page])
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="pip install mkdocs-material mkdocstrings")
def test_the_reference_builds_without_a_warning(tmp_path):
    done = python(
        "-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "mkdocs.yml"), "-d", str(tmp_path), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "not included in the" not in done.stderr  # pages without a place in the navigation
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    for name in ("Index.explain", *gradindex.__all__):
        assert f'id="gradindex.{name}"' in pages, name
