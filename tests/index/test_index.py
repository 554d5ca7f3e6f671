import threading

import faiss
import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex import kernels
from gradindex.errors import DamagedIndexError
from gradindex.kernels import Kernel
from gradindex.search import norm_scan
from tests.jobs import ROWS, digits, digits_job, trained

KERNELS = [kernel.value for kernel in Kernel]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("index") / "digits", shard_rows=100)


@pytest.fixture(scope="module")
def truth(index):
    """Exact kernel values between all training samples, from the plain loop, in float64."""
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    norms = np.linalg.norm(gradients, axis=1)
    dots = gradients @ gradients.T
    return {
        "grad_dot": dots,
        "grad_cos": dots / np.outer(norms, norms),
        "grad_asym_dot": dots / norms**2,
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_answers_are_those_of_the_exact_kernel(index, truth, kernel):
    ids = np.arange(0, ROWS, 7)
    result = index.explain(ids=ids, k=10, kernel=kernel)
    values = truth[kernel][ids]
    best = -np.sort(-values, axis=1)[:, :10]
    worst = np.sort(values, axis=1)[:, :10]
    scale = np.abs(values).max(axis=1, keepdims=True)
    np.testing.assert_allclose(result.scores / scale, best / scale, atol=1e-5)
    np.testing.assert_allclose(result.opponent_scores / scale, worst / scale, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(values, result.ordered_indices, 1) / scale, best / scale, atol=1e-5)
    assert result.exact.all()
    assert result.opponent_exact.all()
    assert result.data["ordered_indices"].dtype == np.int64


@pytest.mark.parametrize("kernel", KERNELS)
def test_estimates_are_near_and_say_that_they_are_estimates(index, truth, kernel):
    ids = np.arange(20)
    result = index.explain(ids=ids, k=10, kernel=kernel, rerank=0)
    assert not result.exact.any()
    assert not result.opponent_exact.any()
    values = truth[kernel][ids]
    scale = np.abs(values).max(axis=1, keepdims=True)
    error = np.abs(result.scores - np.take_along_axis(values, result.ordered_indices, 1)) / scale
    assert error.mean() < 0.03
    assert error.max() > 1e-5  # an estimate that were exact would be a lie
    assert (np.diff(result.scores) <= 0).all()
    assert (np.diff(result.opponent_scores) >= 0).all()


def test_columns_come_back_with_the_answer(index):
    _, y = digits()
    x, _ = digits()
    result = index.explain(x[:5], y[:5], k=4)
    np.testing.assert_array_equal(result.labels, y[result.ordered_indices])
    np.testing.assert_array_equal(result.opponent_labels, y[result.opponent_indices])
    predictions = trained()(torch.from_numpy(x)).argmax(1).numpy()
    np.testing.assert_array_equal(result.predictions, predictions[result.ordered_indices])
    np.testing.assert_array_equal(result.query_labels, y[:5])
    np.testing.assert_array_equal(result.query_predictions, predictions[:5])


def test_a_query_without_label_is_explained_as_predicted(index):
    x, _ = digits()
    predictions = trained()(torch.from_numpy(x[:9])).argmax(1).numpy()
    assert "query_labels" not in index.explain(x[:9], k=3).data  # a prediction is no label
    np.testing.assert_allclose(
        index.explain(x[:9], k=3).scores, index.explain(x[:9], predictions, k=3).scores, atol=1e-6
    )


def test_a_single_query_may_lack_the_first_axis(index):
    x, y = digits()
    one = index.explain(x[3], y[3], k=3)
    assert one.scores.shape == (1, 3)
    np.testing.assert_allclose(one.scores[0], index.explain(x[2:5], y[2:5], k=3).scores[1], atol=1e-6)


@pytest.mark.parametrize("spec", ["IVF8,Flat", "IVF4,SQ8", "HNSW16", "SQ8", "PCA32,Flat"])
def test_any_factory_string(tmp_path, truth, spec):
    index = gradindex.build(digits_job(), tmp_path / "i", index=spec)
    assert index.searcher.factory == spec
    result = index.explain(ids=np.arange(40), k=10)
    best = np.argsort(-truth["grad_cos"][:40], axis=1)[:, :10]
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(best, result.ordered_indices, strict=True)])
    assert recall >= 0.97
    values = np.take_along_axis(truth["grad_cos"][:40], result.ordered_indices, 1)
    np.testing.assert_allclose(result.scores, values, atol=1e-5)


