"""The commands `review`, `compare` and `init`: what they do, and which command they say comes next."""

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

import gradindex
from gradindex.cli import compare as compare_command
from gradindex.cli import review as review_command
from gradindex.cli.app import run
from gradindex.review import Decision, Review, beside, review
from gradindex.review.decision_log import DecisionLog, Origin
from gradindex.review.decisions import read
from gradindex.search import compare
from gradindex.store import Store
from tests.jobs import digits, digits_job, trained
from tests.test_defaults import agree

JOB = "tests.jobs:digits_job"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("review") / "index"
    gradindex.build(digits_job(), path)
    return str(path)


def named_job():
    return dataclasses.replace(digits_job(), class_names=[f"class {i}" for i in range(10)])


def cli(capsys, *arguments):
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), " ".join(captured.err.replace("│", " ").split())


def test_the_command_prints_what_the_function_finds(path, capsys):
    code, text, _ = cli(capsys, "review", path, JOB, "--top", 7, "--json")
    said = json.loads(text)
    found = review(gradindex.load(path, digits_job()), top=7)
    assert code == 0 and isinstance(found, Review)
    assert {name: said[name] for name in ("about", "findings", "left_out")} == json.loads(json.dumps(found.to_json()))
    assert max(line["rank"] for line in said["findings"]) == 7


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("r.csv", "gradindex remove {} --decisions"),
        ("r.html", "To decide: gradindex serve {} " + JOB + ", page /review, or gradindex review {}"),
        ("r.parquet", "--decisions"),
    ],
)
def test_every_file_says_what_comes_next(path, tmp_path, capsys, name, following):
    code, text, _ = cli(capsys, "review", path, JOB, "--top", 3, "-o", tmp_path / name)
    assert code == 0 and (tmp_path / name).stat().st_size > 0
    assert following.format(path, path) in text and "label: the first 3 of 3" in text


def test_without_a_file_it_says_how_to_get_one(path, capsys):
    assert f"Next: gradindex review {path} {JOB} -o review.csv" in cli(capsys, "review", path, JOB, "--top", 1)[1]
    code, _, said = cli(capsys, "review", path, JOB, "-o", "r.xlsx")
    assert code == 2 and "ends with .csv, .parquet or" in said


def test_a_command_takes_what_the_library_takes():
    assert {"top", "k", "seed"} <= agree(review_command.review, review)
    assert {"k", "kernel", "ids", "persistence"} <= agree(compare_command.compare, compare.compare)


def test_compare_prints_a_table_and_json(path, capsys):
    asked = ["compare", path, path, JOB, JOB, "--ids", "3,14", "-k", 4]
    code, text, _ = cli(capsys, *asked)
    assert code == 0 and "Of the 4 proponents of a query 100% stay on average" in text and "sample 14" in text
    named = cli(capsys, "compare", path, path, "tests.review.test_command:named_job", JOB, "--ids", "3,14", "-k", 4)[1]
    assert re.search(r"sample 3 class \d", named) and "class" not in text
    said = json.loads(cli(capsys, *asked, "--json")[1])
    assert said["mean"]["opponents"] == {"overlap": 1, "rank_biased_overlap": pytest.approx(1)}
    assert [one["query"] for one in said["by_query"]] == ["sample 3", "sample 14"]
    code, _, said = cli(capsys, "compare", path, path, JOB, JOB)
    assert code == 2 and "--ids 3,14 or as --queries FILE" in said


def test_compare_reads_queries_from_a_file(path, tmp_path, capsys):
    np.savez(tmp_path / "q.npz", x=digits()[0][:3])
    text = cli(capsys, "compare", path, path, JOB, JOB, "--queries", tmp_path / "q.npz", "--json")[1]
    assert [one["query"] for one in json.loads(text)["by_query"]] == ["query 0", "query 1", "query 2"]


def save_digits(folder, **names):
    x, y = digits()
    np.savez(folder / "train.npz", **{names.get("x", "x"): x, names.get("y", "y"): y})


