"""Filters against brute force over the same rows."""

import numpy as np
import pytest

import gradindex
from gradindex.ann import operating_point
from gradindex.ann.selection import Selection, parse, select
from gradindex.kernels import Kernel
from tests import oracles
from tests.jobs import ROWS, digits_job

KERNELS = [kernel.value for kernel in Kernel]
QUERIES = np.array([3, 14, 159])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index with a column of words, labels, and exact gradients of all samples."""
    job = digits_job(columns={"word": [("even", "odd")[i % 2] for i in range(ROWS)]})
    index = gradindex.build(job, tmp_path_factory.mktemp("filters") / "i", shard_rows=100)
    return index, gradindex.exact_gradients(job, np.arange(ROWS)).astype(np.float64)


def truth(index, gradients, kernel, mask, k, sign=1):
    values = sign * oracles.kernel(kernel, gradients[QUERIES], gradients, eps=0)
    values[:, ~mask] = -np.inf
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return order, sign * np.take_along_axis(values, order, 1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("certify", [False, True])
def test_the_answer_is_that_of_brute_force_over_the_selected(built, kernel, certify):
    index, gradients = built
    labels = index.store.columns["label"]
    mask = np.isin(labels, [3, 7]) & (np.arange(ROWS) % 2 == 1)
    options = {"max_checks": ROWS} if certify else {}
    where = {"label": [3, 7], "word": "odd"}
    found = index.explain(ids=QUERIES, k=4, kernel=kernel, rerank=ROWS, where=where, certify=certify, **options)
    for sign, ids, scores in ((1, "ordered_indices", "scores"), (-1, "opponent_indices", "opponent_scores")):
        want, values = truth(index, gradients, kernel, mask, 4, sign)
        np.testing.assert_array_equal(getattr(found, ids), want)
        np.testing.assert_allclose(getattr(found, scores), values, rtol=1e-4, atol=1e-5 * np.abs(gradients).max())
    assert found.proved.all()
    assert found.meta["params"]["selected"] == mask.sum()


@pytest.mark.parametrize("certify", [False, True])
def test_fewer_than_k_are_said_to_be_missing(built, certify):
    index, _ = built
    found = index.explain(ids=QUERIES, k=5, where=[8, 4], certify=certify)
    for ids, scores in ((found.ordered_indices, found.scores), (found.opponent_indices, found.opponent_scores)):
        assert {tuple(sorted(line)) for line in ids[:, :2].tolist()} == {(4, 8)}
        assert (ids[:, 2:] == -1).all()
        assert np.isnan(scores[:, 2:]).all()
        assert np.isfinite(scores[:, :2]).all()
    assert found.proved.all()
    assert not found.exact[:, 2:].any()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW16", "IVF8,SQ8", "SQ8", "PCA16,IVF8,Flat"])
def test_every_kind_of_index_has_full_recall(built, factory, monkeypatch):
    index, _ = built
    monkeypatch.setattr("gradindex.search.row_search.SCAN_ROWS", 10)  # more are searched by FAISS, where it can
    other = gradindex.index_store(index.store, factory)
    mask = index.store.columns["label"] == 5
    rows = index.store.gather(np.arange(ROWS))
    want = np.argsort(np.where(mask, -(rows[QUERIES] @ rows.T), np.inf), axis=1, kind="stable")[:, :8]
    _, found = other.search(rows[QUERIES], 8, where={"label": 5})
    tolerated = 1 if "SQ8" in factory else 0  # of quantised values, the last may be another
    for line, ids in zip(want, found, strict=True):
        assert len(np.setdiff1d(line, ids)) <= tolerated
        assert mask[ids].all()
    gradindex.index_store(index.store, "Flat")


def test_faiss_gets_a_filter_only_where_it_finds_all(built):
    import faiss

    chosen = Selection(np.arange(50) % 3 == 0)
    assert not operating_point.filters(faiss.index_factory(4, "HNSW8", faiss.METRIC_INNER_PRODUCT))
    ivf = faiss.index_factory(4, "IVF7,Flat", faiss.METRIC_INNER_PRODUCT)
    assert operating_point.filters(ivf)
    selector = faiss.IDSelectorBitmap(chosen.bits)
    assert operating_point.build(ivf, None, selector, everywhere=True).nprobe == 7
    assert operating_point.build(ivf, {"nprobe": 3}).nprobe == 3
    assert operating_point.build(ivf) is None
    assert len(chosen) == 17


@pytest.mark.parametrize(
    ("options", "searched"),
    [
        ({}, "FAISS"),
        ({"where": {"label": 3}}, "scan of the store"),
        ({"kernel": "grad_dot"}, "scan of the store"),
        ({"kernel": "grad_asym_dot"}, "scan of the store"),
        ({"certify": True, "max_checks": ROWS}, "scan of the store"),
    ],
)
def test_a_result_says_what_was_searched(built, options, searched):
    assert built[0].explain(ids=[3], k=2, **options).meta["params"]["searched"] == searched


def test_a_proof_says_what_was_searched(tmp_path):
    """A few queries search FAISS's ranges, many share a scan; both prove the same."""
    sketch = gradindex.Landmark(landmarks=60, dims=16)
    index = gradindex.build(digits_job(), tmp_path / "i", sketch=sketch, index="IVF4,SQ8", progress=False)
    few, many = (index.explain(ids=range(n), k=2, certify=True) for n in (1, 40))
    assert few.meta["params"]["searched"] == "FAISS"
    assert many.meta["params"]["searched"] == "scan of the store"
    assert few.proved.all() and many.proved.all()
    np.testing.assert_array_equal(few.ordered_indices[0], many.ordered_indices[0])


