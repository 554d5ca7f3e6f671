import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import gradindex
from gradindex.cli import demo
from gradindex.cli.app import app, run
from gradindex.explanation import Explanation
from tests.jobs import ROWS, digits, digits_job

JOB = "tests.jobs:digits_job"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "index"
    gradindex.build(digits_job(), path)
    return str(path)


def cli(capsys, *arguments):
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(("typed", "wanted"), [("gradindex rev", "review"), ("gradindex info --js", "--json")])
def test_a_shell_completes_commands_and_options(typed, wanted):
    words = {"_GRADINDEX_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "gradindex"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **words, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == [wanted]


def test_completion_can_be_installed(capsys):
    code, text, _ = cli(capsys, "--help")
    assert code == 0 and "--install-completion" in text and "--show-completion" in text


def test_an_index_within_a_memory_budget(tmp_path, capsys):
    size = 264 * ROWS + 4 * 256 * 64
    code, text, _ = cli(capsys, "build", JOB, tmp_path / "i", "--index-memory", size, "--json")
    assert (code, json.loads(text)["index"]) == (0, "Fold256,IVF64,SQ8")
    code, _, said = cli(capsys, "build", JOB, tmp_path / "none", "--index-memory", 100)
    assert code == 1 and "No index of 240 rows" in said


def test_build_explain_verify_info(tmp_path, capsys):
    out = tmp_path / "i"
    code, text, _ = cli(
        capsys, "build", JOB, out, "--dim", 128, "--index", "IVF4,Flat", "--seed", 3, "--batch-size", 32
    )
    assert code == 0
    assert "240 in 1 shard(s)" in text
    assert "countsketch, 128 numbers, seed 3" in text
    assert "IVF4,Flat on 128 numbers" in text
    assert text.strip().endswith(f"Next: gradindex explain {out} {JOB} --ids 0")
    code, text, _ = cli(capsys, "explain", out, JOB, "--ids", "3,14", "-k", 2)
    assert code == 0
    assert "sample 14" in text
    code, text, _ = cli(capsys, "verify", out, JOB, "--queries", 20)
    assert code == 0
    assert "recall@10, with 50 exact checks" in text
    code, text, _ = cli(capsys, "info", out, "--check")
    assert code == 0
    assert "every file matches its sha256" in text


def test_explain_prints_the_numbers_of_the_python_interface(path, capsys):
    want = gradindex.load(path, digits_job()).explain(ids=[3, 14], k=4, kernel="grad_dot")
    code, text, _ = cli(capsys, "explain", path, JOB, "--ids", "3,14", "-k", 4, "--kernel", "grad_dot", "--json")
    found = Explanation.from_json(text)
    assert code == 0
    np.testing.assert_array_equal(found.ordered_indices, want.ordered_indices)
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-6)
    _, table, _ = cli(capsys, "explain", path, JOB, "--ids", "3,14", "-k", 4, "--kernel", "grad_dot")
    for i in range(2):
        for rank in range(4):
            row = [f"{want.ordered_indices[i, rank]}", f"{want.labels[i, rank]}", f"{want.scores[i, rank]:.4g}"]
            row += [f"{want.opponent_indices[i, rank]}", f"{want.opponent_labels[i, rank]}"]
            row += [f"{want.opponent_scores[i, rank]:.4g}"]
            assert any(line.split() == [str(rank + 1), *row] for line in table.splitlines())


def test_explain_shows_the_users_columns(tmp_path, capsys):
    job = digits_job(columns={"source": [f"[b]batch {i // 10}" for i in range(ROWS)], "weight": np.arange(ROWS) / 4})
    index = gradindex.build(job, tmp_path / "i")
    found = index.explain(ids=[3], k=2)
    code, text, _ = cli(capsys, "explain", tmp_path / "i", JOB, "--ids", 3, "-k", 2)
    assert code == 0
    assert text.count("source") == text.count("weight") == 2
    row = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    for identifier in (found.ordered_indices[0, 0], found.opponent_indices[0, 0]):
        assert f"[b]batch {identifier // 10}" in row and f" {identifier / 4:g} " in row


