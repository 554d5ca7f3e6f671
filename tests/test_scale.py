"""The short form of benchmarks/scale.py: its simulation; and the example that hands an index to LanceDB."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        for name in ("OMP_NUM_THREADS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
            patch.setenv(name, os.environ.get(name, "0"))
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("apart", [0.1, 0.5, 0.9])
def test_two_equal_workers_are_twice_as_fast(scale, tmp_path, apart):
    """Whatever the time between their shards, and though the second one starts two shards late."""
    shards = tmp_path / "shards"
    shards.mkdir()
    first, second = [float(n) for n in range(1, 10)], [n + apart for n in range(3, 10)]
    for number, time in enumerate(first + second):
        (shards / f"{number:06d}.json").touch()
        os.utime(shards / f"{number:06d}.json", (time, time))
    assert scale.shard_seconds(tmp_path) == pytest.approx(0.5)


def test_without_failures_or_spread_the_makespan_is_that_of_whole_rounds(scale):
    found = scale.simulate(105, 10, 36.0, 0, seed=0, spread=0)
    assert found["hours"] == pytest.approx(11 * 36 / 3600)
    assert (found["shards done again"], found["work lost"]) == (0, 0)


def test_failures_cost_what_was_begun_and_the_time_to_come_back(scale):
    one = scale.simulate(200, 1, 36.0, 10, seed=0, spread=0)
    again = one["shards done again"]
    assert 10 < again < 60  # two hours at 10 an hour, and what is done again
    want = 200 * 36.0 * (1 + one["work lost"]) + again * 120
    assert one["hours"] * 3600 == pytest.approx(want)
    rates = [scale.simulate(2000, 50, 36.0, rate, seed=1)["hours"] for rate in (0, 1, 10)]
    assert rates == sorted(rates)


def test_lancedb_finds_the_same_neighbours(tmp_path):
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install lancedb")
    command = [sys.executable, str(ROOT / "examples" / "12_hand_over_lancedb.py"), "--rows", "400", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "200 of 200 neighbours are the same; the scores agree to 1e-4." in done.stdout, done.stderr
