"""The routes: the same answers as the Python interface, and a plain refusal of everything else."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.jobs import ROWS, digits
from tests.serve.jobs import NAMES

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

X, Y = digits()


def explain(client, **asked):
    answer = client.post("/v1/explain", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def matches(found, want, row=0):
    """Compare an answer with a row of an explanation."""
    for side, ids, scores, exact in (
        ("proponents", "ordered_indices", "scores", "exact"),
        ("opponents", "opponent_indices", "opponent_scores", "opponent_exact"),
    ):
        assert [one["id"] for one in found[side]] == want.data[ids][row].tolist()
        np.testing.assert_allclose([one["score"] for one in found[side]], want.data[scores][row], atol=1e-6)
        assert [one["exact"] for one in found[side]] == want.data[exact][row].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "kernel": "grad_dot"},
        {"k": 4, "kernel": "grad_asym_dot", "rerank": 0},
        {"k": 5, "where": {"label": [3, 8]}},
        {"k": 2, "where": [1, 5, 9]},
        {"k": 3, "where": {"writer": "even", "label": 2}},
        {"k": 3, "certify": True, "max_checks": 240},
    ],
)
def test_ids_are_answered_as_by_explain(client, index, options):
    found = explain(client, ids=[7, 11], **options)
    want = index.explain(ids=[7, 11], **options)
    assert found["kernel"] == options.get("kernel", "grad_cos")
    assert found["selected"] == want.meta["params"]["selected"]
    for row in range(2):
        answer = found["answers"][row]
        matches(answer, want, row)
        assert answer["query"]["label"] == Y[[7, 11]][row]
        assert answer["query"]["label_name"] == NAMES[Y[[7, 11]][row]]
        assert answer["proved"] == bool(want.proved[row] and want.opponent_proved[row])
        for one in answer["proponents"] + answer["opponents"]:
            assert one["label"] == Y[one["id"]]
            assert one["columns"] == {"writer": "<b>odd</b>" if one["id"] % 2 else "even"}


def test_raw_inputs_are_answered_with_and_without_labels(client, index):
    inputs = X[[20, 30]].tolist()
    for labels in (None, [3, 4], [5]):
        found = explain(client, inputs=inputs, labels=labels, k=4)
        want = index.explain(X[[20, 30]], None if labels is None else np.array(labels), k=4)
        for row in range(2):
            matches(found["answers"][row], want, row)
            assert found["answers"][row]["query"]["prediction"] == want.query_predictions[row]
            label = None if labels is None else labels[row % len(labels)]
            assert found["answers"][row]["query"]["label"] == label


def same_but_for_ties(found, want, k):
    """Compare an answer with an explanation of more than k: samples of equal scores may stand in either order."""
    for side, ids, scores in (
        ("proponents", "ordered_indices", "scores"),
        ("opponents", "opponent_indices", "opponent_scores"),
    ):
        known = dict(zip(want.data[ids][0].tolist(), want.data[scores][0].tolist(), strict=True))
        got = [one["score"] for one in found[side]]
        np.testing.assert_allclose(got, want.data[scores][0, :k], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([known[one["id"]] for one in found[side]], got, rtol=1e-5, atol=1e-6)


def test_batching_changes_no_answer(client, index):
    """Forty different requests at once, of five kinds, against the same ones by themselves."""
    kinds = [
        {"k": 5, "rerank": 0},
        {"k": 3, "kernel": "grad_dot", "rerank": 0},
        {"k": 5, "rerank": 0},
        {"k": 4, "where": {"label": 2}, "rerank": 0},
        {"k": 5, "rerank": 20},
    ]
    asked = [{"ids": [i], **kinds[i % 5]} if i % 2 else {"inputs": [X[i].tolist()], **kinds[i % 5]} for i in range(40)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda one: explain(client, **one), asked))
    assert max(one["timing"]["batch"] for one in together) > 1
    for i, found in enumerate(together):
        query = {"ids": [i]} if i % 2 else {"x": X[i : i + 1]}
        k = kinds[i % 5]["k"]
        want = index.explain(**query, **kinds[i % 5] | {"k": k + 3})
        same_but_for_ties(found["answers"][0], want, k)


def test_search_is_that_of_the_index(client, index):
    vectors = index.store.gather(np.array([3, 9])) * 5  # of any length
    answer = client.post("/v1/search", json={"vectors": vectors.tolist(), "k": 4, "where": {"label": [1, 3, 9]}})
    scores, ids = index.search(vectors, 4, where={"label": [1, 3, 9]})
    assert answer.json()["ids"] == ids.tolist()
    np.testing.assert_allclose(answer.json()["scores"], scores, atol=1e-6)
    few = client.post("/v1/search", json={"vectors": vectors[:1].tolist(), "k": 4, "where": [2, 3]}).json()
    assert sorted(few["ids"][0]) == [2, 3]


def test_an_item_shows_label_columns_and_picture(client, index):
    from PIL import Image

    item = client.get("/v1/items/11").json()
    assert (item["label"], item["label_name"], item["columns"]) == (Y[11], NAMES[Y[11]], {"writer": "<b>odd</b>"})
    assert item["norm"] == pytest.approx(index.store.norms[11])
    kind, _, data = item["rendered"]["data"].partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_allclose(pixels / 255, X[11].reshape(8, 8), atol=1 / 255)


def test_items_are_listed_by_class_and_page(client):
    found = client.get("/v1/items", params={"label": 3, "offset": 2, "limit": 5}).json()
    threes = np.flatnonzero(Y == 3)
    assert found["total"] == len(threes)
    assert [one["id"] for one in found["items"]] == threes[2:7].tolist()
    assert client.get("/v1/items", params={"offset": ROWS}).json()["items"] == []


def test_audit_index_health_and_metrics(client, index):
    from gradindex import __version__

    audit = client.get("/v1/audit").json()
    saved = json.loads((index.store.path / "audit.json").read_text())
    assert audit == {name: value for name, value in saved.items() if name != "seal"}
    info = client.get("/v1/index").json()
    assert (info["samples"], info["version"], info["class_names"]) == (ROWS, __version__, NAMES)
    form = {"kind": "array", "shape": [64], "picture": [8, 8], "low": 0.0, "high": 1.0, "why_no_picture": ""}
    assert info["input"] == form | {"prepares": False, "tokenizer": False}
    assert client.get("/healthz").json() == {"status": "ok", "rows": ROWS}
    text = client.get("/metrics").text
    assert f"gradindex_rows {ROWS}.0" in text
    assert 'gradindex_requests_total{method="GET",route="/healthz",status="200"} 1.0' in text


def test_rendered_neighbours_come_with_the_answer(client):
    (answer,) = explain(client, inputs=[X[0].tolist()], k=2, render=True)["answers"]
    shown = [answer["query"]["rendered"], *(one["rendered"] for one in answer["proponents"])]
    assert {one["kind"] for one in shown} == {"image"}
    assert shown[0] == client.get("/v1/items/0").json()["rendered"]


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({}, 422, "Give either inputs or ids"),
        ({"ids": [1], "inputs": [[0] * 64]}, 422, "Give either inputs or ids"),
        ({"ids": []}, 422, "body.ids"),
        ({"ids": [240]}, 404, "Ids [240] are out of range for an index of 240 samples"),
        ({"ids": [-1]}, 422, "body.ids.0"),
        ({"ids": [10**30]}, 422, "body.ids.0"),
        ({"ids": [1.5]}, 422, "body.ids.0"),
        ({"ids": [True]}, 422, "body.ids.0"),
        ({"ids": list(range(17))}, 422, "17 queries; at most 16"),
        ({"ids": [1], "k": 0}, 422, "body.k"),
        ({"ids": [1], "k": 101}, 422, "k is 101; at most 100 here"),
        ({"ids": [1], "rerank": 10_001}, 422, "may be at most 10000"),
        ({"ids": [1], "kernel": "cosine"}, 422, "'grad_asym_dot', 'white_dot' or 'white_cos'"),
        ({"ids": [1], "labels": [1]}, 422, "labels belong to inputs"),
        ({"ids": [1], "nonsense": 1}, 422, "body.nonsense"),
        ({"ids": [1], "where": {"label": 77}}, 422, "matches none of the 240 samples"),
        ({"ids": [1], "where": {"colour": 1}}, 422, "There is no column 'colour'"),
        ({"ids": [1], "where": {"label": "3"}}, 422, "Column 'label' holds int64, with which '3' (str) cannot"),
        ({"ids": [1], "where": [240]}, 404, "out of range"),
        ({"ids": [1], "max_checks": 20}, 422, "max_checks limits a proof"),
        ({"inputs": [[0.5] * 63]}, 422, "expected numbers of shape (64), got (63,)"),
        ({"inputs": [["a"] * 64]}, 422, "expected numbers of shape (64)"),
        ({"inputs": [[[1], [1, 2]]]}, 422, "lists of unequal lengths"),
        ({"inputs": ["text"]}, 422, "expected numbers"),
        ({"inputs": [{"a": 1}]}, 422, "expected numbers"),
        ({"inputs": [[0.5] * 63 + [1e300]]}, 422, "too large for float32"),
        ({"inputs": [[0.5] * 63 + [10**40]]}, 422, "got something else"),
        ({"inputs": [[0] * 64], "labels": [0.5]}, 422, "expected int64 numbers"),
        ({"inputs": [[0] * 64], "labels": [1, 2]}, 422, "1 inputs but 2 labels"),
        ({"inputs": [[0] * 64], "labels": [99]}, 422, ""),
    ],
)
def test_senseless_requests_are_refused(client, asked, status, said):
    answer = client.post("/v1/explain", json=asked)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client, number):
    for path, body in (
        ("/v1/explain", f'{{"inputs": [[{", ".join([number] * 64)}]]}}'),
        ("/v1/explain", f'{{"ids": [{number}]}}'),
        ("/v1/explain", f'{{"ids": [1], "where": {{"loss": {number}}}}}'),
        ("/v1/search", f'{{"vectors": [[{", ".join([number] * 1024)}]]}}'),
    ):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"\xff\xfe", 422),
        (b"[" * 100_000, 400),
        (b'{"ids": [1], "where": {"\\ud800": "\\udfff"}}', 422),
        (b'{"ids": [' + b"1" * 5000 + b"]}", 400),
    ],
)
def test_bodies_that_are_not_requests(client, body, status):
    answer = client.post("/v1/explain", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_a_body_over_the_limit_is_not_read(client):
    large = b'{"ids": [1' + b" " * 200_000 + b"]}"
    assert client.post("/v1/explain", content=large).status_code == 413
    pieces = (large[i : i + 1000] for i in range(0, len(large), 1000))  # without a length
    assert client.post("/v1/explain", content=pieces).status_code == 413
    assert client.post("/v1/explain", content=b"{}", headers={"content-length": "-5"}).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/static//etc/passwd",
        "/static/%00",
        "/static/",
        "/v1/items/..%2f..%2faudit.json",
        "/v1/items/-1",
        "/v1/items/99999999999999999999",
        "/v1/items/1e3",
        "/v1/items?offset=-1",
        "/v1/items?limit=100000",
        "/v1/items?label=nan",
        "/docs",
        "/store.json",
    ],
)
def test_paths_lead_to_nothing_else(client, path):
    answer = client.get(path)
    assert 400 <= answer.status_code < 500, (path, answer.status_code)
    assert b"root:" not in answer.content and b"def make" not in answer.content


def test_a_page_from_elsewhere_cannot_ask(client):
    assert client.get("/v1/index", headers={"host": "evil.example"}).status_code == 400
    plain = client.post("/v1/explain", content=b'{"ids": [1]}', headers={"content-type": "text/plain"})
    assert plain.status_code == 422  # what a form of another site could send without being asked
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_a_token_opens_what_is_not_public(index):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    settings = Settings(hosts=("testserver",), token="open sesame!")
    with TestClient(create_app(index, settings)) as client:
        for path in ("/v1/index", "/v1/items/1", "/v1/audit", "/metrics"):
            for given in (None, "open sesame!", "Bearer", "Bearer open sesame", "Bearer open sesame!!", "Basic x"):
                answer = client.get(path, headers={} if given is None else {"authorization": given})
                assert answer.status_code == 401, (path, given)
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"authorization": "Bearer open sesame!"}).status_code == 200
        assert client.post("/v1/explain", json={"ids": [1]}).status_code == 401
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200
    assert "sesame" not in repr(settings)


def test_too_much_waiting_is_refused(index, monkeypatch):
    import threading

    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    app = create_app(index, Settings(hosts=("testserver",), max_queries=2, max_waiting=2))
    with TestClient(app) as client:
        held, begun, lookup = threading.Event(), threading.Event(), app.state.service.lookup
        real = lookup.explain

        def slow(*arguments):
            begun.set()
            held.wait(20)
            return real(*arguments)

        monkeypatch.setattr(lookup, "explain", slow)
        with ThreadPoolExecutor(5) as pool:
            first = pool.submit(client.post, "/v1/explain", json={"ids": [1]})
            assert begun.wait(10)
            rest = [pool.submit(client.post, "/v1/explain", json={"ids": [i]}) for i in range(4)]
            while sum(one.done() for one in rest) < 2:
                pass
            held.set()
            codes = sorted(one.result().status_code for one in rest)
        assert first.result().status_code == 200
        assert codes == [200, 200, 429, 429]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_k": 0}, "max_k must be positive, got 0"),
        ({"token": "short"}, "token must be at least 8 ASCII characters"),
        ({"max_waiting": 3}, "max_waiting is 3, less than one request's 64 queries"),
    ],
)
def test_settings_are_checked(options, said):
    from gradindex.serve import Settings

    with pytest.raises(ValueError, match=said):
        Settings(**options)