def test_init_for_torch_is_ready_to_build(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(trained(), "model.pt")
    save_digits(tmp_path, x="images", y="labels")
    code, text, _ = cli(capsys, "init", "--model", "model.pt", "--data", "train.npz")
    assert code == 0 and "Sequential, 240 samples, gradients of 1,810 numbers, as training steps give them" in text
    assert re.search(r"Next: gradindex build job.py:job runs/index$", text)
    assert cli(capsys, "build", "job.py:job", "runs/index")[0] == 0
    assert gradindex.load("runs/index").store.columns["label"].tolist() == digits()[1].tolist()
    code, _, said = cli(capsys, "init", "--model", "model.pt", "--data", "train.npz")
    assert code == 1 and "job.py is there already. Next: gradindex doctor job.py:job" in said
    assert cli(capsys, "init", "--framework", "torch", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("wrapped", "read_on"),
    [(lambda weights: weights, ""), (lambda weights: {"epoch": 3, "model": weights}, '["model"]')],
)
def test_init_for_weights_without_their_model_says_which_lines_to_edit(tmp_path, capsys, monkeypatch, wrapped, read_on):
    monkeypatch.chdir(tmp_path)
    torch.save(wrapped(torch.nn.Linear(64, 10).state_dict()), "weights.pt")
    save_digits(tmp_path)
    code, text, _ = cli(capsys, "init", "w.py", "--model", "weights.pt", "--data", "train.npz")
    assert code == 0 and "weights.pt holds weights without their model." in text
    assert "Edit its lines that say EDIT. Next: gradindex doctor w.py:job" in text
    made = (tmp_path / "w.py").read_text()
    assert "model = MyModel()  # EDIT" in made and f'map_location="cpu"){read_on})' in made
    (tmp_path / "w.py").write_text(made.replace("MyModel()", "torch.nn.Linear(64, 10)"))
    code, text, _ = cli(capsys, "doctor", "w.py:job")
    assert code == 0 and text.endswith("Next: gradindex build w.py:job runs/index")


def test_init_for_torch_takes_regressions(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 1)), "model.pt")
    x = np.random.default_rng(0).normal(size=(20, 4))
    np.savez("train.npz", x=x, y=x.sum(axis=1, keepdims=True))
    code, text, _ = cli(capsys, "init", "r.py", "--model", "model.pt", "--data", "train.npz", "--json")
    said = json.loads(text)
    assert (code, said["next"], said["job"]["gradients_agree"]) == (0, "gradindex build r.py:job runs/index", True)


