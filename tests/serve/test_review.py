"""The review over HTTP: made once in the background, paged, decided on, exported, refused where it is to be."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.review import review
from gradindex.review.kept import Kept
from gradindex.store import Store
from tests.review.kit import wrong_job
from tests.serve.jobs import NAMES

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

ROOT = Path(__file__).parents[2]
TOP = 60


def named_job():
    return wrong_job(class_names=NAMES)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("review") / "index"
    gradindex.build(named_job(), path)
    return path


@pytest.fixture
def path(built, tmp_path):
    return shutil.copytree(built, tmp_path / "index")


def serving(path, job=None, **settings):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    index = gradindex.load(path, job or named_job())
    app = create_app(index, Settings(hosts=("testserver",), review_top=TOP, **settings))
    return TestClient(app, raise_server_exceptions=False)


def made(client, what="review"):
    """Have it made, and return the status then."""
    assert client.post(f"/v1/{what}").status_code == 202
    end = time.monotonic() + 120
    while (status := client.get(f"/v1/{what}").json())["making"]["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return status


def decide(client, sample, decision, label=None, reviewer="Ada"):
    body = {"reviewer": reviewer, "id": sample, "decision": decision, "label": label}
    return client.post("/v1/review/decisions", json=body)


@pytest.fixture(scope="module")
def reviewed(built):
    return review(gradindex.load(built, named_job()), top=TOP)


def test_the_review_is_that_of_the_library_and_is_paged(path, reviewed):
    with serving(path, max_queries=16) as client:
        status = client.get("/v1/review").json()
        assert status["making"]["state"] == "none" and status["kinds"] == []
        assert client.get("/v1/review/rows?kind=label").status_code == 404
        status = made(client)
        assert status["making"]["state"] == "ready", status
        assert {one["kind"]: one["total"] for one in status["kinds"]} == {
            kind: len(reviewed.of(kind)) for kind in ("label", "duplicate", "outlier", "opponent", "confusion")
        }
        assert "50 labels were planted wrong" in status["precision_from"]
        for kind in ("label", "opponent", "confusion"):
            found = []
            while len(found) < len(reviewed.of(kind)):
                page = client.get(f"/v1/review/rows?kind={kind}&offset={len(found)}&limit=16").json()
                assert 0 < len(page["rows"]) <= 16 and page["total"] == len(reviewed.of(kind))
                found += page["rows"]
            assert [row["place"] for row in found] == list(range(len(found)))
            for row, want in zip(found, reviewed.of(kind), strict=True):
                assert (row["id"], row["score"], row["proposed"]) == (want.id, want.score, want.proposed)
                assert (row["precision"], row["note"]) == (want.precision, want.note)
                assert [one["id"] for one in row["neighbours"]] == list(want.neighbours)
                assert [one["label"] for one in row["neighbours"]] == list(want.neighbour_labels)
        first = client.get("/v1/review/rows?kind=label&limit=1").json()["rows"][0]
        assert first["sample"]["label_name"] in NAMES and first["proposed_name"] in NAMES
        assert len(first["neighbours"][0]["rendered"]["data"]) == 64
        pair = client.get("/v1/review/rows?kind=confusion&limit=1").json()["rows"][0]
        assert pair["sample"] is None and set(pair["classes"]) <= set(NAMES) and pair["decided"] is None
        assert client.get("/v1/review/rows?kind=label&offset=600").json()["rows"] == []
        assert client.get("/v1/review/rows?kind=label&limit=17").status_code == 422
        assert client.get("/v1/review/rows?kind=nonsense").status_code == 422


def test_a_review_is_made_once_for_each_state(path, monkeypatch):
    from gradindex.serve import reviewing

    calls, real = [], reviewing.review

    def counted(index, **options):
        calls.append(len(index))
        return real(index, **options)

    monkeypatch.setattr(reviewing, "review", counted)
    with serving(path) as client:
        for _ in range(3):
            client.post("/v1/review")
        before = made(client)
    (kept,) = path.with_name("index.review").glob("review.*.parquet")
    with serving(path) as client:  # the file is read
        assert client.get("/v1/review").json()["making"]["state"] == "ready"
        assert made(client)["kinds"] == before["kinds"]
        assert len(calls) == 1
    gradindex.load(path).remove([0])
    with serving(path) as client:
        assert client.get("/v1/review").json()["making"]["state"] == "none"
        after = made(client)
        assert len(calls) == 2 and after["generation"] != before["generation"]
    (other,) = path.with_name("index.review").glob("review.*.parquet")
    assert other != kept
    other.write_bytes(b"nonsense")  # what is damaged is made anew
    with serving(path) as client:
        assert made(client)["kinds"] == after["kinds"] and len(calls) == 3
    Kept(other)
    assert (
        run(["verify", str(path), "tests.serve.test_review:named_job", "--queries", "5"]) == 0
    )  # and no stranger in it


def test_lookups_are_answered_while_a_review_is_made(path):
    answered = []
    with serving(path) as client:
        turns, turn = [], client.app.state.service.reviewing.turn

        def slow(work):
            turns.append(len(answered))
            time.sleep(0.05)
            return turn(work)

        client.app.state.service.reviewing.turn = slow
        client.post("/v1/review")
        while client.get("/v1/review").json()["making"]["state"] == "running":
            assert client.post("/v1/explain", json={"ids": [3], "k": 2}).status_code == 200
            answered.append(1)
        assert client.get("/v1/review").json()["making"]["state"] == "ready"
    assert len(turns) == 4 and turns[-1] > 0  # both spaces in batches, lookups between them


def test_why_a_review_failed_is_said_and_it_can_be_tried_again(path, monkeypatch):
    from gradindex.serve import reviewing

    real = reviewing.review
    monkeypatch.setattr(reviewing, "review", lambda *given, **options: 1 / 0)
    with serving(path) as client:
        making = made(client)["making"]
        assert (making["state"], making["detail"]) == ("failed", "division by zero")
        monkeypatch.setattr(reviewing, "review", real)
        assert made(client)["making"]["state"] == "ready"


def test_decisions_of_two_and_what_stands(path):
    with serving(path) as client:
        answer = decide(client, 3, "remove").json()
        assert answer["standing"]["reviewer"] == "Ada" and answer["differing"] == []
        answer = decide(client, 3, "relabel", 7, "Ben").json()
        assert (answer["standing"]["label"], answer["standing"]["label_name"]) == (7, "seven")
        assert [(one["reviewer"], one["decision"]) for one in answer["differing"]] == [("Ada", "remove")]
        assert client.get("/v1/review/decisions/3").json() == {**answer, "entry": None}
        undone = client.post("/v1/review/undo", json={"reviewer": "Ben"}).json()
        assert (undone["entry"]["undoes"], undone["standing"]["decision"]) == (1, "remove")
        nothing = client.post("/v1/review/undo", json={"reviewer": "Ben"})
        assert nothing.status_code == 404 and "nothing that could be undone" in nothing.json()["detail"]
        page = client.get("/v1/review/decisions?since=1&limit=1").json()
        assert page["next"] == 2 and [one["id"] for one in page["entries"]] == [3]
        status = made(client)
        ids = client.get("/v1/review/rows?kind=label&limit=3").json()["rows"]
        assert (status["decided"], status["next"]) == (1, 3)
        for row in ids[:2]:
            decide(client, row["id"], "keep")
        labels = client.get("/v1/review").json()["kinds"][0]
        assert labels["decided"] in (2, 3) and labels["first_open"] == 2
        rows = client.get("/v1/review/rows?kind=label&limit=3").json()["rows"]
        assert [row["decided"]["standing"] is not None for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"id": 9999, "decision": "keep"}, 404, "out of range"),
        ({"id": 3, "decision": "drop"}, 422, "keep"),
        ({"id": 3, "decision": "relabel"}, 422, "label: None is none of the classes"),
        ({"id": 3, "decision": "relabel", "label": 10}, 422, "label: 10 is none of the classes"),
        ({"id": 3, "decision": "keep", "label": 1}, 422, "relabel alone takes one, keep takes none"),
        ({"id": 3, "decision": "keep", "reviewer": " "}, 422, "reviewer"),
        ({"id": 3, "decision": "keep", "reviewer": "a\nb"}, 422, "reviewer"),
        ({"id": 3, "decision": "keep", "reviewer": "a" * 65}, 422, "reviewer"),
        ({"id": 3, "decision": "keep", "colour": "red"}, 422, "colour"),
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused(path, body, code, said):
    with serving(path) as client:
        answer = client.post("/v1/review/decisions", json={"reviewer": "Ada", **body})
        assert (answer.status_code, said in answer.json()["detail"]) == (code, True), answer.json()
    assert not path.with_name("index.review").exists()


def test_samples_without_classes_get_no_other_one(tmp_path):
    from tests.review.kit import targets_job

    gradindex.build(targets_job(), tmp_path / "index")
    with serving(tmp_path / "index", targets_job()) as client:
        said = decide(client, 3, "relabel", 1)
        assert said.status_code == 422 and "have no classes" in said.json()["detail"]
        assert decide(client, 3, "remove").status_code == 200
        status = made(client)
        assert {one["kind"] for one in status["kinds"] if one["total"]} == {"duplicate", "outlier"}
        assert "The job's task is regression" in status["left_out"][0]


def test_read_only_takes_no_decisions(path):
    with serving(path) as client:
        decide(client, 3, "remove")
    with serving(path, read_only=True) as client:
        for answer in (decide(client, 4, "keep"), client.post("/v1/review/undo", json={"reviewer": "Ada"})):
            assert answer.status_code == 403
            assert answer.json()["detail"] == "No decisions are taken here. This service was started with --read-only."
        status = client.get("/v1/review").json()
        assert status["read_only"] and status["decided"] == 1  # what was decided is shown
        assert "3,remove,,Ada" in client.get("/v1/review/export").text


def test_pages_from_elsewhere_may_not_decide(path):
    with serving(path) as client:
        for headers, code in (
            ({"origin": "http://elsewhere.org"}, 403),
            ({"origin": "null"}, 403),
            ({"sec-fetch-site": "cross-site", "origin": "http://testserver"}, 403),
            ({"sec-fetch-site": "same-site"}, 403),
            ({"origin": "http://testserver"}, 200),
            ({"sec-fetch-site": "same-origin", "origin": "http://testserver"}, 200),
            ({}, 200),
        ):
            body = {"reviewer": "Ada", "id": 3, "decision": "keep"}
            assert client.post("/v1/review/decisions", json=body, headers=headers).status_code == code, headers
        assert client.get("/v1/review", headers={"origin": "http://elsewhere.org"}).status_code == 200
        plain = client.post("/v1/review/decisions", content=json.dumps(body), headers={"content-type": "text/plain"})
        assert plain.status_code == 422


def test_the_token_and_the_limits_stand_before_decisions_too(path):
    with serving(path, token="correct horse", max_body=2000) as client:
        assert decide(client, 3, "keep").status_code == 401
        client.headers["authorization"] = "Bearer correct horse"
        assert decide(client, 3, "keep").status_code == 200
        assert decide(client, 3, "keep", reviewer="a" * 3000).status_code == 413
        assert client.get("/v1/review", headers={"host": "elsewhere"}).status_code == 400


def test_a_disk_that_is_full_is_said_and_nothing_is_acknowledged(path, monkeypatch):
    from gradindex.store import disk

    def full(path, data):
        raise OSError(28, "No space left on device")

    with serving(path) as client:
        decide(client, 3, "keep")
        monkeypatch.setattr(disk, "append", full)
        answer = decide(client, 4, "keep")
        assert answer.status_code == 507
        assert answer.json()["detail"] == "The decision could not be kept: No space left on device."
        monkeypatch.undo()
        assert client.get("/v1/review/decisions/4").json()["standing"] is None
        assert decide(client, 4, "keep").status_code == 200


def test_a_directory_of_ones_own_and_one_that_cannot_be_written(path, tmp_path):
    with serving(path, review_dir=tmp_path / "mine" / "here") as client:
        decide(client, 3, "keep")
        assert made(client)["making"]["state"] == "ready"
    assert {one.suffix for one in (tmp_path / "mine" / "here").iterdir()} == {".jsonl", ".parquet"}
    assert not path.with_name("index.review").exists()
    (tmp_path / "file").touch()
    with serving(path, review_dir=tmp_path / "file", read_only=True) as client:  # kept in memory alone
        assert made(client)["making"]["state"] == "ready"
        assert len(client.get("/v1/review/rows?kind=label").json()["rows"]) == 20


def test_the_audit_log_tells_who_when_by_which_request_and_what_was_before(path):
    with serving(path, named_tokens={"laptop-7": "correct horse"}) as client:
        client.headers |= {"authorization": "Bearer correct horse", "x-request-id": "first"}
        decide(client, 3, "relabel", 7)
        client.headers["x-request-id"] = "second"
        client.post("/v1/review/undo", json={"reviewer": "Ada"})
        entries = client.get("/v1/review/decisions").json()["entries"]
    (file,) = path.with_name("index.review").glob("decisions.*.jsonl")
    for lines in (entries, [json.loads(line) for line in file.read_text().splitlines()]):
        assert [(one["reviewer"], one["client"], one["request"]) for one in lines] == [
            ("Ada", "laptop-7", "first"),
            ("Ada", "laptop-7", "second"),
        ]
        assert [one["before"] for one in lines] == [None, {"decision": "relabel", "label": 7}]
        assert all(one["time"].endswith("Z") for one in lines)
    with serving(path) as client:  # who is not known is not made up
        entry = decide(client, 4, "keep").json()["entry"]
        assert entry["client"] is None and len(entry["request"]) == 32


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_export_is_carried_out_by_remove(path, tmp_path, capsys, form):
    with serving(path) as client:
        decide(client, 3, "remove")
        decide(client, 14, "relabel", 9)
        decide(client, 15, "remove")
        decide(client, 15, "later", reviewer="Ben")
        answer = client.get(f"/v1/review/export?form={form}")
        assert f'filename="decisions.{form}"' in answer.headers["content-disposition"]
        (tmp_path / f"d.{form}").write_bytes(answer.content)
        assert client.get("/v1/review/export?form=xml").status_code == 422
    given = ["remove", str(path), "--decisions", str(tmp_path / f"d.{form}"), "--relabels", str(tmp_path / "new.csv")]
    assert run([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert Store.open(path).state.removed.tolist() == [3]
    assert (tmp_path / "new.csv").read_text() == "id,label\n14,9\n"


def test_decisions_belong_to_an_index_and_outlive_its_changes(path):
    with serving(path) as client:
        decide(client, 3, "keep")
    gradindex.load(path).remove([0])
    with serving(path) as client:
        assert client.get("/v1/review/decisions/3").json()["standing"]["decision"] == "keep"
    gradindex.build(named_job(), path, sketch=gradindex.CountSketch(32), overwrite=True)
    with serving(path) as client:  # another index, whose ids may mean other samples
        assert client.get("/v1/review/decisions/3").json()["standing"] is None
    assert len(list(path.with_name("index.review").glob("decisions.*.jsonl"))) == 1


def test_the_map_is_drawn_once_and_says_what_it_shows(path):
    with serving(path, map_points=100, map_way="pca") as client:
        assert client.get("/v1/map/points").status_code == 404
        status = made(client, "map")
        assert (status["making"]["state"], status["points"]) == ("ready", 100)
        points = client.get("/v1/map/points").json()
        decide(client, points["ids"][5], "later")
        store = Store.open(path)
        rows = store.rows_of(np.array(points["ids"]))
        again = client.get("/v1/map/points").json()
        assert again["decisions"] == [None] * 5 + ["later"] + [None] * 94
    assert points["ids"] == sorted(set(points["ids"])) and points["of"] == 500 and points["way"] == "pca"
    assert points["labels"] == store.columns["label"][rows].tolist()
    np.testing.assert_allclose(points["norms"], store.norms[rows], rtol=1e-6)
    places = np.array([points["x"], points["y"]])
    assert places.min() == 0 and places.max() == 1
    (kept,) = path.with_name("index.review").glob("map.*.npz")
    with serving(path, map_points=100, map_way="pca") as client:
        assert client.get("/v1/map").json()["making"]["state"] == "ready"
        assert client.get("/v1/map/points").json() == again
        kept.write_bytes(b"nonsense")
    with serving(path, map_points=100, map_way="pca") as client:
        made(client, "map")
        assert client.get("/v1/map/points").json() == again


def test_it_is_alive_and_ready(path, monkeypatch):
    with serving(path, token="correct horse") as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        for worker in client.app.state.service._workers.values():
            worker.close()
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "No more lookups are taken" in answer.json()["detail"]
        assert client.get("/healthz").status_code == 200


def test_settings_are_printed_without_the_token(built, capsys, monkeypatch):
    monkeypatch.setenv("GRADINDEX_TOKEN", "correct horse")
    assert run(["serve", str(built), "no.such:job", "--print-settings", "--read-only", "--map-way", "pca"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert "horse" not in out and found["token"] == "(set)"
    assert (found["read_only"], found["map_way"], found["port"], found["review_dir"]) == (True, "pca", 8000, None)


def test_two_reviewers_at_once_lose_nothing_although_the_service_is_killed(tmp_path):
    """For ten minutes: python benchmarks/reviewers.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "reviewers.py"), "--seconds", "4", "--every", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert found["acknowledged"] > 100 and found["stops"] == {"SIGKILL": 1, "SIGTERM": 1}, found
    assert (found["lost"], found["twice"], found["refused"]) == (0, 0, 0), found
