"""An index that is replaced while it is served: no request fails, new ones see the new one, and the old one goes."""

import gc
import json
import shutil
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gradindex
from tests.jobs import ROWS, digits, longer_job, other_model_job
from tests.serve.conftest import running
from tests.serve.jobs import pictures_job
from tests.serve.test_server import connect

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

SOON = 0.05  # seconds


@pytest.fixture
def path(served_path, tmp_path):
    return shutil.copytree(served_path, tmp_path / "index")


def serving(path, job=None, **settings):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    app = create_app(gradindex.load(path, job or pictures_job()), Settings(hosts=("testserver",), **settings))
    return TestClient(app, raise_server_exceptions=False)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def info(client):
    found = client.get("/v1/index").json()
    return found["samples"], found["removed"]


def test_every_change_is_taken_up(path):
    """Removed, compacted, built anew with the same rows, and with others; the metrics count each once."""
    with serving(path, reload_seconds=SOON) as client:
        assert info(client) == (ROWS, 0)
        gradindex.load(path).remove([3, 4])
        until(lambda: info(client) == (ROWS, 2))
        assert client.get("/v1/items/3").json()["removed"]
        gradindex.load(path).compact()
        until(lambda: info(client) == (ROWS - 2, 0))
        assert client.get("/v1/items/3").status_code == 404
        gradindex.build(pictures_job(), path, overwrite=True)
        until(lambda: info(client) == (ROWS, 0))
        before = client.get("/metrics").text
        assert 'gradindex_index_reloads_total{result="ok"} 3.0' in before and "gradindex_index_stale 0.0" in before
        gradindex.build(pictures_job(), path, overwrite=True)  # the same rows in other files
        until(lambda: 'gradindex_index_reloads_total{result="ok"} 4.0' in client.get("/metrics").text)
        gradindex.build(pictures_job(), path, overwrite=True, sketch=gradindex.CountSketch(128))
        until(lambda: client.get("/v1/index").json()["dim"] == 128)
        ready = client.get("/readyz").json()
        assert ready == {"status": "ok", "rows": ROWS, "stale": ""}
        assert client.post("/v1/explain", json={"ids": [3], "k": 3}).status_code == 200


def test_nothing_is_opened_while_nothing_changes(path, monkeypatch):
    from gradindex.index.index import Index

    with serving(path, reload_seconds=0) as client:
        look, opened, opening = client.app.state.service.reloading.look, [], Index.open
        look()
        monkeypatch.setattr(Index, "open", classmethod(lambda cls, *given: opened.append(given) or opening(*given)))
        for _ in range(5):
            look()
        assert opened == []
        gradindex.Store.open(path).remove([3])
        look()
        assert len(opened) == 1


def test_what_is_changed_through_the_served_object_is_there_at_once(path):
    """As in a notebook, where the file state changes, too: added samples are not opened a second time."""
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    index = gradindex.load(path, pictures_job())
    with TestClient(create_app(index, Settings(hosts=("testserver",), reload_seconds=0))) as client:
        service = client.app.state.service
        index.add((digits()[0][:5], digits()[1][:5]), columns={"writer": ["even"] * 5})
        assert info(client) == (ROWS + 5, 0)
        service.reloading.look()
        assert service.lookup.index is index
        index.remove([3, 4])
        assert info(client) == (ROWS + 5, 2)
        service.reloading.look()
        assert info(client) == (ROWS + 5, 2)
        assert client.post("/v1/explain", json={"ids": [ROWS + 2], "k": 3}).json()["selected"] == ROWS + 3


def test_what_was_accepted_is_answered_by_the_index_it_was_put_to(path):
    """Queries that wait keep their index, also beside later ones that are alike, whose index is the next one."""
    from gradindex.serve.lookup import Lookup

    with serving(path, reload_seconds=0) as client, ThreadPoolExecutor(4) as pool:
        service = client.app.state.service
        held, begun = threading.Event(), threading.Event()
        service._queue(lambda: (begun.set(), held.wait(30)))
        assert begun.wait(10)

        def ask(count):
            accepted = service.accepted
            waiting = [pool.submit(client.post, "/v1/explain", json={"ids": [i + 5], "k": 3}) for i in range(count)]
            until(lambda: service.accepted == accepted + count)
            return waiting

        old = ask(2)
        gradindex.load(path).remove([3, 4])
        service._take(Lookup(gradindex.load(path, pictures_job())))
        new = ask(2)
        held.set()
        assert [one.result().json()["selected"] for one in old] == [ROWS, ROWS]
        assert [one.result().json()["selected"] for one in new] == [ROWS - 2, ROWS - 2]


