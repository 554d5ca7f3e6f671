"""Broken texts and columns of any type: they reach page, service, report and plots, and end none of them."""

import datetime as dt

import numpy as np
import pytest

import gradindex
from tests.jobs import ROWS, digits_job

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")
BROKEN = "half \ud83d of a pair"
SHOWN = "half ? of a pair"


@pytest.fixture(scope="module", params=["text", "table"])
def index(request, tmp_path_factory):
    columns = {
        "date": [dt.date(2024, 1, 1) + dt.timedelta(i) for i in range(ROWS)],
        "big": [None if i % 2 else 2**53 + i for i in range(ROWS)],
        "tags": [["a"] * (i % 3) for i in range(ROWS)],
    }
    render = (lambda i: BROKEN) if request.param == "text" else (lambda i: {BROKEN: BROKEN})
    names = [BROKEN, "$5 and $6", "[b]two"]
    job = digits_job(render=render, class_names=names, columns=columns)
    return gradindex.build(job, tmp_path_factory.mktemp("texts") / request.param)


@pytest.fixture
def client(index):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    with TestClient(create_app(index, Settings(hosts=("testserver",))), raise_server_exceptions=False) as client:
        yield client


def test_the_service_answers(index, client):
    found = client.post("/v1/explain", json={"ids": [0, 1], "k": 40, "render": True})
    assert found.status_code == 200
    text = found.json()["answers"][0]["query"]["rendered"]["data"]
    assert text in (SHOWN, {SHOWN: SHOWN})
    assert client.get("/v1/index").json()["class_names"] == [SHOWN, "$5 and $6", "[b]two"]
    for one in found.json()["answers"][1]["proponents"]:
        assert one["columns"] == {
            "date": str(dt.date(2024, 1, 1) + dt.timedelta(one["id"])),
            "big": None if one["id"] % 2 else 2**53 + one["id"],
            "tags": ["a"] * (one["id"] % 3),
        }
        assert one.get("label_name") == ([SHOWN, "$5 and $6", "[b]two"] + [None] * 7)[one["label"]]
    item = client.get("/v1/items/4").json()
    assert item["columns"] == {"date": "2024-01-05", "big": 2**53 + 4, "tags": ["a"]}
    assert "label_name" not in item or item["label_name"] is None


def test_filters_of_the_service(client):
    def ids(where):
        answer = client.post("/v1/explain", json={"ids": [0], "k": 3, "rerank": 0, "where": where})
        return answer.status_code, [one["id"] for one in answer.json().get("answers", [{}])[0].get("proponents", [])]

    assert ids({"date": "2024-01-05"}) == (200, [4])
    assert ids({"big": 2**53 + 6}) == (200, [6])
    status, found = ids({"big": None})
    assert status == 200 and all(i % 2 for i in found)
    for where in ({"big": "9007199254740998"}, {"tags": "a"}, {"date": 5}):
        assert ids(where)[0] == 422


def test_the_report_and_plots_are_made(index, tmp_path):
    from gradindex.report import write_report

    page = write_report(index, tmp_path / "r.html", ids=[0, 3]).read_text(encoding="utf-8")
    assert SHOWN in page and "[b]two" in page
    result = index.explain(ids=[0, 1], k=3)
    assert SHOWN in result._repr_html_()
    if pytest.importorskip("matplotlib"):
        figure = result.plot()
        figure.canvas.draw()
        titles = [axes.get_title() for axes in figure.axes]
        assert any("$5 and $6" in title for title in titles), np.array(titles)
