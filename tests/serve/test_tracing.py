"""Spans of requests and of the stages of their answers, as OpenTelemetry's SDK collects them.

Run in .ci/optional, as the README's test line does not install the SDK.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk", reason="spans are tested with OpenTelemetry: pip install opentelemetry-sdk")
pytest.importorskip("fastapi")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def provided():
    """The process's provider, which can be set but once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(provided):
    provided.clear()
    return provided.get_finished_spans


@pytest.fixture
def client(index, provided):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    settings = Settings(hosts=("testserver",), named_tokens={"laptop": "correct horse"})
    with TestClient(create_app(index, settings), headers={"authorization": "Bearer correct horse"}) as client:
        yield client


def named(spans, *names):
    return [one for one in spans() if one.name in names]


def test_an_answer_is_a_span_with_its_stages_below(client, spans):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": parent, "x-request-id": "traced-7"}
    answer = client.post("/v1/explain", json={"ids": [3, 4], "k": 5}, headers=headers)
    timing = answer.json()["timing"]
    (request,) = named(spans, "POST /v1/explain")
    assert request.kind is trace.SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.attributes["http.route"] == "/v1/explain"
    assert request.attributes["http.response.status_code"] == 200
    assert (request.attributes["gradindex.request_id"], request.attributes["gradindex.client"]) == (
        "traced-7",
        "laptop",
    )
    wait, embed, search, check = (
        next(iter(named(spans, f"gradindex.{name}"))) for name in ("wait", "embed", "search", "check")
    )
    for one in (wait, embed, search, check):
        assert one.parent.span_id == request.context.span_id
        assert request.start_time - 1e6 <= one.start_time <= one.end_time <= request.end_time + 1e6
    assert wait.attributes["gradindex.queries"] == 2
    assert (wait.end_time - wait.start_time) / 1e9 == pytest.approx(timing["waited"], abs=1e-4)
    assert search.attributes["gradindex.batch"] == 2 and search.attributes["gradindex.k"] == 5
    assert search.attributes["gradindex.kernel"] == "grad_cos" and search.attributes["gradindex.rerank"] == 50
    for one, stage in ((embed, "gradients"), (search, "search"), (check, "exact")):
        assert one.attributes["gradindex.busy_seconds"] == pytest.approx(timing["stages"][stage])


def test_requests_that_share_a_batch_have_their_own(client, spans):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: client.post("/v1/explain", json={"ids": [i], "k": 3}), range(8)))
    requests = named(spans, "POST /v1/explain")
    assert len(requests) == 8
    searches = {one.parent.span_id: one for one in named(spans, "gradindex.search")}
    assert {one.context.span_id for one in requests} == set(searches)
    assert all(one.context.trace_id == searches[one.context.span_id].context.trace_id for one in requests)


def test_vectors_have_a_search_and_health_has_nothing(client, spans):
    client.post("/v1/search", json={"vectors": [[1.0] * 1024], "k": 3})
    for path in ("/healthz", "/readyz", "/metrics"):
        client.get(path)
    assert len(named(spans, "gradindex.search")) == 1
    assert not any("/healthz" in one.name or "/readyz" in one.name or "/metrics" in one.name for one in spans())


def test_a_failure_is_an_error(index, spans, monkeypatch):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    app = create_app(index, Settings(hosts=("testserver",)))
    with TestClient(app, raise_server_exceptions=False) as client:
        monkeypatch.setattr(app.state.service.lookup, "items", lambda ids: 1 / 0)
        client.get("/v1/items/1")
    (request,) = named(spans, "GET /v1/items/{id}")
    assert request.status.status_code is trace.StatusCode.ERROR


@pytest.mark.parametrize("kind", ["absent", "no provider"])
def test_without_it_nothing_is_done(served_path, kind):
    """A process without the API, and one with the API alone, answer as ever and keep no context of any request."""
    code = f"""
import sys
import importlib.util
find = importlib.util.find_spec
hidden = {kind == "absent"}
importlib.util.find_spec = lambda name, *more: None if hidden and name == "opentelemetry" else find(name, *more)
import json, gradindex
from starlette.testclient import TestClient
from gradindex.serve import Settings, create_app, tracing
from tests.serve.jobs import pictures_job
kept = []
begun = tracing.begun
tracing.begun = lambda: kept.append(begun()) or kept[-1]
app = create_app(gradindex.load({str(served_path)!r}, pictures_job()), Settings(hosts=("testserver",)))
with TestClient(app) as client:
    status = client.post("/v1/explain", json={{"ids": [3], "k": 3}}).status_code
print(json.dumps([status, tracing.IS_INSTALLED, kept]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [200, kind != "absent", [None]]