def test_rows_from_a_file(path, tmp_path, capsys):
    x, y = digits()
    np.savez(tmp_path / "labelled.npz", x=x[:2], y=y[:2])
    np.savez(tmp_path / "bare.npz", x=x[:2])
    np.savez(tmp_path / "empty.npz", y=y[:2])
    code, text, _ = cli(capsys, "explain", path, JOB, "--rows", tmp_path / "labelled.npz", "-k", 3, "--json")
    assert code == 0
    assert json.loads(text)["data"]["query_labels"] == y[:2].tolist()
    code, text, _ = cli(capsys, "explain", path, JOB, "--rows", tmp_path / "bare.npz", "-k", 3, "--rerank", 0)
    assert code == 0
    assert "estimate" in text
    code, _, said = cli(capsys, "explain", path, JOB, "--rows", tmp_path / "empty.npz")
    assert code == 2
    assert "holds no array x" in said
    (tmp_path / "empty.npz").write_bytes(b"")
    code, _, said = cli(capsys, "explain", path, JOB, "--rows", tmp_path / "empty.npz")
    assert code == 2 and "Cannot read" in said


def test_verify_gates_a_pipeline(path, capsys):
    code, text, _ = cli(capsys, "verify", path, JOB, "--queries", 20, "--json", "--min-recall", 0.99)
    assert code == 0
    assert json.loads(text)["recall"] == 1.0
    code, _, said = cli(capsys, "verify", path, JOB, "--queries", 20, "--rerank", 0, "--min-recall", 1.0)
    assert code == 1
    assert "below the 1.0 asked for" in said


def test_info_as_json(path, capsys):
    code, text, _ = cli(capsys, "info", path, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["samples"] == ROWS
    assert [p["name"] for p in found["parameters"]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found["columns"] == ["label", "loss", "prediction"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "OUT", JOB], "Give either --rows FILE.npz or --ids"),
        (["explain", "OUT", JOB, "--rows", "x.csv"], "expected FILE.npz. Next: numpy.savez("),
        (["explain", "OUT", JOB, "--ids", "3,x"], "--ids takes integers"),
        (["explain", "OUT", JOB, "--ids", "3", "--kernel", "cosine"], "'grad_cos'"),
        (["explain", "OUT", JOB, "--ids", "3", "-k", "0"], "-k"),
        (["explain", "OUT", "nocolon", "--ids", "3"], "Expected MODULE:FUNCTION, got 'nocolon'"),
        (["explain", "OUT", "no.such.module:job", "--ids", "3"], "no module 'no.such.module'"),
        (["explain", "OUT", "no_such_file.py:job", "--ids", "3"], "no file 'no_such_file.py'"),
        (["explain", "OUT", "tests.jobs:nothing", "--ids", "3"], "has no function 'nothing'"),
        (["explain", "OUT", "tests.jobs:not_a_job", "--ids", "3"], "gave int; expected a gradindex.Job"),
        (["build", JOB], "Missing argument"),
        (["nonsense"], "No such command"),
        (
            ["serve", "OUT", JOB, "--print-settings", "--token-file", "/dev/null"],
            "/dev/null is empty: it must hold a token. Next: python -c",
        ),
        (
            ["serve", "OUT", JOB, "--print-settings", "--token-file", "nowhere"],
            "nowhere: No such file or directory. Next: python -c",
        ),
        (
            ["serve", "OUT", JOB, "--print-settings", "--tokens-file", "nowhere"],
            "nowhere: No such file or directory. Next: python -c",
        ),
        (
            ["serve", "OUT", JOB, "--print-settings", "--tokens-file", "{}"],
            "must hold a JSON object of names and tokens",
        ),
    ],
)
def test_bad_usage_exits_with_2(path, tmp_path, capsys, arguments, said):
    if arguments[-1] == "{}":
        (tmp_path / "tokens.json").write_text("{}")
        arguments = [*arguments[:-1], str(tmp_path / "tokens.json")]
    code, _, text = cli(capsys, *[path if argument == "OUT" else argument for argument in arguments])
    assert code == 2
    assert said in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "OUT", JOB, "--ids", "240"], "Error: Ids [240] are out of range for a dataset of 240 samples."),
        (["explain", "OUT", JOB, "--ids", "1", "-k", "241"], "Error: k is 241, but there are only 240 samples."),
        (["explain", "OUT", "tests.jobs:failing_job", "--ids", "1"], "Error: the data are on another planet"),
        (["explain", "OUT", "tests.jobs:other_model_job", "--ids", "1"], "parameter '0.weight' (and 3 more) has other"),
        (["build", JOB, "OUT", "--index", "SQ8"], "already holds an index of 240 samples"),
        (["build", JOB, "OUT", "--dim", "64"], "already holds an index of something else"),
        (
            ["info", "nowhere"],
            "Error: nowhere holds no gradindex index (store.json is missing). Next: gradindex build M",
        ),
    ],
)
def test_failures_exit_with_1_and_one_line(path, capsys, arguments, said):
    arguments = [path if argument == "OUT" else argument for argument in arguments]
    code, _, text = cli(capsys, *arguments)
    assert code == 1
    assert said in text
    assert len(text.strip().splitlines()) == 1
    _, _, text = cli(capsys, *arguments, "--debug")
    assert "Traceback (most recent call last)" in text


