"""Indexes of other kinds through the service: Keras, texts, metrics, and rows that come and go."""

import dataclasses
import importlib.util

import numpy as np
import pytest

import gradindex
from tests.serve import jobs

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from gradindex.report import report
from gradindex.serve import Settings, create_app


def serving(index):
    return TestClient(create_app(index, Settings(hosts=("testserver",))), raise_server_exceptions=False)


def ask(client, **asked):
    answer = client.post("/v1/explain", json={"k": 4, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def same(found, want):
    assert [one["id"] for one in found["proponents"]] == want.ordered_indices[0].tolist()
    np.testing.assert_allclose([one["score"] for one in found["proponents"]], want.scores[0], atol=1e-5)
    assert [one["id"] for one in found["opponents"]] == want.opponent_indices[0].tolist()


@pytest.mark.parametrize("name", ["keras_job", "tokens_job", "texts_job"])
def test_jobs_of_every_kind(tmp_path, name):
    if name == "keras_job" and importlib.util.find_spec("keras") is None:
        pytest.skip("needs tensorflow")
    job = getattr(jobs, name)()
    index = gradindex.build(job, tmp_path / "index")
    raw = job.source.take(np.array([5])).x
    form = {"keras_job": "array", "tokens_job": "array", "texts_job": "text"}[name]
    with serving(index) as client:
        info = client.get("/v1/index").json()
        assert (info["input"]["kind"], info["kernel"], len(info["kernels"])) == (form, "grad_cos", 3)
        sent = [one if isinstance(one, str) else np.asarray(one).tolist() for one in raw]
        for given, want in (
            ({"ids": [5]}, index.explain(ids=[5], k=4)),
            ({"inputs": sent, "rerank": 4}, index.explain(raw, k=4, rerank=4)),
        ):
            (answer,) = ask(client, render=True, **given)["answers"]
            same(answer, want)
            kinds = {one["rendered"]["kind"] for one in answer["proponents"]}
            assert kinds == {"image" if name == "keras_job" else "text"}
        assert client.get("/v1/items/5").json()["rendered"] == answer["query"]["rendered"] or name == "tokens_job"
    assert index.explain(ids=[5], k=4).meta["params"]["exact_method"] == "forward mode"
    page = report(index, ids=[5], k=2)
    assert "Training sample 5" in page and "Most self-influential" in page


@pytest.mark.parametrize("metric", ["cos-last", "GD"])
def test_only_the_kernels_that_an_index_has_are_offered(tmp_path, metric):
    index = gradindex.build(jobs.pictures_job(), tmp_path / "index", metric=metric)
    audit = index.verify(queries=5)
    own = "cos-last" if metric == "cos-last" else "grad_dot"
    with serving(index) as client:
        info = client.get("/v1/index").json()
        assert (info["metric"], info["kernel"]) == (metric, own)
        assert info["kernels"] == ([own] if metric == "cos-last" else ["grad_dot", "grad_cos", "grad_asym_dot"])
        found = ask(client, ids=[7])
        assert found["kernel"] == own
        same(found["answers"][0], index.explain(ids=[7], k=4))
        for kernel in ("grad_dot", "grad_cos", "grad_asym_dot"):
            answer = client.post("/v1/explain", json={"ids": [7], "kernel": kernel})
            assert answer.status_code == (200 if kernel in info["kernels"] else 422), answer.text
        assert client.get("/v1/audit").json()["kernel"] == audit.kernel == own
    page = report(index, ids=[7], k=2)
    assert f"Scores are values of {own}" in page
    assert ("self-influential" in page, "Zero rows" in page) == ((False, True) if own == metric else (True, False))


def test_rows_that_come_and_go_are_followed(tmp_path):
    index = gradindex.build(dataclasses.replace(jobs.tokens_job(), render=None), tmp_path / "index")
    x, y = jobs.texts()
    with serving(index) as client:
        assert client.get("/v1/index").json()["samples"] == 60
        assert index.remove([3, 9]) == 2
        index.add((x[:5], y[:5]))
        info = client.get("/v1/index").json()
        assert (info["samples"], info["removed"], info["max_k"]) == (65, 2, 65)
        assert client.get("/healthz").json()["rows"] == 65
        assert "gradindex_rows 65.0" in client.get("/metrics").text
        listed = client.get("/v1/items", params={"offset": 58, "limit": 10}).json()
        assert [one["id"] for one in listed["items"]] == [60, 61, 62, 63, 64]
        (answer,) = ask(client, ids=[62])["answers"]
        assert {one["id"] for one in answer["proponents"][:2]} == {2, 62}
