"""The product over a flat index's vectors finds what FAISS finds."""

import faiss
import numpy as np
import pytest

import gradindex
from gradindex.index import flat
from tests.jobs import digits_job


def made(rows, width=12, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    index = faiss.IndexFlatIP(width)
    index.add(vectors)
    return index, vectors


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 9), (300, 7), (40_000, 100), (40_000, 1)])
@pytest.mark.parametrize("queries", [1, 8, 70])
def test_finds_what_faiss_finds(rows, k, queries):
    index, vectors = made(rows)
    asked = np.random.default_rng(1).normal(size=(queries, 12)).astype(np.float32)
    scores, found = flat.search(index, asked, k)
    want, places = index.search(asked, k)
    assert scores.dtype == np.float32 and found.dtype == np.int64
    there = places >= 0
    np.testing.assert_array_equal(found >= 0, there)
    np.testing.assert_allclose(scores[there], want[there], rtol=1e-5, atol=1e-5)
    assert (found == places).mean() > 0.999
    for line in range(queries):
        rows_found = found[line][there[line]]
        assert len(set(rows_found.tolist())) == len(rows_found)
        np.testing.assert_allclose(vectors[rows_found] @ asked[line], scores[line][there[line]], rtol=1e-4, atol=1e-5)


def test_of_many_equal_scores_some_are_found_once_each():
    index = faiss.IndexFlatIP(4)
    index.add(np.tile(np.eye(4, dtype=np.float32), (10_000, 1)))
    scores, rows = flat.search(index, np.eye(4, dtype=np.float32), 3)
    assert (scores == 1).all()
    np.testing.assert_array_equal(rows % 4, np.arange(4)[:, None] + [0, 0, 0])
    assert all(len(set(line.tolist())) == 3 for line in rows)


def test_serves_only_inner_products_of_plain_vectors():
    assert flat.serves(faiss.IndexFlatIP(4))
    assert not flat.serves(faiss.IndexFlatL2(4))
    assert not flat.serves(faiss.index_factory(8, "SQ8", faiss.METRIC_INNER_PRODUCT))


def test_an_index_gives_many_queries_the_answers_of_one_by_one(tmp_path, monkeypatch):
    index = gradindex.build(digits_job(), tmp_path / "i", index="Flat")
    vectors = index.store.gather(np.arange(40))
    calls = []
    search = flat.search
    monkeypatch.setattr(flat, "search", lambda *asked: calls.append(len(asked[1])) or search(*asked))
    scores, ids = index.search(vectors, k=6)
    one_by_one = [index.search(vectors[i : i + 1], k=6) for i in range(40)]
    assert calls == [40]
    np.testing.assert_array_equal(ids, np.concatenate([found for _, found in one_by_one]))
    np.testing.assert_allclose(scores, np.concatenate([found for found, _ in one_by_one]), atol=1e-5)
    index.search(vectors, k=6, where={"label": 3})
    assert calls == [40]
