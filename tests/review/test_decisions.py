"""Decisions: read from every kind of file, refused where they are none, and carried out."""

import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.review import Decision, read_decisions, review
from gradindex.store import Store
from tests.jobs import digits_job

GIVEN = [
    {"id": 3, "decision": "remove", "new_label": None},
    {"id": 5, "decision": "relabel", "new_label": 9},
    {"id": 7, "decision": "keep", "new_label": None},
    {"id": 8, "decision": "later", "new_label": None},
    {"id": 9, "decision": None, "new_label": None},
    {"id": 3, "decision": "remove", "new_label": None},
]


def written(path, lines):
    if path.suffix == ".parquet":
        types = {"id": pa.int64(), "decision": pa.string(), "new_label": pa.float64()}  # as pandas writes it
        pq.write_table(pa.Table.from_pylist(lines, pa.schema(types)), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["note", "id", "decision", "new_label"])
            writer.writeheader()
            writer.writerows({"note": "a, b", **line} for line in lines)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("decisions") / "index"
    gradindex.build(digits_job(), path)
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.jsonl"])
def test_every_kind_of_file(tmp_path, name):
    found = read_decisions(written(tmp_path / name, GIVEN))
    assert found.by_id == {3: Decision.REMOVE, 5: Decision.RELABEL, 7: Decision.KEEP, 8: Decision.LATER}
    assert found.new_labels == {5: 9}
    assert found.ids(Decision.REMOVE).tolist() == [3]
    assert found.relabels() == "id,label\n5,9\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": 3, "decision": "keep"}, "contradict each other, on samples 3: leave one for each"),
        ({"id": 5, "decision": "relabel", "new_label": 8}, "contradict each other, on samples 5"),
        ({"id": 4, "decision": "drop"}, "Unknown decision in d.jsonl, entry 7: 'drop'. Expected one of: 'keep'"),
        ({"id": None, "decision": "keep"}, "entry 7 decides on no sample: its id is empty"),
        ({"id": 4, "decision": "relabel"}, "says 'relabel' of sample 4, with no new_label: relabel takes one"),
        ({"id": 4, "decision": "keep", "new_label": 2}, "says 'keep' of sample 4, with the new_label 2"),
        ({"id": "x", "decision": "keep"}, "The id in d.jsonl, entry 7 is no whole number: 'x'"),
        ({"id": 4.5, "decision": "keep"}, "no whole number: '4.5'"),
        ({"decision": "keep"}, "d.jsonl has no column id"),
    ],
)
def test_what_is_no_decision_is_refused(tmp_path, line, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        read_decisions(written(tmp_path / "d.jsonl", [*GIVEN, line]))


def test_files_that_are_none(tmp_path):
    (tmp_path / "d.txt").write_text("3,remove")
    with pytest.raises(ValueError, match=r"read from .csv, .parquet or .jsonl files, got 'd.txt'"):
        read_decisions(tmp_path / "d.txt")
    (tmp_path / "d.csv").write_text("sample,decision\n3,remove\n")
    with pytest.raises(ValueError, match=r"d\.csv has no column id; it has sample, decision"):
        read_decisions(tmp_path / "d.csv")
    (tmp_path / "d.jsonl").write_text("[3]\n")
    with pytest.raises(ValueError, match="line 1 is no JSON object"):
        read_decisions(tmp_path / "d.jsonl")


def test_large_ids_stay_whole(tmp_path):
    (tmp_path / "d.csv").write_text(f"id,decision\n{2**60 + 1},keep\n{2**60 + 3}.0,keep\n")
    assert list(read_decisions(tmp_path / "d.csv").by_id) == [2**60 + 1, 2**60 + 3]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.csv", 'id,decision,note\n3,remove,"open\n4,remove,x\n', "d.csv is no CSV file of UTF-8 with commas: "),
        ("d.csv", "id,decision,decision\n3,keep,remove\n", "d.csv has several columns decision: leave one"),
        ("d.csv", "id,decision\n-1,remove\n", "The id in d.csv, entry 1 is that of no sample: -1"),
        ("d.csv", f"id,decision\n{2**63},remove\n", "is that of no sample"),
        ("d.csv", "id,decision\n3,remove\n".encode("utf-16"), "d.csv is not UTF-8"),
        ("d.jsonl", '{"id": 3, "decision": "keep", "decision": "remove"}', "a name stands there twice"),
        ("d.jsonl", "[" * 100_000, "line 1 is no JSON"),
        ("d.jsonl", '{"id": 3, "decision": false}', "Unknown decision in d.jsonl, entry 1: 'False'"),
    ],
)
def test_decisions_that_could_be_misread_are_refused(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(said)):
        read_decisions(tmp_path / name)


def test_notes_of_any_kind_and_length(tmp_path):
    note = "a\u2028b\u0085c\x0c" + "x" * 200_000
    lines = [{"id": i, "decision": "remove", "note": note} for i in (3, 4)]
    (tmp_path / "d.jsonl").write_text("\ufeff" + "\n".join(json.dumps(one, ensure_ascii=False) for one in lines))
    written(tmp_path / "d.csv", lines)
    for name in ("d.jsonl", "d.csv"):
        assert read_decisions(tmp_path / name).ids(Decision.REMOVE).tolist() == [3, 4]


def test_a_review_that_was_filled_in_is_carried_out(path, tmp_path, capsys):
    found = review(gradindex.load(path, digits_job()), top=4)
    found.save(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        if line["kind"] == "label":
            line["decision"], line["new_label"] = ("remove", "") if line["rank"] == "1" else ("relabel", "4")
    written(tmp_path / "d.csv", [{name: line[name] for name in ("id", "decision", "new_label")} for line in lines])
    labels = found.of("label")
    asked = ["remove", str(path), "--decisions", str(tmp_path / "d.csv"), "--relabels", str(tmp_path / "new.csv")]
    assert run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["removed"], said["decisions"]["relabel"]) == (1, 3)
    assert Store.open(path).state.removed.tolist() == [labels[0].id]
    wanted = "".join(f"{i},4\n" for i in sorted(one.id for one in labels[1:]))
    assert (tmp_path / "new.csv").read_text() == f"id,label\n{wanted}"
    assert run(asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Decided on 4 samples; removed 0. Wrote 3 new labels" in said and "gradindex build MODULE:FUNCTION" in said


def test_nothing_is_removed_where_a_sample_is_unknown(path, tmp_path, capsys):
    before = Store.open(path).state.number
    written(tmp_path / "d.csv", [{"id": 11, "decision": "remove"}, {"id": 999, "decision": "keep"}])
    assert run(["remove", str(path), "--decisions", str(tmp_path / "d.csv")]) == 1
    assert "samples that the index does not hold: 999. Were they made for another index?" in capsys.readouterr().err
    assert Store.open(path).state.number == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give either --ids 3,14 or --decisions FILE."),
        (["--ids", "3", "--decisions", "d.csv"], "Give either --ids 3,14 or --decisions FILE."),
        (["--ids", ","], "--ids takes integers such as 3,14, got ','."),
        (["--ids", "3", "--relabels", "n.csv"], "--relabels writes the new labels of --decisions FILE"),
    ],
)
def test_one_of_the_two_is_given(path, capsys, options, said):
    assert run(["remove", str(path), *options]) == 2
    assert said.split(":")[0] in " ".join(capsys.readouterr().err.replace("│", " ").split())