class Asking(threading.Thread):
    """Asks one thing after the other until it is stopped; keeps how each ended."""

    def __init__(self, address, number):
        super().__init__()
        self.connection, self.number, self.seen, self.stop = connect(address), number, [], False

    def run(self):
        bodies = [
            ("POST", "/v1/explain", json.dumps({"ids": [self.number], "k": 5, "render": True})),
            ("GET", f"/v1/items/{self.number}", None),
            ("GET", "/v1/items?limit=5", None),
        ]
        at = 0
        while not self.stop:
            method, path, body = bodies[at % 3]
            self.connection.request(method, path, body, {"content-type": "application/json"})
            answer = self.connection.getresponse()
            found = json.loads(answer.read())
            self.seen.append((answer.status, found.get("selected", found.get("total"))))
            at += 1
        self.connection.close()


def test_no_request_is_lost_while_the_index_changes(path):
    with running(path, "--reload-seconds", SOON) as (address, process):
        clients = [Asking(address, 10 + i) for i in range(4)]
        for client in clients:
            client.start()

        def seen(selected):
            return all(selected in [count for _, count in client.seen[-3:]] for client in clients)

        try:
            until(lambda: seen(ROWS))
            gradindex.load(path).remove([3, 4])
            until(lambda: seen(ROWS - 2))
            gradindex.load(path).compact()
            gradindex.load(path).remove([5])
            until(lambda: seen(ROWS - 3))
            gradindex.build(pictures_job(), path, overwrite=True)
            until(lambda: seen(ROWS))
            until(lambda: not deleted_files(process.pid, path))  # the old ones are let go of, on the disk as well
        finally:
            for client in clients:
                client.stop = True
            for client in clients:
                client.join(60)
    for client in clients:
        assert {status for status, _ in client.seen} == {200}
        counts = [count for _, count in client.seen if count is not None]
        states = [one for one, before in zip(counts, [None, *counts], strict=False) if one != before]
        assert states == [ROWS, ROWS - 2, ROWS - 3, ROWS]  # never back to an old one