def test_a_finished_build_that_is_run_again_says_so(tmp_path, capsys):
    asked = ["build", JOB, tmp_path / "i", "--index", "IVF4,Flat"]
    assert cli(capsys, *asked)[0] == 0
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "i").rglob("*")}
    code, text, _ = cli(capsys, *asked)
    assert code == 0 and "All of it was there already; nothing was left to do." in " ".join(text.split())
    code, text, _ = cli(capsys, *asked, "--json")
    assert code == 0 and json.loads(text)["samples"] == ROWS and json.loads(text)["summary"] is None
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "i").rglob("*")} == before
    gradindex.load(tmp_path / "i").remove([3])
    code, _, said = cli(capsys, *asked)
    assert code == 1 and "already holds an index" in said


def test_every_command_can_print_json():
    commands = typer.main.get_command(app).commands
    assert {"build", "serve", "demo", "repair"} <= set(commands)
    assert [name for name, one in commands.items() if not any("--json" in p.opts for p in one.params)] == []


def test_what_changes_an_index_says_so_as_json(tmp_path, capsys):
    out = tmp_path / "index"

    def asked(*arguments):
        code, text, _ = cli(capsys, *arguments, "--json")
        assert code == 0
        return json.loads(text)

    built = asked("build", JOB, out)
    assert (built["samples"], built["summary"]["embedded"]) == (ROWS, ROWS)
    added = asked("add", out, "tests.jobs:more_job")
    assert (added["added"], added["samples"], added["summary"]["embedded"]) == (60, 300, 60)
    assert asked("add", out, "tests.jobs:more_job") == {"added": 0, "samples": 300, "summary": None}
    assert asked("remove", out, "--ids", "3,299") == {"removed": 2}
    assert asked("compact", out) == {"left_out": 2}
    exported = asked("export", out, "--parquet", tmp_path / "parquet", "--faiss", tmp_path / "x.faiss")
    assert (exported["rows"], exported["factory"], exported["faiss_dim"]) == (298, "Flat", 1024)
    assert exported["bytes"] == sum(Path(file).stat().st_size for file in exported["files"])
    assert asked("repair", out) == {"shards": [], "index": False, "removed": [], "whitened": False}
    next((out / "index").glob("*.faiss")).unlink()
    assert asked("repair", out)["index"] is True
    assert asked("tune", out, "--queries", 10)["points"]
    found = asked("self-influence", out, "--top", 2)
    assert [one["id"] for one in found] == gradindex.load(out).self_influence(2)[1].tolist()


