"""Every kind of FAISS index through the whole of a lookup: recall, missing rows, filters, tuning, threads."""

import os
import threading

import numpy as np
import pytest

import gradindex
from gradindex.kernels import Kernel
from gradindex.search import cascade, norm_scan, question, tuning
from gradindex.search.options import SearchOptions
from gradindex.store import hashed as store_hashed
from gradindex.store import location
from tests.jobs import ROWS, digits, digits_job

KINDS = {  # and whether FAISS filters for it
    "Flat": True,
    "SQ8": True,
    "Fold256,Flat": True,
    "Fold256,SQ8": True,
    "IVF8,Flat": True,
    "Fold256,IVF8,SQ8": True,
    "HNSW16": False,
    "HNSW16,SQ8": False,
    "PQ16x4": False,
    "IVF4,PQ16x4": True,
    "PQ16x4,RFlat": False,
    "Fold256,RaBitQ": False,
    "Fold256,IVF4,RaBitQ": True,
    "PCA32,Flat": True,
    "PCA32,IVF4,SQ8": True,
    "Fold64,PCAR32,IVF4,SQ8": True,
}
QUERIES = np.arange(0, ROWS, 6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("kinds") / "i", shard_rows=100).store


@pytest.fixture(scope="module")
def truth(store):
    gradients = gradindex.exact_gradients(digits_job(), np.arange(ROWS)).astype(np.float64)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.fixture(params=KINDS)
def index(request, store):
    gradindex.index_store(store, request.param)
    return gradindex.load(store.path, digits_job())


def recall(want, got):
    return np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(want, got, strict=True)])


def test_lookup(index, truth, store, monkeypatch):
    """One test a kind, so that it is built once: exact answers, filters, missing rows, tuning."""
    kind = index.searcher.factory
    for point in ({"nprobe": 8}, None):
        found = index.searcher.search(store.gather(QUERIES), 20, point=point)[1]
        assert (found[:, 0] >= 0).all()
    result = index.explain(ids=QUERIES, k=10, candidates=120)
    best = np.argsort(-truth[QUERIES], axis=1)[:, :10]
    assert recall(best, result.ordered_indices) >= 0.97, kind
    np.testing.assert_allclose(result.scores, np.take_along_axis(truth[QUERIES], result.ordered_indices, 1), atol=1e-5)
    assert result.meta["params"]["exact_method"] == "factors"
    assert index.searcher.filters == KINDS[kind]

    monkeypatch.setattr("gradindex.search.row_search.SCAN_ROWS", 10)
    mask = store.columns["label"] == 5
    rows = store.gather(np.arange(ROWS))
    filtered = index.explain(ids=QUERIES[:6], k=8, where={"label": 5})
    want = np.argsort(np.where(mask, -truth[QUERIES[:6]], np.inf), axis=1)[:, :8]
    assert recall(want, filtered.ordered_indices) == 1, kind
    assert mask[filtered.ordered_indices].all()
    few = index.explain(ids=QUERIES[:2], k=5, where=[3, 8])
    assert (np.sort(few.ordered_indices[:, :2]) == [3, 8]).all()
    assert (few.ordered_indices[:, 2:] == -1).all()
    assert np.isnan(few.scores[:, 2:]).all()

    curve = index.tune(queries=40, k=5, candidates=60)
    assert gradindex.load(store.path).curve == curve
    point = curve.pick(max(p.recall for p in curve.points))
    assert point.recall >= 0.9, str(curve)
    tuned = index.explain(ids=QUERIES, k=5, recall=point.recall)
    assert tuned.meta["params"]["point"] is not None
    assert recall(best[:, :5], tuned.ordered_indices) >= point.recall - 0.1
    own = np.argsort(-(rows[QUERIES] @ rows.T), axis=1)[:, :5]
    assert recall(own, cascade_rows(index, rows[QUERIES], tuned.meta["params"]["point"])) >= point.recall - 0.15


def cascade_rows(index, sketches, point):
    wanted = question.ask(len(index), Kernel.COS, SearchOptions(k=5, rerank=5, candidates=60), point=point)
    return cascade.candidates(index, sketches, np.ones(len(sketches)), wanted)[1]