def test_init_for_keras_is_ready_to_build(tmp_path, capsys, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    layers = [keras.Input((64,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(10, "softmax")]
    keras.Sequential(layers).save("model.keras")
    save_digits(tmp_path)
    code, text, _ = cli(capsys, "init", "k.py", "--model", "model.keras", "--data", "train.npz")
    assert code == 0 and "Next: gradindex build k.py:job" in text
    loss = gradindex.job.load_job("k.py:job").loss_fn
    assert loss.get_config()["from_logits"] is False


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_init_for_a_table_is_ready_to_build(tmp_path, capsys, monkeypatch, suffix):
    """Of numbers, whole ones among them, texts, and a label of texts whose column has a name of its own."""
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(3, 2), "model.pt")
    numbers = np.random.default_rng(0).normal(size=(3, 20))
    table = pa.table({"a": numbers[0], "b": np.arange(20), "kind": ["van", "bus"] * 10, "c": numbers[2]})
    table = table.append_column("note", pa.array([f"n{i}" for i in range(20)]))
    csv.write_csv(table, "train.csv") if suffix == "csv" else parquet.write_table(table, "train.parquet")
    given = ["init", "t.py", "--model", "model.pt", "--data", f"train.{suffix}"]
    code, _, said = cli(capsys, *given)
    assert code == 2 and f"Which column is the label? train.{suffix} has a, b, kind, c, note. Next:" in said
    code, _, said = cli(capsys, *given, "--label", "sort")
    assert code == 2 and "There is no column 'sort'" in said and not (tmp_path / "t.py").exists()
    code, text, _ = cli(capsys, *given, "--label", "kind")
    assert code == 0 and text.endswith("Next: gradindex build t.py:job runs/index")
    job = gradindex.job.load_job("t.py:job")
    x, y = job.dataset
    assert (
        x.dtype == np.float32 and (x == np.stack([numbers[0], np.arange(20), numbers[2]], 1).astype(np.float32)).all()
    )
    assert job.class_names == ["bus", "van"] and y.tolist() == [1, 0] * 10 and job.columns.column_names == ["note"]


def test_init_for_a_table_finds_a_label_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(1, 1), "model.pt")
    (tmp_path / "train.csv").write_text("a,Target\n1,0.5\n2,1.5\n3,2.5\n")
    code, text, _ = cli(capsys, "init", "t.py", "--model", "model.pt", "--data", "train.csv")
    assert code == 0 and "Linear, 3 samples" in text
    assert gradindex.job.load_job("t.py:job").task == "regression"
    (tmp_path / "empty.csv").write_text("")
    code, _, said = cli(capsys, "init", "e.py", "--model", "model.pt", "--data", "empty.csv")
    assert code == 2 and "Cannot read empty.csv as a table" in said
    code, _, said = cli(capsys, "init", "e.py", "--model", "model.pt", "--data", "model.pt")
    assert code == 2 and "--data takes .npz, .csv, .parquet for torch, got model.pt" in said


def test_init_for_transformers_is_ready_to_build(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    from tests.language.kit import TEXTS, save

    monkeypatch.chdir(tmp_path)
    save("my-model")
    (tmp_path / "train.txt").write_text("\n".join(TEXTS))
    code, text, said = cli(capsys, "init", "t.py", "--model", "my-model", "--data", "train.txt")
    assert code == 0, said
    assert "for transformers." in text and "8 samples" in text and "Next: gradindex build t.py:job" in text


@pytest.mark.parametrize("framework", ["torch", "keras", "transformers"])
def test_init_without_files_says_what_to_edit(framework, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = cli(capsys, "init", "--framework", framework)
    assert code == 0 and "Edit its lines that say EDIT. Next: gradindex doctor job.py:job" in text
    source = (tmp_path / "job.py").read_text()
    compile(source, "job.py", "exec")
    assert source.count("  # EDIT") == 2 and "$" not in source


def test_what_init_cannot_do_says_what_comes_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = cli(capsys, "init", "--model", "nothing.pt")
    assert code == 2 and "There is no nothing.pt" in said and "edit job.py" in said
    code, _, said = cli(capsys, "init")
    assert code == 2 and "gradindex init --framework" in said
    (tmp_path / "broken.pt").write_bytes(b"no model")
    save_digits(tmp_path)
    code, _, said = cli(capsys, "init", "--model", "broken.pt", "--data", "train.npz")
    assert code == 1 and "job.py is written, but its job could not be tested" in said
    assert "Next: edit job.py, then gradindex doctor job.py:job" in said
    np.savez("three.npz", a=np.zeros(3), b=np.zeros(3), y=np.zeros(3))
    code, _, said = cli(capsys, "init", "o.py", "--model", "broken.pt", "--data", "three.npz")
    assert code == 1 and "holds the arrays a, b, y; expected inputs x and labels y. Next: save it by" in said


def test_the_audit_log_is_printed(path, tmp_path, capsys):
    log = DecisionLog(beside.decisions_path(tmp_path, Store.open(path)))
    log.decide("Ada", 3, Decision.RELABEL, 7, Origin("laptop", "request-7"))
    log.decide("[red]Ben", 3, Decision.REMOVE)
    log.undo("[red]Ben")
    log.decide("Ada", 5, Decision.KEEP)
    code, text, _ = cli(capsys, "decisions", path, "--review-dir", tmp_path)
    assert code == 0 and "[red]Ben" in text and "relabel 7" in text
    said = json.loads(cli(capsys, "decisions", path, "--review-dir", tmp_path, "--json")[1])
    assert [(one["number"], one["id"], one["decision"], one["undoes"]) for one in said] == [
        (0, 3, "relabel", None), (1, 3, "remove", None), (2, 3, "relabel", 1), (3, 5, "keep", None),
    ]  # fmt: skip
    assert (said[0]["client"], said[0]["request"]) == ("laptop", "request-7")
    assert said[1]["before"] == {"decision": "relabel", "label": 7}
    for option, value, count in (("--id", 3, 3), ("--id", 4, 0), ("--reviewer", "Ada", 2)):
        found = cli(capsys, "decisions", path, "--review-dir", tmp_path, "--json", option, value)[1]
        assert len(json.loads(found)) == count
    with log.path.open("a") as file:
        file.write("nonsense\n")
    assert "1 lines of" in cli(capsys, "decisions", path, "--review-dir", tmp_path)[2]
    none = cli(capsys, "decisions", path)[1]
    assert "There are none in" in none and f"Next: gradindex serve {path} MODULE:FUNCTION" not in none
    assert f"To take some: gradindex serve {path} MODULE:FUNCTION, page /review" in none
    chosen = cli(capsys, "decisions", path, "--review-dir", tmp_path, "--id", 4)[1]
    assert f"There are none of these in {log.path}. All there are: gradindex decisions {path}" in chosen


def test_the_audit_log_becomes_decisions_to_carry_out(path, tmp_path, capsys):
    log = DecisionLog(beside.decisions_path(tmp_path, Store.open(path)))
    log.decide("Ada", 3, Decision.REMOVE)
    log.undo("Ada")
    code, _, said = cli(capsys, "remove", path, "--decisions", log.path)  # it would remove what was taken back
    assert code == 1 and "Next: gradindex decisions OUT -o decisions.csv" in said
    assert Store.open(path).holds(np.arange(240)).all()
    wanted = ["decisions", path, "--review-dir", tmp_path, "-o"]
    assert "None of them stands any more" in cli(capsys, *wanted, tmp_path / "d.csv")[1]
    assert not (tmp_path / "d.csv").exists()
    log.decide("Ada", 5, Decision.RELABEL, 2)
    log.decide("Ben", 7, Decision.REMOVE)
    for name in ("d.csv", "d.jsonl"):
        text = cli(capsys, *wanted, tmp_path / name)[1]
        assert f"Wrote the 2 that stand. Next: gradindex remove {path} --decisions {tmp_path / name}" in text
        assert read(tmp_path / name).by_id == {5: Decision.RELABEL, 7: Decision.REMOVE}
    cli(capsys, *wanted, tmp_path / "ben.csv", "--reviewer", "Ben")
    assert read(tmp_path / "ben.csv").by_id == {7: Decision.REMOVE}
    code, _, said = cli(capsys, "remove", path, "--decisions", tmp_path / "nowhere.csv")
    assert code == 1 and "nowhere.csv. Next: gradindex decisions OUT -o nowhere.csv for what was decided" in said
    code, _, said = cli(capsys, *wanted, tmp_path / "d.xlsx")
    assert code == 2 and "-o takes FILE.csv or FILE.jsonl" in said


def test_what_comes_after_a_removal(tmp_path, capsys):
    gradindex.build(digits_job(), tmp_path / "index")
    file = tmp_path / "d.csv"
    file.write_text("id,decision,new_label\n3,remove,\n5,relabel,2\n")
    text = cli(capsys, "remove", tmp_path / "index", "--decisions", file)[1]
    assert "leave its rows in the job's dataset" in text and f"gradindex remove NEW --decisions {file}" in text
    file.write_text("id,decision,new_label\n5,relabel,2\n")
    text = cli(capsys, "remove", tmp_path / "index", "--decisions", file)[1]
    assert "Train again, and build a new index" in text and "leave its rows" not in text
    file.write_text("id,decision,new_label\n5,keep,\n")
    assert cli(capsys, "remove", tmp_path / "index", "--decisions", file)[1].endswith("removed 0.")
