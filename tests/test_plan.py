"""The arithmetic of plans, and a plan against a real build."""

import json
import math

import pytest

import gradindex
from gradindex.ann import plan as index_plan
from gradindex.cli.app import run
from gradindex.lifecycle.measure import measure
from gradindex.lifecycle.plan import Rates, choose, predict
from tests.jobs import ROWS, digits_job

RATES = Rates(
    embed=1e-3,
    publish=1e-5,
    start=10.0,
    fold=2e-6,
    assign=1e-9,
    encode=1e-6,
    append=5e-7,
    add_flat=1e-6,
    finish=0.02,
    save=1e-9,
    coarse=1e-8,
    scan=1e-9,
    scan_flat=1e-7,
    fetch=1e-5,
    query=1e-2,
    check=1e-3,
    row_bytes=2100.0,
    number_bytes=2,
    base_bytes=1e9,
    embed_bytes=5e8,
    dim=1024,
    width=256,
)


def test_a_small_build_by_hand():
    found = predict(RATES, 10_000)
    assert found.index == "Flat"
    assert found.embedding_seconds == pytest.approx(10_000 * 1.01e-3)
    assert found.training_seconds == 0
    assert found.adding_seconds == pytest.approx(0.01 + 0.02 + 10_000 * 4096e-9)
    assert found.store_bytes == 21e6
    assert found.index_bytes == 10_000 * 4096
    assert found.worker_bytes == found.driver_bytes == pytest.approx(1e9 + 5e8 + 2 * 1024 * 10_000)
    assert found.searches_per_second == pytest.approx(1 / 1e-3)
    assert found.queries_per_second == pytest.approx(1 / (1e-2 + 2e-3 + 0.1))


def test_a_large_build_by_hand():
    found = predict(RATES, 10**9, 64, lists=65536)
    shards = math.ceil(10**9 / 65536)
    assert found.embedding_seconds == pytest.approx(10 + math.ceil(shards / 64) * 65536 * 1.01e-3)
    assert found.training_seconds == pytest.approx((64 * 65536) * (2e-6 + 10 * 65536e-9))
    assert found.adding_seconds == pytest.approx(
        10**9 * (2e-6 + 65536e-9 + 1e-6) / 64 + 0.02 + 1e-9 * found.index_bytes
    )
    assert found.driver_bytes == pytest.approx(1e9 + 1.5 * found.index_bytes)
    assert found.index_bytes == 10**9 * 264 + 4 * 65536 * 256
    search = 65536e-8 + 10**9 / 64 / 16 * 1e-9 + 400 * 1e-5
    assert found.searches_per_second == pytest.approx(1 / search)
    assert found.queries_per_second == pytest.approx(1 / (1e-2 + 2 * search + 0.1 / 64))
    assert found.hours == pytest.approx(
        (found.embedding_seconds + found.training_seconds + found.adding_seconds) / 3600
    )


def test_the_driver_appends_alone_and_holds_the_index():
    many = predict(RATES, 10**9, 1024, lists=65536)
    assert many.adding_seconds == pytest.approx(10**9 * 5e-7 + 0.02 + 1e-9 * many.index_bytes)
    assert many.worker_bytes < many.driver_bytes == pytest.approx(1e9 + 1.5 * many.index_bytes)
    few = predict(RATES, 200_000, 2, lists=65536)  # more in its training sample than in its rows
    assert few.driver_bytes == pytest.approx(1e9 + 2 * 4 * 256 * 200_000)
    assert predict(RATES, 10**6, lists=0).driver_bytes == pytest.approx(1e9 + 2 * 4096 * 10**6)


def test_costs_grow_with_rows_and_shrink_with_workers():
    growth = [predict(RATES, 10**power, 8) for power in range(6, 11)]
    for name in ("hours", "store_bytes", "index_bytes", "worker_bytes", "driver_bytes"):
        values = [getattr(one, name) for one in growth]
        assert values == sorted(values)
    assert [one.queries_per_second for one in growth] == sorted(
        (one.queries_per_second for one in growth), reverse=True
    )
    assert predict(RATES, 10**9, 128).embedding_seconds < 0.51 * predict(RATES, 10**9, 64).embedding_seconds


def test_the_index_is_the_one_that_a_build_takes():
    for rows in (50_000, 10**6, 10**9):
        kind, width = index_plan.choose(rows, 1024, True)
        assert predict(RATES, rows).index == kind
        assert width == (1024 if rows == 50_000 else RATES.width)
    assert choose(RATES, 50_000) == 0
    assert choose(RATES, 10**6) == 4096


@pytest.mark.parametrize("options", [{"rows": 0}, {"rows": 10, "workers": 0}])
def test_counts_are_checked(options):
    with pytest.raises(ValueError, match="must be a positive integer, got 0"):
        predict(RATES, **options)


def test_the_command_prints_the_plan_as_json(capsys, monkeypatch):
    monkeypatch.setattr("gradindex.lifecycle.measure.measure", lambda *_, **__: RATES)
    assert run(["plan", "tests.jobs:digits_job", "--rows", "1e6", "--workers", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == json.loads(json.dumps(predict(RATES, 10**6, 4).to_json()))
    assert found["rates"] == vars(RATES)
    assert [one["rows"] for one in found["growth"]] == [10**4, 10**5, 10**6, 10**7]


def test_the_command_plans_for_the_jobs_own_rows(capsys):
    assert run(["plan", "tests.jobs:digits_job", "--seconds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["rows"] == ROWS


def test_a_plan_is_near_a_real_build(tmp_path):
    """Bytes; times only to a factor, as tests share their machine (benchmarks/scale.py holds them to 25 %)."""
    rates = measure(digits_job(), seconds=0.5)
    index = gradindex.build(digits_job(), tmp_path / "i", shard_rows=100)
    want = predict(rates, ROWS, shard_rows=100)
    assert index.store.bytes == pytest.approx(want.store_bytes, rel=0.1)
    assert index.searcher.bytes == pytest.approx(want.index_bytes, rel=0.05)
    assert want.index == index.searcher.factory
    assert index.summary.embedding_seconds < 20 * want.embedding_seconds + 5
    assert all(value > 0 for name, value in vars(rates).items() if name != "embed_bytes")
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        measure(digits_job(), seconds=0)
    with pytest.raises(ValueError, match="without landmarks"):
        measure(digits_job(), sketch=gradindex.Landmark(landmarks=8, dims=4))