def test_demo_as_json(tmp_path, capsys, monkeypatch):
    fit = functools.partial(demo._fit_torch, epochs=2)  # enough for what it says
    monkeypatch.setattr(demo, "_fit_torch", fit)
    code, text, _ = cli(capsys, "demo", "--out", tmp_path / "demo", "--json")
    found = json.loads(text)
    assert (code, found["backend"], found["samples"]) == (0, "torch", 1347)
    saved = json.loads((tmp_path / "demo" / "index" / "audit.json").read_text())
    assert found["audit"]["recall"] == saved["recall"]
    assert np.shape(found["explanation"]["data"]["scores"]) == (len(found["queries"]), 5)
    assert Path(found["picture"]).stat().st_size > 0


@pytest.mark.parametrize("command", [None, "build", "explain", "verify", "info", "demo"])
def test_every_help(command):
    result = CliRunner().invoke(app, [*([command] if command else []), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_as_a_command(path):
    done = subprocess.run(
        [sys.executable, "-m", "gradindex", "info", path], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0
    assert "240 in 1 shard(s)" in done.stdout


def test_explain_finds_only_what_is_asked_for(path, capsys):
    want = gradindex.load(path, digits_job()).explain(ids=[3], k=4, where={"label": [1, 2]})
    code, text, _ = cli(capsys, "explain", path, JOB, "--ids", "3", "-k", 4, "--where", "label=1,2", "--json")
    assert code == 0
    assert json.loads(text)["data"]["ordered_indices"] == want.ordered_indices.tolist()
    code, _, said = cli(capsys, "explain", path, JOB, "--ids", "3", "--where", "label=77")
    assert code == 1
    assert "matches none" in said


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ([], None),
        (["--dim", "64"], gradindex.CountSketch(64)),
        (["--sketch", "countsketch"], gradindex.CountSketch()),
        (["--sketch", "sjlt", "--dim", "32"], gradindex.SJLT(32)),
        (["--sketch", "gaussian", "--dim", "16"], gradindex.Gaussian(16)),
        (["--sketch", "rademacher"], gradindex.Rademacher()),
        (["--sketch", "identity"], gradindex.Identity()),
        (["--sketch", "landmark"], gradindex.Landmark()),
        (["--landmarks", "60", "--dims", "16"], gradindex.Landmark(landmarks=60, dims=16)),
        (
            ["--sketch", "landmark", "--landmarks", "60", "--dims", "16", "--residual", "8"],
            gradindex.Landmark(landmarks=60, dims=16, residual=8),
        ),
    ],
)
def test_every_sketch(options, want, tmp_path, monkeypatch):
    asked = []

    def build(*arguments, options, **others):
        asked.append(options.sketch)
        raise ValueError("that is enough")

    monkeypatch.setattr("gradindex.index.opening.build", build)
    assert run(["build", JOB, str(tmp_path / "i"), *options]) == 1
    assert asked == [want]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sketch", "sjlt", "--dims", "5"], "--dims is for --sketch landmark, not sjlt."),
        (["--sketch", "landmark", "--dim", "5"], "The width of landmark rows follows from --dims and --residual."),
        (["--sketch", "identity", "--dim", "5"], "An identity keeps the whole gradient"),
        (["--landmarks", "5", "--dim", "5"], "The width of landmark rows follows from --dims and --residual."),
    ],
)
def test_options_of_sketches_that_do_not_go_together(options, said, tmp_path, capsys):
    assert run(["build", JOB, str(tmp_path / "i"), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_certified_answers(tmp_path, capsys):
    place = str(tmp_path / "i")
    assert run(["build", JOB, place, "--landmarks", "200", "--dims", "64"]) == 0
    capsys.readouterr()
    asked = ["explain", place, JOB, "--ids", "3,7", "-k", "3", "--certify"]
    assert run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    want = gradindex.load(place, digits_job()).explain(ids=[3, 7], k=3, certify=True)
    assert want.proved.all() and want.checked.max() < 240
    assert found["data"]["proved"] == [True, True]
    assert found["data"]["checked"] == want.checked.tolist()
    assert run(asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Proved: the proponents of 2 of 2 queries, the opponents of 2." in said
    assert run([*asked, "--max-checks", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Proved: the proponents of 0 of 2 queries" in said and "allow more --max-checks" in said
    assert run([*asked[:-1], "--max-checks", "3"]) == 1