def deleted_files(process, path):
    """Files that a process still maps of indexes that were at or beside `path` and are deleted."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return [line for line in lines if line.endswith("(deleted)") and str(path.parent) in line]


def test_the_old_index_is_let_go(path):
    with serving(path, reload_seconds=0) as client:
        service = client.app.state.service
        client.post("/v1/explain", json={"ids": [3], "k": 3})
        client.post("/v1/search", json={"vectors": [[1.0] * 1024]})
        old = [weakref.ref(one) for one in (service.lookup, service.lookup.index.store, service.lookup.index.searcher)]
        gradindex.load(path).remove([3])
        service.reloading.look()

        def gone():
            gc.collect()
            return not any(one() for one in old)

        until(gone)


def test_one_that_cannot_be_opened_is_said_and_the_old_one_goes_on(path, caplog):
    good = shutil.copytree(path, path.with_name("good"))
    with serving(path, reload_seconds=SOON) as client:
        gradindex.build(other_model_job(), path, overwrite=True)
        until(lambda: client.get("/readyz").json()["stale"])
        answer = client.get("/readyz")
        assert answer.status_code == 200  # lookups are taken
        assert answer.json()["stale"].startswith("The index on the disk is another one since 20")
        assert "was built from something else" in caplog.text and "the old one goes on" in caplog.text
        text = client.get("/metrics").text
        assert "gradindex_index_stale 1.0" in text and 'gradindex_index_reloads_total{result="failed"}' in text
        assert client.post("/v1/explain", json={"ids": [7], "k": 3}).status_code == 200
        shutil.rmtree(path)
        time.sleep(5 * SOON)
        assert client.post("/v1/explain", json={"ids": [8], "k": 3}).status_code == 200
        shutil.move(good, path)
        until(lambda: client.get("/readyz").json()["stale"] == "")
        assert "gradindex_index_stale 0.0" in client.get("/metrics").text
        assert client.post("/v1/explain", json={"ids": [7], "k": 3}).status_code == 200


def test_what_failed_is_tried_again_ever_more_rarely(path, monkeypatch):
    from gradindex.serve import reloading

    now, tried = [0.0], []
    monkeypatch.setattr(reloading.time, "monotonic", lambda: now[0])
    with serving(path, reload_seconds=1000) as client:
        service = client.app.state.service.reloading
        monkeypatch.setattr(service, "_open", lambda stamp: tried.append(now[0]) or 1 / 0)
        service._interval = 1.0
        for second in range(20):
            now[0] = float(second)
            service.look()
        assert tried == [0, 2, 6, 14]
        service.look(now=True)
        assert len(tried) == 5


def test_samples_that_were_added_come_with_the_jobs_new_data(tmp_path, monkeypatch):
    """The function that made the job is called again: it has the samples that the running one does not."""
    monkeypatch.setenv("GRADINDEX_TEST_ROWS", str(tmp_path / "rows"))
    (tmp_path / "rows").write_text(f"{ROWS}")
    gradindex.build(longer_job(ROWS), tmp_path / "index")
    with running(tmp_path / "index", "--reload-seconds", SOON, job="tests.serve.jobs:grown_job") as (address, _):
        connection = connect(address)

        def ask(method, path, body=None):
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        assert ask("GET", "/v1/index")[1]["samples"] == ROWS
        (tmp_path / "rows").write_text(f"{ROWS + 60}")
        gradindex.index.opening.add(tmp_path / "index", longer_job(ROWS + 60))
        until(lambda: ask("GET", "/v1/index")[1]["samples"] == ROWS + 60)
        status, found = ask("POST", "/v1/explain", json.dumps({"ids": [ROWS + 50], "k": 3}))
        assert status == 200 and found["rows"] == ROWS + 60
        connection.close()


def test_at_sighup_alone(path):
    with running(path, "--reload-seconds", 0) as (address, process):
        connection = connect(address)

        def selected():
            connection.request("POST", "/v1/explain", '{"ids": [7]}', {"content-type": "application/json"})
            return json.loads(connection.getresponse().read())["selected"]

        gradindex.load(path).remove([3])
        time.sleep(0.5)
        assert selected() == ROWS
        process.send_signal(signal.SIGHUP)
        until(lambda: selected() == ROWS - 1)
        connection.close()


def test_files_that_are_gone_before_it_is_seen_fail_no_request(whitened_path, tmp_path):
    """Whitened rows are opened when they are first asked for: here they are gone, and the new index answers."""
    path = shutil.copytree(whitened_path, tmp_path / "index")
    with serving(path, reload_seconds=1000) as client:
        shutil.rmtree(path)
        gradindex.build(pictures_job(), path, sketch=gradindex.Landmark(landmarks=64, dims=16)).whiten()
        assert client.get("/v1/index").json()["dim"] == 33
        answer = client.post("/v1/explain", json={"ids": [7], "k": 3, "kernel": "white_dot"})
        assert answer.status_code == 200
        assert client.get("/v1/index").json()["dim"] == 17


def test_decisions_go_with_the_index(path):
    body = {"reviewer": "Ada", "id": 3, "decision": "keep"}
    with serving(path, reload_seconds=SOON) as client:
        client.post("/v1/review/decisions", json=body)
        gradindex.build(pictures_job(), path, overwrite=True, sketch=gradindex.CountSketch(128))
        until(lambda: client.get("/v1/index").json()["dim"] == 128)
        assert client.get("/v1/review/decisions/3").json()["standing"] is None
        client.post("/v1/review/decisions", json=body | {"decision": "remove"})
    assert len(list(path.with_name("index.review").glob("decisions.*.jsonl"))) == 2
