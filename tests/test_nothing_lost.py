"""What a user has is not lost or changed by a command that was meant for something else."""

import errno
import json
import pickle
from pathlib import Path

import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.review import beside, read_decisions, review
from gradindex.review.decision_log import DecisionLog
from gradindex.review.decisions import Decision
from gradindex.store import Store, location, replace
from tests.jobs import ROWS, digits, digits_job, other_model_job

DECIDED = "id,decision,new_label\n3,relabel,2\n4,remove,\n"


@pytest.fixture
def path(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i")
    return tmp_path / "i"


def test_what_lies_in_an_index_is_not_deleted_with_it(path):
    (path / "figures").mkdir()
    (path / "figures" / "a.png").write_bytes(b"mine")
    (path / "report.html").write_text("mine")
    with pytest.raises(
        IndexExistsError, match=r"holds figures, report\.html besides the index, .* move that elsewhere"
    ):
        gradindex.build(other_model_job(), path, overwrite=True)
    with pytest.raises(DamagedIndexError, match="figures belongs to no manifest of this index: move it away"):
        gradindex.load(path).check()
    with pytest.raises(ValueError, match="figures does not belong to the index, and may be yours: move it away"):
        gradindex.repair(path)
    assert (path / "report.html").read_text() == "mine" and (path / "figures" / "a.png").read_bytes() == b"mine"
    gradindex.load(path, digits_job())


@pytest.mark.parametrize("name", ["export.parquet", "2026-12.csv"])
def test_nor_is_what_lies_among_the_shards(path, name):
    (path / "shards" / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} does not belong to the index, and may be yours"):
        gradindex.repair(path)
    with pytest.raises(IndexExistsError, match=f"holds {name} besides the index"):
        gradindex.build(other_model_job(), path, overwrite=True)
    assert (path / "shards" / name).read_bytes() == b"mine"


def test_nor_is_what_came_while_the_new_one_was_built(path, monkeypatch):
    begin = replace.begin

    def then(out):
        found = begin(out)
        (path / "notes.txt").write_text("mine")
        return found

    monkeypatch.setattr(replace, "begin", then)
    with pytest.raises(IndexExistsError, match=r"holds notes\.txt besides the index"):
        gradindex.build(other_model_job(), path, overwrite=True)
    assert (path / "notes.txt").read_text() == "mine"
    gradindex.load(path, digits_job())
    monkeypatch.undo()
    (path / "notes.txt").unlink()
    gradindex.build(other_model_job(), path, overwrite=True)
    gradindex.load(path, other_model_job()).check()


def test_an_index_that_was_replaced_changes_no_other(path):
    x, y = digits()
    old = gradindex.load(path, digits_job())
    kept = pickle.dumps(old)
    assert len(pickle.loads(kept)) == ROWS
    new = gradindex.build(other_model_job(), path, overwrite=True)
    new.remove([3])
    for change in (old.compact, old.whiten, lambda: old.add((x[:2], y[:2])), lambda: old.remove([5])):
        with pytest.raises(MismatchError, match=r"Another index was built at .* since this one was opened: open it"):
            change()
    with pytest.raises(MismatchError, match="Another index was built at"):
        pickle.loads(kept)
    store = Store.open(path)
    assert (store.state.number, store.state.removed.tolist()) == (1, [3])


def test_decisions_are_not_overwritten_by_their_labels(path, tmp_path, capsys):
    (tmp_path / "d.csv").write_text(DECIDED)
    asked = ["remove", str(path), "--decisions", str(tmp_path / "d.csv"), "--relabels"]
    assert run([*asked, str(tmp_path / "." / "d.csv")]) == 2
    assert "would overwrite the decisions" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert (tmp_path / "d.csv").read_text() == DECIDED
    assert run([*asked, str(path)]) == 1  # a directory: where labels cannot be written, nothing is removed
    assert Store.open(path).state.number == 0
    assert run([*asked, str(tmp_path / "labels.csv")]) == 0
    assert Store.open(path).state.removed.tolist() == [4]
    assert (tmp_path / "labels.csv").read_text() == "id,label\n3,2\n"


def test_the_audit_log_is_not_overwritten(path, capsys):
    file = beside.decisions_path(beside.directory(path), Store.open(path))
    log = DecisionLog(file)
    log.decide("ann", 3, Decision.KEEP)
    log.decide("bob", 3, Decision.REMOVE)
    before = file.read_bytes()
    assert run(["decisions", str(path), "-o", str(file)]) == 2
    assert "would overwrite the audit log" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_a_review_does_not_overwrite_one_that_was_filled_in(path, tmp_path, capsys, name):
    pandas = pytest.importorskip("pandas")
    file = tmp_path / name
    found = review(gradindex.load(path, digits_job()), top=4)
    found.save(file)
    found.save(file)  # nothing was decided yet
    table = pandas.read_csv(file) if file.suffix == ".csv" else pandas.read_parquet(file)
    table["decision"] = ["keep", *[None] * (len(table) - 1)]
    _ = table.to_csv(file, index=False) if file.suffix == ".csv" else table.to_parquet(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"holds decisions on 1 samples, which would be lost"):
        found.save(file)
    assert run(["review", str(path), "tests.jobs:digits_job", "-o", str(file)]) == 1
    assert "which would be lost" in " ".join(capsys.readouterr().err.split())
    assert file.read_bytes() == before and len(read_decisions(file).by_id) == 1


def test_samples_that_were_chosen_are_saved_whole_or_not_at_all(path, tmp_path, monkeypatch):
    chosen = gradindex.load(path, digits_job()).select(ids=[1], budget=3)
    chosen.save(str(tmp_path / "new" / "c.parquet"))
    before = (tmp_path / "new" / "c.parquet").read_bytes()

    def full(place, _):
        Path(place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(location, "_write", full)
    with pytest.raises(OSError, match="No space"):
        chosen.save(str(tmp_path / "new" / "c.parquet"))
    assert (tmp_path / "new" / "c.parquet").read_bytes() == before


def test_one_column_has_one_condition(path, capsys):
    asked = ["explain", str(path), "tests.jobs:digits_job", "--ids", "0", "-k", "9", "--json"]
    assert run([*asked, "--where", "label=1", "--where", "label=2"]) == 1
    assert "Column 'label' is given twice: for either of two values type label=VALUE" in capsys.readouterr().err
    assert run([*asked, "--where", "label=1,2"]) == 0
    (labels,) = json.loads(capsys.readouterr().out)["data"]["labels"]
    assert set(labels) == {1, 2}