def test_missing_results_stay_missing(tmp_path):
    """One probed list holds fewer than k rows: FAISS says −1, and so must every stage after it."""
    index = gradindex.build(digits_job(), tmp_path / "i", index="IVF32,Flat")
    faiss.extract_index_ivf(index.searcher.index).nprobe = 1
    for rerank in (0, 240):
        result = index.explain(ids=np.arange(10), k=120, rerank=rerank)
        missing = result.ordered_indices == -1
        assert missing.any()
        assert np.isnan(result.scores[missing]).all()
        assert not result.exact[missing].any()
        assert np.isfinite(result.scores[~missing]).all()
        assert (result.ordered_indices[~missing] >= 0).all()
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in result.ordered_indices)


def test_search_by_vectors_needs_no_job(index):
    opened = gradindex.load(index.store.path)
    scores, ids = opened.search(opened.store.gather(np.array([5, 17])), k=3)
    assert ids[:, 0].tolist() == [5, 17]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-3)
    with pytest.raises(ValueError, match=r"open the index with gradindex\.load\(path, job\)"):
        opened.explain(ids=[1])
    with pytest.raises(ValueError, match="The vectors are complex"):
        opened.search(np.ones((1, 1024)) * 1j, 1)
    with pytest.raises(ValueError, match=r"Expected vectors of shape \(m, 1024\), got \(2, 3\)"):
        opened.search(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        opened.search(np.full((1, 1024), np.nan))


def test_bad_questions_get_clear_errors(index):
    x, y = digits()
    for k in (0, -1, 2.5):
        with pytest.raises(ValueError, match="k must be a positive integer"):
            index.explain(x[:1], k=k)
    with pytest.raises(ValueError, match="k is 241, but there are only 240 samples"):
        index.explain(x[:1], k=241)
    with pytest.raises(
        ValueError, match=r"Unknown kernel 'cosine'\. Expected one of: 'grad_dot' \| 'grad_cos' \| 'grad_asym_dot' \|"
    ):
        index.explain(x[:1], kernel="cosine")
    with pytest.raises(ValueError, match=r"X has .*63,?\).*the training data has shape \(64,\)"):
        index.explain(x[:2, :63])
    with pytest.raises(ValueError, match="X has 3 samples but Y has 2"):
        index.explain(x[:3], y[:2])
    with pytest.raises(IndexError, match=r"Ids \[-1, 240\] are out of range"):
        index.explain(ids=[3, -1, 240])
    with pytest.raises(TypeError, match="Ids must be integers, got float64"):
        index.explain(ids=[1.5])
    with pytest.raises(ValueError, match="Give either inputs"):
        index.explain()
    with pytest.raises(ValueError, match="Give either inputs"):
        index.explain(x[:1], ids=[1])
    with pytest.raises(ValueError, match="no queries"):
        index.explain(ids=[])
    with pytest.raises(ValueError, match="rerank must be 0 or more"):
        index.explain(x[:1], rerank=-1)
    with pytest.raises(ValueError, match=r"queries.*samples \[1\] holds NaN"):
        index.explain(np.where(np.arange(3)[:, None] == 1, np.nan, x[:3]), y[:3])


def test_a_zero_gradient_has_cosine_zero(tmp_path):
    x, y = digits()
    model = nn.Linear(64, 10, bias=False)
    black = x.copy()
    black[7] = 0  # no input, no bias: no gradient
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=(10, 64))))
    index = gradindex.build(gradindex.Job(model, nn.CrossEntropyLoss(), (black, y)), tmp_path / "i")
    assert index.store.norms[7] == 0
    every = index.explain(ids=[0], k=ROWS)
    assert every.scores[0][every.ordered_indices[0] == 7].tolist() == [0.0]
    with pytest.warns(UserWarning, match=r"gradient of queries \[0\] is zero"):
        zero = index.explain(ids=[7], k=5)
    assert zero.scores.tolist() == [[0.0] * 5]


def test_another_loss_or_changed_data_is_noticed(index):
    x, y = digits()
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), (x, (y + 1) % 10))
    opened = gradindex.load(index.store.path, job)
    with pytest.warns(UserWarning, match="loss of .* samples is not the stored one"):
        opened.explain(x[:1], k=3)


def test_a_damaged_index_file_never_reaches_faiss(tmp_path):
    built = gradindex.build(digits_job(), tmp_path / "i")
    (path,) = (tmp_path / "i" / "index").glob("*.faiss")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedIndexError, match=f"{path.name} is damaged"):
        gradindex.load(built.store.path)
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(DamagedIndexError, match=f"{path.name} is damaged: expected {len(data)} bytes"):
        gradindex.load(built.store.path)


