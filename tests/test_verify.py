import json

import numpy as np
import pytest

import gradindex
from gradindex.ann.searcher import inverted
from gradindex.search.agreement import mean, ranks, recalls, share, spearman
from gradindex.search.audit import FINAL, INDEX, SKETCH
from tests.jobs import ROWS, digits, digits_job


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
    index.at_hand.projector = gradindex.CountSketch(1024).bind(index.job.engine.parameters, 99)  # not the store's seed
    audit = index.verify(queries=50, rerank=0)
    assert audit.recall < 0.3
    assert abs(audit.rank_correlation) < 0.2


def test_is_saved_and_repeats(index):
    first, second = (index.verify(queries=20, seed=4).to_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    saved = json.loads((index.store.path / "audit.json").read_text())
    assert saved["recall"] == first["recall"]
    assert "recall@10, 50 exact checks" in str(index.verify(queries=5))


def test_bad_sizes(index):
    with pytest.raises(ValueError, match="k must be between 1 and 239"):
        index.verify(k=240)
    with pytest.raises(ValueError, match="queries must be 1 or more, got 0"):
        index.verify(queries=0)


def test_stages_are_what_naive_counts_give(index):
    """Each of the three comparisons, from all cosines and all sketches."""
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    rows, norms = index.store.gather(np.arange(ROWS)), np.linalg.norm(gradients, axis=1)
    exact, sketched = unit @ unit.T, index.sketches(gradients.astype(np.float32), norms) @ rows.T
    correlations = [spearman(a, b) for a, b in zip(exact, sketched, strict=True)]
    for values in (exact, sketched):
        np.fill_diagonal(values, -np.inf)
    exact, sketched = (np.argsort(-values, axis=1, kind="stable") for values in (exact, sketched))
    audit = index.verify(queries=ROWS, k=10)
    assert audit.complete
    for k in (1, 10, 100):
        want = np.mean([len(np.intersect1d(a[:k], b[:k])) / k for a, b in zip(exact, sketched, strict=True)])
        assert audit.stages[SKETCH][f"recall@{k}"][0] == pytest.approx(want, abs=2e-3)
        assert audit.stages[INDEX][f"recall@{k}"][0] >= 0.999  # a flat index over the same rows
        assert audit.stages[FINAL][f"recall@{k}"][0] >= want - 1e-9
    assert audit.stages[SKETCH]["rank correlation"][0] == pytest.approx(np.mean(correlations), abs=1e-3)
    assert audit.stages[FINAL]["recall@1"][0] > 0.97
    assert all(low <= value <= high for stage in audit.stages.values() for value, low, high in stage.values())
    sketch, true = np.array(audit.pairs).T
    assert np.corrcoef(sketch, true)[0, 1] > 0.9


def test_a_lossy_index_is_seen_in_its_own_stage(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i", index="IVF32,Flat")
    inverted(index.searcher.index).nprobe = 1
    audit = index.verify(queries=60)
    assert audit.stages[INDEX]["recall@10"][0] < 0.9
    assert audit.stages[SKETCH]["recall@10"][0] > 0.9
    assert audit.stages[FINAL]["recall@10"][0] < 0.9


def test_held_out_queries(index):
    x, y = digits(ROWS + 30)
    audit = index.verify(x=x[ROWS:], y=y[ROWS:], k=5, rerank=ROWS)
    assert (audit.queries, audit.drawn) == (30, "given samples")
    assert audit.recall == 1
    assert index.verify(x=x[ROWS:], y=y[ROWS:], k=5, rerank=5).recall < 1


def test_time_runs_out_honestly(index, monkeypatch):
    monkeypatch.setattr("gradindex.search.audit.default_batch_size", lambda engine: 16)
    whole = index.verify(queries=40, rerank=10)
    some = index.verify(queries=40, rerank=10, max_seconds=1e-9)
    assert not some.complete
    assert some.compared == 16
    assert some.recall >= whole.recall
    assert "16 of 240 rows compared" in str(some)
    assert index.verify(queries=40, rerank=10, max_seconds=1e9).recall == whole.recall
    with pytest.raises(ValueError, match="max_seconds must be positive"):
        index.verify(max_seconds=0)


def test_recalls_and_ranks():
    truth = np.array([[1, 2], [0, 2]])
    assert recalls(truth, np.array([[1, 5], [7, 0]]), 2).tolist() == [0.5, 0.5]
    assert recalls(truth, np.array([[1, 5], [7, 0]]), 1).tolist() == [1.0, 0.0]
    assert ranks(np.arange(5)[None], np.arange(5)[None])[0] == pytest.approx(1)
    assert ranks(np.arange(5)[None], np.arange(5)[None, ::-1])[0] == pytest.approx(-1)
    assert ranks(np.arange(5)[None], np.arange(5, 10)[None])[0] < 0


def test_wilson_is_the_published_interval():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    _, low, high = share(np.r_[np.ones(81), np.zeros(182)])
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    _, low, high = share(np.zeros(20))
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)
    assert mean(np.array([0.5])) == (0.5, -1.0, 1.0)


def test_correlation_with_a_constant_is_zero():
    assert spearman(np.ones(4), np.arange(4)) == 0.0
    assert spearman(np.arange(4), np.arange(4) ** 3) == pytest.approx(1.0)


def test_metrics_are_plain_numbers_by_name(tmp_path):
    """What wandb.log and mlflow.log_metrics take."""
    index = gradindex.build(digits_job(), tmp_path / "i")
    audit = index.verify(queries=20, k=5)
    found = audit.metrics()
    assert {type(value) for value in found.values()} == {float}
    assert found["gradindex/recall@5"] == audit.recall
    assert found["gradindex/search_recall@5_low"] == audit.search_recall_interval[0]
    assert found["gradindex/rank_correlation_high"] == audit.rank_correlation_interval[1]
    assert set(audit.metrics("eval/")) == {name.replace("gradindex/", "eval/") for name in found}
    built = index.summary.metrics()
    assert {type(value) for value in built.values()} == {float}
    assert built["gradindex/rows"] == 240
    assert built["gradindex/rate"] == pytest.approx(index.summary.rate)
    assert sum(value for name, value in built.items() if "parameters" in name) == 4
