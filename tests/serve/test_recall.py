"""`recall` asked of a service: what `Index.explain` answers, with what is promised and why not."""

import shutil

import numpy as np
import pytest

import gradindex
from tests.jobs import digits
from tests.serve.jobs import pictures_job

RECALL = 0.9


@pytest.fixture(scope="module")
def calibrated(served_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "index"
    shutil.copytree(served_path, path)
    index = gradindex.load(path, pictures_job())
    x, y = shifted()
    index.calibrate(x[:60], y[:60], k=5)
    return index


def shifted():
    """Return the digits shifted to the right, with their labels: samples that are not in the index."""
    x, y = digits()
    return np.roll(x.reshape(-1, 8, 8), 1, axis=2).reshape(x.shape), y


@pytest.fixture(scope="module")
def calibrated_client(calibrated):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    settings = Settings(hosts=("testserver",))
    with TestClient(create_app(calibrated, settings), raise_server_exceptions=False) as client:
        yield client


def test_answers_hold_what_is_promised(calibrated, calibrated_client):
    x, y = shifted()
    asked = {"inputs": x[60:64].tolist(), "labels": y[60:64].tolist(), "k": 5, "recall": RECALL}
    found = calibrated_client.post("/v1/explain", json=asked).json()
    want = calibrated.explain(x[60:64], y[60:64], k=5, recall=RECALL)
    assert found["recall"] == {"wanted": RECALL, "calibrated": True, "queries": 60, "note": ""}
    for row, answer in enumerate(found["answers"]):
        lower = min(want.data["expected_recall"][row], want.data["opponent_expected_recall"][row])
        assert answer["expected_recall"] == lower >= RECALL
        assert answer["checked"] == want.checked[row]
        assert [one["id"] for one in answer["proponents"]] == want.ordered_indices[row].tolist()


def test_what_is_not_promised_says_why(calibrated_client):
    found = calibrated_client.post("/v1/explain", json={"ids": [3], "k": 5, "recall": RECALL}).json()
    assert not found["recall"]["calibrated"] and "training samples" in found["recall"]["note"]
    assert found["answers"][0]["expected_recall"] is None
    plain = calibrated_client.post("/v1/explain", json={"ids": [3], "k": 5}).json()
    assert plain["recall"] is None and plain["answers"][0]["expected_recall"] is None


@pytest.mark.parametrize("recall", [0, 1, 1.5, "much"])
def test_a_recall_is_between_0_and_1(calibrated_client, recall):
    assert calibrated_client.post("/v1/explain", json={"ids": [3], "recall": recall}).status_code == 422


def test_without_a_calibration_it_is_refused(client):
    answer = client.post("/v1/explain", json={"ids": [3], "k": 5, "recall": RECALL})
    assert answer.status_code == 422 and "calibrate" in answer.json()["detail"]
