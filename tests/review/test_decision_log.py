"""The file of decisions: what is acknowledged is there, whoever writes at once, wherever a line was torn."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gradindex.review import Decision, read_decisions
from gradindex.review.decision_log import Before, DecisionLog, Origin, as_csv, as_json_lines

ROOT = Path(__file__).parents[2]
KEEP, RELABEL, REMOVE, LATER = Decision.KEEP, Decision.RELABEL, Decision.REMOVE, Decision.LATER


@pytest.fixture
def path(tmp_path):
    return tmp_path / "i.review" / "decisions.jsonl"


def said(entry):
    return None if entry is None else (entry.reviewer, entry.decision, entry.label)


def test_the_last_decision_counts_and_the_file_says_all(path):
    log = DecisionLog(path)
    assert log.standing(3) is None and not path.exists()
    log.decide("Ada", 3, REMOVE)
    log.decide("Ben", 3, RELABEL, 7)
    log.decide("Ada", 5, LATER)
    assert said(log.standing(3)) == ("Ben", RELABEL, 7)
    assert [said(one) for one in log.differing(3)] == [("Ada", REMOVE, None)]
    assert log.differing(5) == [] and log.differing(4) == []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = ["time", "reviewer", "id", "decision", "label", "before", "client", "request"]
    assert [list(line) for line in lines] == [names] * 3
    assert [line["label"] for line in lines] == [None, 7, None]
    assert {i: said(one) for i, one in DecisionLog(path).all_standing().items()} == {
        3: ("Ben", RELABEL, 7),
        5: ("Ada", LATER, None),
    }


def test_each_line_tells_what_stood_before_and_how_it_came(path):
    log, origin = DecisionLog(path), Origin("laptop", "request-7")
    assert log.decide("Ada", 3, RELABEL, 7, origin).before is None
    log.decide("Ben", 3, REMOVE)
    log.undo("Ben", origin)
    log.undo("Ada")
    log.decide("Ada", 3, KEEP)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seven, remove = {"decision": "relabel", "label": 7}, {"decision": "remove", "label": None}
    assert [line["before"] for line in lines] == [None, seven, remove, seven, None]
    assert [(line["client"], line["request"]) for line in lines] == [
        ("laptop", "request-7"), (None, None), ("laptop", "request-7"), (None, None), (None, None),
    ]  # fmt: skip
    assert DecisionLog(path).since(0, 9)[1] == log.since(0, 9)[1]
    assert log.since(2, 1)[1][0].before == Before(REMOVE)


def test_no_line_is_ever_changed(path):
    """Whatever is decided or undone, and whoever opens the file: it begins with all that it held."""
    log, before = DecisionLog(path), b""
    steps = [
        lambda: log.decide("Ada", 3, REMOVE),
        lambda: log.decide("Ada", 3, REMOVE),
        lambda: log.undo("Ada"),
        lambda: DecisionLog(path).undo("Ada"),
        lambda: DecisionLog(path).decide("Ben", 3, RELABEL, 7),
        lambda: log.undo("Ben"),
    ]
    for number, step in enumerate(steps, 1):
        step()
        now = path.read_bytes()
        assert now.startswith(before) and now.count(b"\n") == number and now.endswith(b"\n")
        before = now


def test_lines_of_earlier_versions_are_read(path):
    path.parent.mkdir()
    path.write_text('{"time": "", "reviewer": "Ada", "id": 3, "decision": "remove", "label": null}\n')
    log = DecisionLog(path)
    (entry,) = log.since(0, 9)[1]
    assert (entry.before, entry.client, entry.request, log.damaged) == (None, None, None, 0)
    assert log.decide("Ben", 3, KEEP).before == Before(REMOVE)


def test_two_that_agree_do_not_differ(path):
    log = DecisionLog(path)
    log.decide("Ada", 3, RELABEL, 7)
    log.decide("Ben", 3, RELABEL, 7)
    assert log.differing(3) == []
    log.decide("Ada", 3, RELABEL, 8)
    assert [said(one) for one in log.differing(3)] == [("Ben", RELABEL, 7)]


def test_undoing_leaves_what_was_before_and_what_others_said_since(path):
    log = DecisionLog(path)
    log.decide("Ada", 3, REMOVE)
    log.decide("Ada", 3, KEEP)
    assert log.undo("Ada").decision is REMOVE
    assert said(log.standing(3)) == ("Ada", REMOVE, None)
    log.decide("Ben", 3, LATER)
    line = log.undo("Ada")  # Ben's stands
    assert (line.undoes, line.decision) == (0, LATER)
    assert said(log.standing(3)) == ("Ben", LATER, None) and log.differing(3) == []
    with pytest.raises(LookupError, match="Ada has decided nothing that could be undone"):
        log.undo("Ada")
    assert log.undo("Ben").decision is None
    assert log.standing(3) is None and log.all_standing() == {}
    assert said(DecisionLog(path).standing(3)) is None
    assert json.loads(path.read_text().splitlines()[-1])["decision"] is None


def test_what_two_processes_append_is_seen_by_both(path):
    one, other = DecisionLog(path), DecisionLog(path)
    one.decide("Ada", 1, KEEP)
    other.decide("Ben", 2, REMOVE)
    assert one.decide("Ada", 2, KEEP).number == 2
    assert said(other.standing(2)) == ("Ada", KEEP, None)
    after, entries = one.since(1, 10)
    assert (after, [entry.id for entry in entries]) == (3, [2, 2])
    assert one.since(9, 10) == (3, [])


def test_a_torn_line_spoils_no_other(path):
    whole = DecisionLog(path)
    whole.decide("Ada", 1, KEEP)
    whole.decide("Ada", 2, REMOVE)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data)):
        path.write_bytes(data[:cut])
        log = DecisionLog(path)
        assert said(log.standing(1)) == ("Ada", KEEP, None) and log.standing(2) is None
        entry = log.decide("Ben", 4, LATER)
        assert path.read_bytes().endswith(b"}\n")
        again = DecisionLog(path)
        assert said(again.standing(4)) == said(log.standing(4)) == ("Ben", LATER, None)
        assert said(again.standing(1)) == ("Ada", KEEP, None)
        assert entry.number == again.end - 1 == 1 + (cut > first)
        assert again.damaged == (first < cut < len(data) - 1)  # at its very end nothing but the end was lost
        assert again.undo("Ben").undoes == entry.number


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "{}", '{"time":"","reviewer":"a","id":"x","decision":"keep","label":null}',
     '{"time":"","reviewer":"a","id":1,"decision":"drop","label":null}',
     '{"time":"","reviewer":"a","id":1,"decision":"relabel","label":null}',
     '{"time":"","reviewer":"a","id":1,"decision":null,"label":null}', "\x00\x00", "\r"],
)  # fmt: skip
def test_lines_that_are_none_count_for_nothing(path, line):
    DecisionLog(path).decide("Ada", 1, KEEP)
    with path.open("a") as file:
        file.write(line + "\n")
    log = DecisionLog(path)
    log.decide("Ben", 1, REMOVE)
    assert (log.damaged, said(log.standing(1)), log.end) == (1, ("Ben", REMOVE, None), 3)


def test_another_file_in_its_place_is_read_anew(path):
    log = DecisionLog(path)
    for i in range(5):
        log.decide("Ada", i, KEEP)
    path.unlink()
    log.decide("Ada", 9, REMOVE)
    assert list(log.all_standing()) == list(DecisionLog(path).all_standing()) == [9]


def test_a_relabelling_needs_a_label(path):
    log = DecisionLog(path)
    with pytest.raises(ValueError, match="relabel takes a label, others take none"):
        log.decide("Ada", 1, RELABEL)
    with pytest.raises(ValueError, match="relabel takes a label, others take none"):
        log.decide("Ada", 1, KEEP, 3)
    assert not path.exists()


def test_the_export_is_what_remove_reads(path, tmp_path):
    log = DecisionLog(path)
    log.decide('A, "B"', 7, RELABEL, 2)
    log.decide("Ada", 3, REMOVE)
    log.decide("Ada", 4, KEEP)
    log.undo("Ada")
    for name, text in (("d.csv", as_csv(log.all_standing())), ("d.jsonl", as_json_lines(log.all_standing()))):
        (tmp_path / name).write_text(text)
        found = read_decisions(tmp_path / name)
        assert (found.by_id, found.new_labels) == ({3: REMOVE, 7: RELABEL}, {7: 2})


def test_many_threads_lose_nothing(path):
    logs = [DecisionLog(path), DecisionLog(path)]  # as of two processes

    def decide(number):
        for i in range(25):
            logs[number % 2].decide(f"reviewer {number}", 100 * number + i, KEEP)

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(DecisionLog(path).all_standing()) == [100 * number + i for number in range(6) for i in range(25)]
    assert [log.end for log in logs] == [150, 150]


WRITER = """
import sys
from pathlib import Path
from gradindex.review import Decision
from gradindex.review.decision_log import DecisionLog
log = DecisionLog(Path(sys.argv[1]))
for i in range(10**6):
    log.decide(sys.argv[2], i, Decision.KEEP)
    print(i, flush=True)
"""


def test_what_was_acknowledged_outlives_a_kill(path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in ("Ada", "Ben")
    ]
    acknowledged = []
    for writer in writers:
        for line in writer.stdout:
            if int(line) >= 20:
                break
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    for writer in writers:
        rest = writer.stdout.read().split("\n")[:-1]  # the last one may be cut
        writer.stdout.close()
        writer.wait()
        acknowledged.append(max([20, *map(int, rest)]))
    log = DecisionLog(path)
    _, entries = log.since(0, 10**6)
    for name, last in zip(("Ada", "Ben"), acknowledged, strict=True):
        assert [one.id for one in entries if one.reviewer == name][: last + 1] == list(range(last + 1))
    log.decide("Eve", 5, REMOVE)
    assert said(DecisionLog(path).standing(5)) == ("Eve", REMOVE, None)