def test_ids_of_any_form(built):
    import torch

    store = built[0].store
    for ids in ([3, 8], {3, 8}, range(3, 9, 5), np.array([3, 8], ">i4"), torch.tensor([3, 8]), {3: 0, 8: 0}.keys()):
        np.testing.assert_array_equal(np.flatnonzero(select(store, ids).mask), [3, 8])


def test_what_is_not_a_filter(built):
    store = built[0].store
    assert select(store, None) is None
    with pytest.raises(ValueError, match=r"no column 'colour'; expected one of .*label.*word"):
        select(store, {"colour": 1})
    with pytest.raises(ValueError, match=r"matches none of the \d+ samples. 'label' holds 0, 1, 2, 3, 4, ..."):
        select(store, {"label": 77})
    with pytest.raises(TypeError, match=r"Column 'label' holds int64, with which '3' \(str\) cannot be compared"):
        select(store, {"label": "3"})
    with pytest.raises(ValueError, match="matches none"):
        select(store, [])
    with pytest.raises(ValueError, match="matches none"):
        select(store, {"label": [3], "word": []})
    with pytest.raises(IndexError, match="out of range"):
        select(store, [ROWS])
    with pytest.raises(TypeError, match="Expected where="):
        select(store, "label")
    with pytest.raises(TypeError, match="Expected where="):
        select(store, np.ones(ROWS, bool))


def test_conditions_of_the_command_line(built):
    store = built[0].store
    assert parse(store, []) is None
    assert parse(store, ["label=3,4", "word=odd"]) == {"label": [3, 4], "word": ["odd"]}
    assert parse(store, ['word="a,b",odd,"say ""x"""']) == {"word": ["a,b", "odd", 'say "x"']}
    assert parse(store, ['word=5",odd']) == {"word": ['5"', "odd"]}
    with pytest.raises(ValueError, match="Column 'word' is given twice: for either of two values type word=VALUE"):
        parse(store, ["word=odd", "label=3", "word=even"])
    with pytest.raises(ValueError, match="Expected COLUMN=VALUE"):
        parse(store, ["label"])
    with pytest.raises(ValueError, match="Column 'label' holds int64 numbers, got 'x'"):
        parse(store, ["label=x"])
    with pytest.raises(ValueError, match="no column 'colour'"):
        parse(store, ["colour=1"])


def test_kneighbors_is_scikit_learns(built):
    index, gradients = built
    x = np.asarray(index.job.source.take(QUERIES).x)
    distances, ids = index.kneighbors(x, 6)
    labels = index.explain(x, k=1).query_predictions
    np.testing.assert_array_equal(ids, index.kneighbors(x, 6, return_distance=False))
    np.testing.assert_array_equal(ids, index.explain(x, labels, k=6).ordered_indices)
    assert (np.diff(distances) >= 0).all()
    own = index.kneighbors(x, 6, y=index.store.columns["label"][QUERIES])
    want, values = truth(index, gradients, "grad_cos", np.ones(ROWS, bool), 6)
    np.testing.assert_array_equal(own[1], want)
    np.testing.assert_allclose(own[0], 1 - values, atol=1e-5)