@pytest.mark.parametrize("kernel", list(Kernel))
def test_the_scan_is_a_scan(index, kernel):
    """Blockwise top k of the weighted cosines equals sorting all of them."""
    store = index.store
    queries = store.gather(np.array([3, 99]))
    norms = np.array([0.5, 2.0])
    scores, rows, _ = norm_scan.scan(store, queries, norms, kernel, 17, eps=1e-7)
    cosines = queries @ store.gather(np.arange(ROWS)).T
    want = np.stack([cosines[i] * kernels.weights(kernel, norms[i], store.norms, 1e-7) for i in range(2)])
    order = np.argsort(-want, axis=1, kind="stable")[:, :17]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, np.take_along_axis(want, order, 1), rtol=1e-6)


@pytest.mark.parametrize("kernel", [Kernel.DOT, Kernel.ASYM_DOT])
def test_the_scan_stops_early_with_the_same_answer(index, kernel, monkeypatch):
    monkeypatch.setattr(norm_scan, "_BLOCKS", (8, 16))
    store = index.store
    queries, norms = store.gather(np.arange(40)), np.ones(40)
    scores, rows, scanned = norm_scan.scan(store, queries, norms, kernel, 3)
    want = (queries @ store.gather(np.arange(ROWS)).T) * kernels.weights(kernel, 1.0, store.norms)
    np.testing.assert_array_equal(rows, np.argsort(-want, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-want, axis=1)[:, :3], rtol=1e-6)
    assert scanned.min() < ROWS


def test_self_influence_is_the_squared_norm(index, truth):
    scores, ids = index.self_influence(7)
    want = np.diag(truth["grad_dot"])
    np.testing.assert_array_equal(ids, np.argsort(-want, kind="stable")[:7])
    np.testing.assert_allclose(scores, want[ids], rtol=1e-5)
    with pytest.raises(ValueError, match="k is 241, but there are only 240 samples"):
        index.self_influence(241)


def test_ties_go_to_the_smaller_row():
    scores = np.array([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0]])
    rows = np.arange(6)[None]
    assert norm_scan.top(scores, rows, 4)[1].tolist() == [[1, 2, 4, 0]]
    assert norm_scan.top(np.tile(scores, 5), np.arange(30)[None], 2)[1].tolist() == [[1, 2]]


def test_unknown_factory_strings_and_too_few_rows(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown index 'Banana'\. Expected 'auto' or a FAISS factory string"):
        gradindex.build(digits_job(), tmp_path / "a", index="Banana")
    with pytest.raises(ValueError, match="FAISS cannot train 'IVF512,Flat' on 240 rows"):
        gradindex.build(digits_job(), tmp_path / "b", index="IVF512,Flat")


def test_many_threads_get_the_same_answers(index):
    x, y = digits()
    want = index.explain(x[:20], y[:20], k=5).ordered_indices
    found = [None] * 6

    def ask(i):
        found[i] = index.explain(x[:20], y[:20], k=5).ordered_indices

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in found:
        np.testing.assert_array_equal(got, want)


def test_eps_outranks_the_cosine_where_gradients_are_tiny(index, truth):
    """With a large eps the order is that of the inner product: the cosine's candidates alone would be wrong."""
    ids = np.arange(0, ROWS, 11)
    norms = index.store.norms.astype(np.float64)
    products = norms[ids][:, None] * norms
    for eps in (1e-7, 1e-2, 1e3):
        want = truth["grad_cos"][ids] * products / (products + eps)
        result = index.explain(ids=ids, k=5, rerank=20, eps=eps)
        best = -np.sort(-want, axis=1)[:, :5]
        np.testing.assert_allclose(result.scores, best, rtol=1e-4)
        np.testing.assert_allclose(result.opponent_scores, np.sort(want, axis=1)[:, :5], rtol=1e-4)


def test_the_cosine_asks_faiss_and_the_others_scan(index, monkeypatch):
    asked = []
    search = type(index.searcher).search
    monkeypatch.setattr(
        type(index.searcher),
        "search",
        lambda self, *args, **point: asked.append(args[1]) or search(self, *args, **point),
    )
    index.explain(ids=[1, 2], k=5, rerank=50, eps=1e-7)
    assert asked == [50]  # proponents and opponents at once
    index.explain(ids=[1, 2], k=5, kernel="grad_dot")
    assert asked == [50]
