import json

import numpy as np
import pytest

import gradindex
from gradindex.verify import _recall, _spearman, _wilson
from tests.jobs import ROWS, digits_job


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("audit") / "i", sketch=gradindex.CountSketch(64))


def naive_recall(index, k, rerank, ids):
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    truth = np.argsort(-cosines, axis=1)[:, :k]
    found = index.explain(ids=ids, k=k + 1, rerank=rerank).ordered_indices
    return np.mean(
        [len(set(truth[i]) & set([j for j in row if j != i][:k])) / k for i, row in zip(ids, found, strict=True)]
    )


def test_recall_is_what_a_naive_count_gives(index):
    ids = np.arange(ROWS)
    audit = index.verify(queries=ROWS, k=5, rerank=12)
    assert audit.queries == ROWS
    assert audit.recall == pytest.approx(naive_recall(index, 5, 12, ids))
    assert audit.search_recall == pytest.approx(naive_recall(index, 5, 0, ids))
    assert audit.search_recall < audit.recall < 1  # 64 buckets are too few: the audit must see it
    assert audit.recall_interval[0] < audit.recall < audit.recall_interval[1]


def test_more_exact_checks_reach_recall_one(index):
    assert index.verify(queries=60, k=10, rerank=ROWS).recall == 1.0


def test_an_uncompressed_index_agrees_completely(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i", sketch=gradindex.Identity())
    for kernel in ("grad_cos", "grad_dot", "grad_asym_dot"):
        audit = index.verify(queries=50, kernel=kernel)
        assert audit.recall == 1.0
        assert audit.rank_correlation > 0.9999


def test_a_broken_projection_is_caught(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i")
    index.projector = gradindex.CountSketch(1024).bind(index.job.engine.parameters, 99)  # not the store's seed
    audit = index.verify(queries=50, rerank=0)
    assert audit.recall < 0.3
    assert abs(audit.rank_correlation) < 0.2


def test_is_saved_and_repeats(index):
    first, second = (index.verify(queries=20, seed=4).to_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    saved = json.loads((index.store.path / "audit.json").read_text())
    assert saved["recall"] == first["recall"]
    assert "recall@10, 100 exact checks" in str(index.verify(queries=5))


def test_bad_sizes(index):
    with pytest.raises(ValueError, match="k must be between 1 and 239"):
        index.verify(k=240)
    with pytest.raises(ValueError, match="queries must be 1 or more, got 0"):
        index.verify(queries=0)


def test_recall_leaves_the_query_out():
    truth = np.array([[1, 2], [0, 2]])
    found = np.array([[0, 1, 5], [7, 0, 1]])
    assert _recall(truth, found, np.array([0, 1])).tolist() == [0.5, 0.5]


def test_wilson_is_the_published_interval():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    low, high = _wilson(np.r_[np.ones(81), np.zeros(182)])
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = _wilson(np.zeros(20))
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


def test_correlation_with_a_constant_is_zero():
    assert _spearman(np.ones(4), np.arange(4)) == 0.0
    assert _spearman(np.arange(4), np.arange(4) ** 3) == pytest.approx(1.0)
