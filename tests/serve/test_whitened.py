"""Kernels of whitened rows in the service: the same answers as in Python, and a refusal of what they cannot do."""

import pytest

from gradindex.kernels import WORDING, Kernel, KernelName, WhiteKernel
from tests.serve.test_service import explain, matches

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


def client_of(index):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    return TestClient(create_app(index, Settings(hosts=("testserver",))), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def white_client(whitened):
    with client_of(whitened) as client:
        yield client


@pytest.mark.parametrize("kernel", list(WhiteKernel))
@pytest.mark.parametrize("options", [{}, {"k": 3, "where": {"label": [3, 8]}}, {"k": 2, "rerank": 0}])
def test_whitened_kernels_are_answered_as_by_explain(white_client, whitened, kernel, options):
    found = explain(white_client, ids=[7, 11], kernel=kernel.value, **options)
    want = whitened.explain(ids=[7, 11], kernel=kernel.value, **options)
    assert (found["kernel"], found["rerank"]) == (kernel.value, 0)
    for row in range(2):
        answer = found["answers"][row]
        matches(answer, want, row)
        assert not any(one["exact"] for one in answer["proponents"] + answer["opponents"])
        assert (answer["proved"], answer["checked"]) == (False, 0)


def test_they_are_listed_where_there_are_whitened_rows(white_client, client):
    info = white_client.get("/v1/index").json()
    assert info["kernels"] == [*Kernel, *WhiteKernel]
    assert info["wording"]["white_dot"]["finds"] == WORDING[KernelName.WHITE_DOT].finds
    assert [name for name, one in info["wording"].items() if one["estimated"]] == ["white_dot", "white_cos"]
    info = client.get("/v1/index").json()
    assert info["kernels"] == list(info["wording"]) == list(Kernel)


def test_without_whitened_rows_it_says_how_to_make_them(client):
    answer = client.post("/v1/explain", json={"ids": [1], "kernel": "white_dot"})
    assert answer.status_code == 422
    assert "has no whitened rows: make them by index.whiten()" in answer.json()["detail"]


def test_an_estimate_cannot_be_proved(white_client):
    assert white_client.post("/v1/explain", json={"ids": [1], "certify": True}).status_code == 200
    answer = white_client.post("/v1/explain", json={"ids": [1], "kernel": "white_cos", "certify": True})
    assert answer.status_code == 422
    assert "white_cos is an estimate by whitened rows, for which certify has no meaning" in answer.json()["detail"]


def test_rows_that_are_whitened_meanwhile_are_offered(tmp_path):
    import gradindex
    from tests.serve.jobs import pictures_job

    index = gradindex.build(pictures_job(), tmp_path / "index")
    with client_of(index) as client:
        assert "white_dot" not in client.get("/v1/index").json()["kernels"]
        gradindex.load(tmp_path / "index").whiten()
        assert "white_dot" in client.get("/v1/index").json()["kernels"]
        assert explain(client, ids=[1], kernel="white_dot", k=2)["kernel"] == "white_dot"
