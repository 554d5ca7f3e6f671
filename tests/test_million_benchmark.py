"""The short form of benchmarks/million.py, of what lookup.py asks its indexes, and of growth.py on both."""

import json
import os
from pathlib import Path

import pytest

from tests import programs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *options):
    done = programs.run([BENCHMARKS / script, *map(str, options)])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(path):
    return json.loads(path.read_text())["results"]


@pytest.mark.skipif("GRADINDEX_DATA" not in os.environ, reason="Fashion-MNIST is not at hand")
def test_two_sizes_are_built_asked_and_drawn(tmp_path):
    sizes = [1000, 2000]
    indexes, built_file, asked_file = tmp_path / "kept", tmp_path / "built.json", tmp_path / "asked.json"
    options = ["--epochs", 0, "--queries", 5, "--threads", 1, "--keep", indexes]
    built = [json.loads(run("million.py", "--one", "--rows", rows, *options).splitlines()[-1]) for rows in sizes]
    assert [line["rows"] for line in built] == sizes
    assert all(line["recall@10"] == 1 and line["verify_bytes"] < 2 << 30 for line in built)
    built_file.write_text(json.dumps({"results": built}))

    paths = [indexes / f"rows-{rows}" for rows in sizes]
    run("lookup.py", "--parts", "--queries", 5, "--million", *paths, "--out", asked_file)
    asked = results(asked_file)["million"]
    assert [line["rows"] for line in asked] == sizes
    assert all(line["flat_top_10_among_400_candidates"] > 0.95 for line in asked)

    picture, out = tmp_path / "growth.png", tmp_path / "growth.json"
    run("growth.py", "--built", built_file, "--asked", asked_file, "--picture", picture, "--out", out)
    grown = results(out)
    assert set(grown["costs"]) == set(grown["exponents"]) >= {"embedding_seconds", "explain_p50_ms"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_exponents_are_those_of_the_law(tmp_path):
    lines = [
        {"rows": n, "embedding_seconds": 3e-4 * n, "open_seconds": 0.5, "verify_seconds": n**0.5}
        for n in (10, 100, 1000)
    ]
    (tmp_path / "built.json").write_text(json.dumps({"results": lines}))
    run("growth.py", "--built", tmp_path / "built.json", "--out", tmp_path / "growth.json")
    found = results(tmp_path / "growth.json")["exponents"]
    assert found == pytest.approx({"embedding_seconds": 1, "open_seconds": 0, "verify_seconds": 0.5}, abs=1e-9)
