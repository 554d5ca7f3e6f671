"""Lookups by parts on a two-node cluster: the ids of the embedded search, whatever dies."""

import os
import signal

import numpy as np
import pytest

import gradindex
from gradindex.distributed.search_worker import StorePart, ranges
from tests.jobs import ROWS, digits, digits_job

WHERE = (None, {"label": [3, 8]}, list(range(40, 90)))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("lookups") / "i"
    index = gradindex.build(digits_job(), path, shard_rows=50, index="IVF4,SQ8", sketch=gradindex.CountSketch(256))
    index.remove([5, 100, 101])
    return path


@pytest.fixture(scope="module")
def pair(built, nodes):
    """The same index, searched here and by two parts."""
    with gradindex.load(built, digits_job(), engine=gradindex.Ray(address=nodes.address, workers=2)) as there:
        yield gradindex.load(built, digits_job()), there


def assert_same(here, there):
    for name, want in here.data.items():
        found = there.data[name]
        if name.endswith("scanned"):  # parts stop by themselves
            continue
        if "scores" in name or "bound" in name:
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7, err_msg=name)
        elif isinstance(want, dict):
            assert set(want) == set(found)
        else:
            np.testing.assert_array_equal(found, want, err_msg=name)


@pytest.mark.parametrize("where", WHERE, ids=["all", "labels", "ids"])
@pytest.mark.parametrize("kernel", ["grad_cos", "grad_dot", "grad_asym_dot"])
def test_ids_are_those_of_the_embedded_search(pair, kernel, where):
    here, there = pair
    for options in ({"rerank": 0}, {"rerank": 12}, {"rerank": 12, "eps": 1e-3}):
        asked = {"ids": range(0, ROWS, 40), "k": 7, "kernel": kernel, "where": where, **options}
        assert_same(here.explain(**asked), there.explain(**asked))


def test_a_calibrated_recall_is_that_of_the_embedded_search(pair):
    here, _ = pair
    x, y = digits(400)
    here.calibrate(x[ROWS:340], y[ROWS:340], k=5)
    answers = [index.explain(x[340:350], y[340:350], k=5, recall=0.9) for index in pair]
    assert_same(*answers)
    assert answers[1].meta["params"]["recall"]["calibrated"] and (answers[1].expected_recall >= 0.9).all()
    assert answers[1].checked.mean() < 100


def test_missing_stays_missing(pair):
    here, there = pair
    for index in (here, there):
        found = index.explain(ids=[1], k=9, where=[3, 4, 5])
        assert found.ordered_indices[0].tolist()[2:] == [-1] * 7
        assert sorted(found.ordered_indices[0].tolist()[:2]) == [3, 4]  # 5 is removed
    vectors = here.store.gather(np.arange(6))
    for k in (5, ROWS):  # all of them: more than there are
        (_, want), (_, got) = here.search(vectors, k), there.search(vectors, k)
        np.testing.assert_array_equal(got, want)
    assert (want == -1).any()


def test_a_killed_actor_is_replaced_and_its_question_asked_again(pair, caplog):
    here, there = pair
    x, _ = digits()
    asked = {"x": x[:4] * 0.9, "k": 5, "kernel": "grad_dot"}
    before = there.parts.ask("process")
    os.kill(before[1], signal.SIGKILL)
    assert_same(here.explain(**asked), there.explain(**asked))
    assert "an actor of part 1 of the index was lost and is replaced" in caplog.text
    after = there.parts.ask("process")
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_graph_has_no_parts(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", index="HNSW8")
    with pytest.raises(ValueError, match=r"'HNSW8' cannot be searched in parts.*IVF1024,SQ8"):
        gradindex.load(tmp_path / "i", engine=gradindex.Ray())


@pytest.mark.parametrize(("rows", "parts"), [(10, 3), (3, 5), (100_000, 7), (1, 1)])
def test_ranges_cover_every_row_once(rows, parts):
    found = ranges(rows, parts)
    assert [row for first, last in found for row in range(first, last)] == list(range(rows))
    assert len(found) <= parts


def test_a_part_reads_what_the_store_reads(built):
    store = gradindex.load(built).store
    part = StorePart(built, store.header, store.state, 30, 120)
    np.testing.assert_array_equal(part.norms, store.norms[30:120])
    np.testing.assert_array_equal(part.ids, store.ids[30:120])
    rows = np.array([0, 89, 19, 20, 21])
    np.testing.assert_array_equal(part.gather(rows), store.gather(rows + 30))
    assert len(part.shards) == 3