def test_opq(tmp_path):
    """Optimised product quantisation needs more rows than the digits have: here are some of five clusters."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(5, 32)), 80, axis=0) + 0.3 * rng.normal(size=(400, 32))
    store = gradindex.Store.from_arrays(rows, np.arange(400), np.ones(400), tmp_path / "i")
    index = gradindex.index_store(store, "OPQ4_16,IVF4,PQ4")
    assert index.searcher.filters
    _, found = index.search(rows[::40], 40)
    assert (found // 80 == np.arange(0, 400, 40)[:, None] // 80).mean() > 0.95
    sketches = store.gather(np.arange(0, 400, 40))
    assert recall(np.arange(0, 400, 40)[:, None], cascade_rows(index, sketches, None)[:, :1]) == 1


def test_points_that_are_not_known(store):
    gradindex.index_store(store, "IVF8,Flat")
    index = gradindex.load(store.path, digits_job())
    with pytest.raises(ValueError, match=r"never tuned.*call index\.tune\(\) first"):
        index.explain(ids=[1], recall=0.9)
    curve = index.tune(queries=30, k=3, candidates=4)
    assert [p.key for p in curve.points if p.optimal]
    with pytest.raises(ValueError, match=r"No operating point reaches recall 1; the best measured is 0\.5000"):
        tuning.Curve(3, 30, 4, (tuning.OperatingPoint("nprobe=1", 0.5, 1e-3),)).pick(1)
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match="recall must be above 0 and at most 1"):
            index.explain(ids=[1], recall=bad)
    with pytest.raises(ValueError, match="queries must be 1 or more"):
        index.tune(queries=0)
    with pytest.raises(ValueError, match=r"candidates must be at least k and rerank, 50, got 20"):
        index.explain(ids=[1], candidates=20)


def test_more_probes_find_more(store):
    gradindex.index_store(store, "IVF32,Flat")
    index = gradindex.load(store.path)
    x, y = digits(ROWS + 40)
    held_out = gradindex.load(store.path, digits_job()).tune(x[ROWS:], y[ROWS:], k=10, candidates=30)
    recalls = {point.key: point.recall for point in held_out.points}
    assert recalls["nprobe=1"] < recalls["nprobe=4"] <= recalls["nprobe=16"] <= 1
    vectors = store.gather(QUERIES)
    _, truth, _ = norm_scan.scan(store, vectors, np.ones(len(vectors)), Kernel.COS, 10)
    found = {probes: index.rows.nearest(vectors, 10, None, {"nprobe": probes}) for probes in (1, 32)}
    assert recall(truth, found[1][1]) < 0.95
    assert recall(truth, found[32][1]) >= 0.99  # but for ties, such as duplicates
    assert (found[1][2] < ROWS).all()
    assert (found[32][2] == ROWS).all()


def test_threads_search_at_different_points(store):
    """Settings belong to a search, not to the index: each thread gets what it asked for."""
    gradindex.index_store(store, "IVF32,Flat")
    index = gradindex.load(store.path)
    vectors = store.gather(QUERIES)
    want = {probes: index.searcher.search(vectors, 10, point={"nprobe": probes})[1] for probes in (1, 3, 32)}
    wrong = []

    def ask(probes):
        for _ in range(20):
            if not np.array_equal(index.searcher.search(vectors, 10, point={"nprobe": probes})[1], want[probes]):
                wrong.append(probes)

    threads = [threading.Thread(target=ask, args=(probes,)) for probes in want for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_folding_is_refused_where_it_means_nothing(tmp_path):
    with pytest.raises(ValueError, match="'Fold100,Flat': countsketch rows of 1024 numbers cannot be folded to 100"):
        gradindex.build(digits_job(), tmp_path / "a", index="Fold100,Flat")
    with pytest.raises(ValueError, match="'Fold8,Flat': landmark rows of 17 numbers cannot be folded to 8"):
        sketch = gradindex.Landmark(landmarks=20, dims=16)
        gradindex.build(digits_job(), tmp_path / "b", index="Fold8,Flat", sketch=sketch)


def test_large_files_are_hashed_once_and_again_when_written_to(store, monkeypatch, tmp_path):
    gradindex.index_store(store, "IVF8,SQ8")
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path))
    monkeypatch.setattr(store_hashed, "LARGE", 0)
    monkeypatch.setattr(store_hashed, "SETTLED", 0)
    hashed = []
    digest = location.digest
    monkeypatch.setattr(location, "digest", lambda path: hashed.append(path.name) or digest(path))
    (path,) = (store.path / "index").glob("*.faiss")
    index = gradindex.load(store.path)
    assert hashed.count(path.name) == 1
    gradindex.load(store.path)
    assert hashed.count(path.name) == 1
    index.check()
    assert hashed.count(path.name) == 2
    vectors = store.gather(QUERIES)
    want, times = index.search(vectors, 5), path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # what is open keeps its file
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    np.testing.assert_array_equal(index.search(vectors, 5)[1], want[1])
    with pytest.raises(gradindex.DamagedIndexError, match="do not match the sha256"):
        gradindex.load(store.path)


def test_a_file_just_written_is_not_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_hashed, "LARGE", 0)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    store_hashed.note(path, "0" * 64, path.stat())
    assert not store_hashed.known(path, "0" * 64)
    monkeypatch.setattr(store_hashed, "SETTLED", 0)
    store_hashed.note(path, "0" * 64, path.stat())
    assert store_hashed.known(path, "0" * 64)
    assert not store_hashed.known(path, "1" * 64)
    before = path.stat()
    path.write_bytes(b"abd")
    assert not store_hashed.known(path, "0" * 64)
    store_hashed.note(path, "0" * 64, before)  # written to while it was read
    assert not store_hashed.known(path, "0" * 64)
