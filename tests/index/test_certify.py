"""Certified answers are those of brute force over unprojected gradients, and no bound is ever broken."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.ann import ranges
from gradindex.ann.searcher import inverted
from gradindex.compute import landmarks
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.gradients.engine import Engine
from gradindex.kernels import Kernel
from gradindex.search import bounds
from tests import oracles
from tests.jobs import ROWS, digits, digits_job, trained
from tests.test_builder import Fails, files

KERNELS = [kernel.value for kernel in Kernel]
N, M = 200, 12
SKETCH = gradindex.Landmark(landmarks=96, dims=48)


class Case:
    """An index of one framework's CNN on digits, queries, and the naive loop's gradients of all."""

    def __init__(self, kit, path):
        x, y, queries, labels = oracles.digits()
        model = kit.cnn()
        self.x, self.y = kit.images(x[:N]), y[:N]
        self.queries, self.labels = kit.images(queries[:M]), labels[:M]
        self.job = gradindex.Job(model, kit.loss, (self.x, self.y))
        self.index = gradindex.build(self.job, path, sketch=SKETCH, shard_rows=70)
        self.train = kit.gradients(model, kit.loss, self.x, self.y)
        self.asked = kit.gradients(model, kit.loss, self.queries, self.labels)

    def truth(self, kernel):
        return oracles.kernel(kernel, self.asked, self.train, eps=0)

    def weights(self, kernel):
        return oracle_weights(kernel, np.linalg.norm(self.asked, axis=1), np.linalg.norm(self.train, axis=1))


def oracle_weights(kernel, queries, train):
    """The largest value that each pair could have, (m, n)."""
    both = queries[:, None] * train
    return {"grad_dot": both, "grad_cos": np.ones_like(both), "grad_asym_dot": both / train**2}[kernel]


@pytest.fixture(scope="module", params=["pytorch", "tensorflow"])
def case(request, tmp_path_factory):
    return Case(oracles.kit(request.param), tmp_path_factory.mktemp("certify") / "i")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An index of CountSketch rows, and exact kernel values between all samples."""
    index = gradindex.build(digits_job(), tmp_path_factory.mktemp("plain") / "i", shard_rows=100)
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    return index, gradients


def assert_is_top(result, values, weights, k):
    """The answer's values are the k highest, and the opponents' the k lowest, to float32's rounding."""
    for prefix, sign, ids in (
        ("", 1, result.ordered_indices),
        ("opponent_", -1, result.opponent_indices),
    ):
        scores = result.data[f"{prefix}scores"]
        best = sign * -np.sort(-sign * values, axis=1)[:, :k]
        slack = 2e-6 * np.take_along_axis(weights, ids, 1)
        assert (np.abs(np.take_along_axis(values, ids, 1) - scores) <= slack).all()
        assert (np.abs(scores - best) <= 2e-6 * weights.max(axis=1, keepdims=True) + 1e-5 * np.abs(best)).all()
        assert all(len(set(row)) == k for row in ids.tolist())
        assert (np.diff(sign * scores) <= 0).all()


def test_no_bound_is_broken(case):
    """All pairs: queries with training samples, and training samples among themselves."""
    for gradients in (case.asked, case.train):
        norms = np.linalg.norm(gradients, axis=1)
        upper, minus_lower = bounds.cosine_bounds(case.index, case.index.sketches(gradients.astype(np.float32), norms))
        cosines = oracles.kernel("grad_cos", gradients, case.train, eps=0)
        assert (cosines <= upper.astype(np.float64) + 1e-9).all()
        assert (-cosines <= minus_lower.astype(np.float64) + 1e-9).all()
        assert np.median(upper + minus_lower) < 0.5  # of at most 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("k", [1, 10])
def test_a_certified_answer_is_that_of_brute_force(case, kernel, k):
    found = case.index.explain(case.queries, case.labels, k=k, kernel=kernel, certify=True)
    assert_is_top(found, case.truth(kernel), case.weights(kernel), k)
    for prefix in ("", "opponent_"):
        assert found.data[f"{prefix}proved"].all()
        assert found.data[f"{prefix}exact"].all()
        assert np.isnan(found.data[f"{prefix}bound_left"]).all()
        assert (found.data[f"{prefix}scanned"] == N).all()
    assert (found.checked >= k).all()
    assert np.median(found.checked) < N / 2  # proved without looking at most of them
    assert found.meta["params"]["certify"] is True


@pytest.mark.parametrize("kernel", KERNELS)
def test_giving_up_is_honest(case, kernel):
    found = case.index.explain(case.queries, case.labels, k=16, kernel=kernel, certify=True, max_checks=16)
    values, slack = case.truth(kernel), 2e-6 * case.weights(kernel)
    assert not found.proved.all()
    for prefix, sign, ids in (("", 1, found.ordered_indices), ("opponent_", -1, found.opponent_indices)):
        proved, left = found.data[f"{prefix}proved"], found.data[f"{prefix}bound_left"]
        assert (found.data[f"{prefix}checked"] <= 16).all()
        np.testing.assert_array_equal(np.isnan(left), proved)
        for line in np.flatnonzero(~proved):
            others = np.setdiff1d(np.arange(N), ids[line])
            assert (sign * values[line, others] <= sign * left[line] + slack[line, others]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_of_them(case, kernel):
    found = case.index.explain(case.queries[:3], case.labels[:3], k=N, kernel=kernel, certify=True)
    assert_is_top(found, case.truth(kernel)[:3], case.weights(kernel)[:3], N)
    assert found.proved.all()
    assert (found.checked == N).all()


def test_rows_are_the_exact_projection(case):
    """⟨p, p'⟩ is the inner product of unit gradients projected, in float64, on the landmarks' leading directions."""
    assets_path = case.index.store.path / "assets"
    (ids,) = (np.load(path) for path in assets_path.glob("landmark.*.ids.npy"))
    unit = case.train / np.linalg.norm(case.train, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(unit[ids] @ unit[ids].T)
    used = case.index.projector.whitening.matrix.shape[1]
    leading = slice(-1, -used - 1, -1)
    basis = (vectors[:, leading] / np.sqrt(values[leading])).T @ unit[ids]
    np.testing.assert_allclose(basis @ basis.T, np.eye(used), atol=1e-6)
    projected = unit @ basis.T
    rows = case.index.store.gather(np.arange(N)).astype(np.float64)
    np.testing.assert_allclose(rows[:, :-1] @ rows[:, :-1].T, projected @ projected.T, atol=2e-3)  # float16
    rest = np.sqrt(np.maximum(1 - (projected**2).sum(1), 0))
    assert (rows[:, -1] >= rest - 1e-3).all()
    norms = np.linalg.norm(case.train, axis=1)
    fresh = case.index.projector(case.job.engine.parameters, case.train.astype(np.float32))
    finished = case.index.projector.finish(fresh, norms).astype(np.float64)
    np.testing.assert_allclose(finished[:, :-1] @ finished[:, :-1].T, projected @ projected.T, atol=2e-5)
    assert (finished[:, -1] >= rest - 1e-7).all()  # never understated
    np.testing.assert_allclose(finished[:, -1] ** 2, rest**2, atol=1e-3)
    error = bounds.row_error(rows.shape[1], case.index.projector.whitening.error)
    assert np.abs(rows @ finished.T - finished @ finished.T).max() < error


def test_a_store_answers_alike_when_opened_again(case):
    want = case.index.explain(case.queries, case.labels, k=5, certify=True)
    again = gradindex.load(case.index.store.path, case.job)
    np.testing.assert_array_equal(again.projector.whitening.matrix, case.index.projector.whitening.matrix)
    found = again.explain(case.queries, case.labels, k=5, certify=True)
    np.testing.assert_array_equal(found.ordered_indices, want.ordered_indices)
    assert found.proved.all()


def test_ordinary_answers_use_the_bounds_order(case):
    """Without certify a Landmark index is an index as any other, opponents included."""
    found = case.index.explain(case.queries, case.labels, k=10, rerank=60)
    assert_is_top(found, case.truth("grad_cos"), case.weights("grad_cos"), 10)
    assert not found.proved.any()  # Cauchy–Schwarz alone proves no cosine
    estimates = case.index.explain(case.queries, case.labels, k=10, rerank=0)
    values = np.take_along_axis(case.truth("grad_cos"), estimates.ordered_indices, 1)
    assert (estimates.scores >= values - 1e-3).all()
    values = np.take_along_axis(case.truth("grad_cos"), estimates.opponent_indices, 1)
    assert (estimates.opponent_scores <= values + 1e-3).all()


def count_ranges(monkeypatch):
    found, within = [], ranges.within

    def counted(*asked):
        found.append(within(*asked))
        return found[-1]

    monkeypatch.setattr(ranges, "within", counted)
    return found


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF8,Flat", "IVF8,SQ8", "IVF8,SQ4"])
@pytest.mark.parametrize("where", [None, {"label": [0, 1, 2, 3, 4]}])
def test_few_queries_are_certified_by_range_search(case, tmp_path, monkeypatch, factory, where):
    path = tmp_path / "i"
    shutil.copytree(case.index.store.path, path)
    gradindex.index_store(gradindex.Store.open(path), factory)
    index = gradindex.load(path, case.job)
    found = count_ranges(monkeypatch)
    allowed = np.ones(N, bool) if where is None else np.isin(case.y, where["label"])
    for line in range(4):
        one = slice(line, line + 1)
        result = index.explain(case.queries[one], case.labels[one], k=10, certify=True, where=where)
        ids = np.flatnonzero(allowed)
        values = case.truth("grad_cos")[one]
        np.testing.assert_allclose(result.scores[0], -np.sort(-values[0, ids])[:10], atol=1e-5)
        np.testing.assert_allclose(result.opponent_scores[0], np.sort(values[0, ids])[:10], atol=1e-5)
        assert result.proved.all()
        assert result.data["opponent_proved"].all()
        upper = bounds.cosine_bounds(index, index.sketch(case.queries[one], case.labels[one]))[:, 0]
        for rows, most, kth in zip(found[-2:], upper, (values[0, ids], -values[0, ids]), strict=True):
            reach = np.flatnonzero(most >= -np.sort(-kth)[9])
            assert np.isin(reach, rows).all()  # nothing that may be in the answer is missed
    assert len(found) == 8
    assert np.mean([len(rows) for rows in found]) < 0.9 * N


def test_rounding_is_measured_once_and_kept_with_the_file_it_is_of(case, tmp_path, monkeypatch):
    path = tmp_path / "i"
    shutil.copytree(case.index.store.path, path)
    store = gradindex.Store.open(path)
    gradindex.index_store(store, "IVF8,SQ4")
    index = gradindex.load(path, case.job)
    measured, errors = [], ranges._errors
    monkeypatch.setattr(ranges, "_errors", lambda *asked: measured.append(asked) or errors(*asked))
    first = ranges.rounding(store, index.searcher)
    held = np.concatenate([vectors[np.argsort(rows)] for rows, vectors in [_all_held(index)]])
    true = np.linalg.norm(store.gather(np.arange(N)) - held, axis=1)
    assert true.max() <= first.error
    assert first.error > 1e-3  # four bits do not hold more
    assert ranges.rounding(store, gradindex.load(path).searcher).error == first.error
    assert len(measured) == 1
    gradindex.index_store(store, "SQ8")
    index.searcher.found.clear()
    assert ranges.rounding(store, index.searcher).error == first.error  # of what is open, not of what lies there now
    assert len(measured) == 2
    other = ranges.rounding(store, gradindex.load(path).searcher)
    assert len(measured) == 3
    assert other.error < first.error / 4


def _all_held(index):
    parts = list(ranges._held(index.searcher.index))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def test_residual_rows_certify(case, tmp_path):
    """The lengths of residuals' sketches bound as ρ does, and the rows' inner products are estimates."""
    sketch = gradindex.Landmark(landmarks=96, dims=48, residual=80)
    index = gradindex.build(case.job, tmp_path / "i", sketch=sketch)
    norms = np.linalg.norm(case.asked, axis=1)
    rows = index.sketches(case.asked.astype(np.float32), norms)
    upper, minus_lower = bounds.cosine_bounds(index, rows)
    cosines = case.truth("grad_cos")
    assert (cosines <= upper.astype(np.float64) + 1e-9).all()
    assert (-cosines <= minus_lower.astype(np.float64) + 1e-9).all()
    found = index.explain(case.queries, case.labels, k=10, certify=True)
    assert_is_top(found, cosines, case.weights("grad_cos"), 10)
    assert found.proved.all()
    estimates = index.explain(case.queries, case.labels, k=10, rerank=0)
    truth = np.take_along_axis(cosines, estimates.ordered_indices, 1)
    assert np.abs(estimates.scores - truth).max() < 0.1
    truth = np.take_along_axis(cosines, estimates.opponent_indices, 1)
    assert np.abs(estimates.opponent_scores - truth).max() < 0.1


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "HNSW16"])
def test_any_index_over_the_rows(tmp_path, factory):
    index = gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH, index=factory)
    flat = gradindex.build(digits_job(), tmp_path / "flat", sketch=SKETCH)
    x, y = digits()
    found, want = (one.explain(x[:9] * 0.9, y[:9], k=7, certify=True) for one in (index, flat))
    np.testing.assert_array_equal(found.ordered_indices, want.ordered_indices)
    assert found.proved.all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_ties(tmp_path, kernel):
    """Every sample is there three times: all of a kind score alike, and the smaller ids come first."""
    x, y = (np.concatenate([part[:60]] * 3) for part in digits())
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), (x, y))
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=50, dims=30))
    found = index.explain(ids=np.arange(6), k=6, kernel=kernel, certify=True)
    assert found.proved.all()
    gradients = gradindex.exact_gradients(job, np.arange(180)).astype(np.float64)
    norms = np.linalg.norm(gradients, axis=1)
    assert_is_top(
        found, oracles.kernel(kernel, gradients[:6], gradients, eps=0), oracle_weights(kernel, norms[:6], norms), 6
    )
    assert all(len(set(row % 60)) == 2 for row in found.ordered_indices)


def test_zero_gradients(tmp_path):
    x, y = (part[:80].copy() for part in digits())
    x[[7, 8, 40]] = 0  # no input, no bias: no gradient
    model = nn.Linear(64, 10, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=(10, 64))))
    job = gradindex.Job(model, nn.CrossEntropyLoss(), (x, y))
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=80, dims=40))
    assert (index.store.gather(np.array([7, 8, 40])) == 0).all()
    for kernel in KERNELS:
        found = index.explain(ids=[0, 1], k=80, kernel=kernel, certify=True)
        assert found.proved.all()
        assert (found.checked == 77).all()  # a value of 0 takes no evaluation
        for line in range(2):
            zero = np.isin(found.ordered_indices[line], [7, 8, 40])
            assert (found.scores[line][zero] == 0).all()
        with pytest.warns(UserWarning, match=r"gradient of queries \[0\] is zero"):
            nothing = index.explain(ids=[7], k=5, kernel=kernel, certify=True)
        assert nothing.scores.tolist() == [[0.0] * 5]
        assert nothing.ordered_indices.tolist() == [[0, 1, 2, 3, 4]]
        assert nothing.proved.all()


def test_many_landmarks_of_few_directions(tmp_path):
    """All samples as landmarks of a small layer: directions without length are dropped, not divided by."""
    job = digits_job(parameters=["2.bias"])
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=1000, dims=100))
    assert index.projector.whitening.matrix.shape[0] == ROWS
    assert index.projector.whitening.matrix.shape[1] <= 10
    assert np.abs(index.store.gather(np.arange(ROWS))[:, -1]).max() < 0.1  # nothing is left out
    found = index.explain(ids=np.arange(5), k=3, certify=True)
    assert found.proved.all()


def test_layers_over_the_memory_budget_stay_in_rho(tmp_path):
    sketch = gradindex.Landmark(landmarks=100, dims=50, memory=4 * 100 * 100)
    index = gradindex.build(digits_job(), tmp_path / "i", sketch=sketch)
    forms = index.projector.forms
    assert forms["0.weight"] == "none"  # 64 + 24 numbers a landmark
    assert {forms[name] for name in ("0.bias", "2.bias", "2.weight")} == {"factors", "formed"}
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    norms = np.linalg.norm(gradients, axis=1)
    cosines = oracles.kernel("grad_cos", gradients[:40], gradients, eps=0)
    upper, minus_lower = bounds.cosine_bounds(index, index.sketches(gradients[:40].astype(np.float32), norms[:40]))
    assert (cosines <= upper.astype(np.float64) + 1e-9).all()
    assert (-cosines <= minus_lower.astype(np.float64) + 1e-9).all()
    found = index.explain(ids=np.arange(40), k=5, certify=True)
    assert found.proved.all()
    assert_is_top(found, cosines, np.ones_like(cosines), 5)
    with pytest.raises(
        ValueError, match=r"Landmark\(memory=100\) holds .* no parameter; the smallest takes 4000 bytes"
    ):
        gradindex.build(digits_job(), tmp_path / "j", sketch=gradindex.Landmark(landmarks=100, dims=50, memory=100))


@pytest.mark.parametrize("kernel", ["grad_dot", "grad_asym_dot"])
def test_norms_alone_prove_inner_products(plain, kernel):
    """On other sketches Cauchy–Schwarz with exact norms is a true proof, wherever it closes."""
    index, gradients = plain
    norms = np.linalg.norm(gradients, axis=1)
    ids = np.arange(0, ROWS, 9)
    values = oracles.kernel(kernel, gradients[ids], gradients, eps=0)
    found = index.explain(ids=ids, k=5, kernel=kernel, certify=True, rerank=20)
    assert found.proved.all()
    assert_is_top(found, values, oracle_weights(kernel, norms[ids], norms), 5)
    some = index.explain(ids=ids, k=5, kernel=kernel, certify=True, rerank=20, max_checks=60)
    assert (some.checked <= 60).all()
    assert not some.proved.all()
    np.testing.assert_array_equal(found.checked <= 60, some.proved)


def test_no_cosine_is_proved_without_bounds(plain):
    index, gradients = plain
    values = oracles.kernel("grad_cos", gradients[:4], gradients, eps=0)
    found = index.explain(ids=np.arange(4), k=5, certify=True, rerank=50)
    assert_is_top(found, values, np.ones_like(values), 5)
    assert not found.proved.any()
    assert (found.checked == 50).all()
    np.testing.assert_allclose(found.bound_left, 1, atol=1e-4)
    np.testing.assert_allclose(found.opponent_bound_left, -1, atol=1e-4)
    every = index.explain(ids=np.arange(4), k=5, certify=True, max_checks=ROWS)
    assert every.proved.all()
    assert (every.checked + every.opponent_checked >= ROWS).all()  # what both want at once counts for both


@pytest.mark.parametrize("kernel", KERNELS)
def test_ordinary_answers_say_what_they_prove(plain, kernel):
    index, gradients = plain
    values = oracles.kernel(kernel, gradients[:20], gradients, eps=0)
    few = index.explain(ids=np.arange(20), k=2, kernel=kernel, rerank=100)
    every = index.explain(ids=np.arange(20), k=2, kernel=kernel, rerank=ROWS)
    assert every.proved.all()
    assert (every.checked == ROWS).all()
    assert (few.checked < ROWS).all()
    assert (few.scanned > 0).all()
    for prefix, sign, ids in (("", 1, few.ordered_indices), ("opponent_", -1, few.opponent_indices)):
        for line in range(20):
            others = np.setdiff1d(np.arange(ROWS), ids[line])
            left = few.data[f"{prefix}bound_left"][line]
            if few.data[f"{prefix}proved"][line]:
                assert np.isnan(left)
                assert (sign * values[line, others]).max() <= few.data[f"{prefix}scores"][line, -1] * sign
            else:
                unchecked = np.sort(sign * values[line])[: ROWS - few.checked[line]]
                assert (unchecked <= sign * left * (1 + 1e-5)).all()
    none = index.explain(ids=np.arange(3), k=2, kernel=kernel, rerank=0)
    assert not none.proved.any()
    assert (none.checked == 0).all()


def test_ivf_counts_the_rows_of_its_lists(tmp_path):
    for factory in ("IVF8,Flat", "PCA16,IVF8,Flat"):
        index = gradindex.build(digits_job(), tmp_path / factory, index=factory)
        inverted(index.searcher.index).nprobe = 8
        assert (index.explain(ids=[1, 2], k=3).scanned == ROWS).all()
        inverted(index.searcher.index).nprobe = 2
        scanned = index.explain(ids=[1, 2], k=3).scanned
        assert ((scanned > 0) & (scanned < ROWS)).all()
    graph = gradindex.build(digits_job(), tmp_path / "h", index="HNSW16")
    assert (graph.explain(ids=[1, 2], k=3).scanned == -1).all()


def test_checks_are_shared_by_queries(case, monkeypatch):
    """Several queries' rows go through the same passes: far fewer samples than pairs."""
    seen = []
    embed = Engine.embed
    monkeypatch.setattr(
        Engine, "embed", lambda self, x, y, projector: seen.append(len(x)) or embed(self, x, y, projector)
    )
    found = case.index.explain(case.queries, case.labels, k=10, certify=True)
    assert sum(seen) <= M + N * 2
    assert found.checked.sum() + found.opponent_checked.sum() > 0


def test_a_killed_build_continues_to_the_same_bytes(tmp_path):
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), Fails(-1))
    sketch = gradindex.Landmark(landmarks=60, dims=30, memory=1 << 25)
    gradindex.build(job, tmp_path / "whole", sketch=sketch, shard_rows=50, batch_size=32)
    chosen = sketch.bind(job.engine.parameters, 0).draw(ROWS)
    at = next(i for i in range(120, ROWS) if i not in chosen)
    broken = gradindex.Job(trained(), nn.CrossEntropyLoss(), Fails(at))
    with pytest.raises(OSError, match="disk on fire"):
        gradindex.build(broken, tmp_path / "broken", sketch=sketch, shard_rows=50, batch_size=32)
    assert (tmp_path / "broken" / "assets" / "landmark.json").exists()  # before the shards
    gradindex.build(job, tmp_path / "broken", sketch=sketch, shard_rows=50, batch_size=32)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_build_killed_while_choosing_landmarks_starts_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(landmarks.side_files, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH)
    gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH)
    gradindex.build(digits_job(), tmp_path / "j", sketch=SKETCH)
    assert files(tmp_path / "i") == files(tmp_path / "j")


@pytest.mark.parametrize("kind", ["ids", "norms", "whitening"])
def test_damaged_landmarks_are_refused(tmp_path, kind):
    gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH)
    (path,) = (tmp_path / "i" / "assets").glob(f"landmark.*.{kind}.npy")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    index = gradindex.load(tmp_path / "i", digits_job())
    with pytest.raises(DamagedIndexError, match=f"{path.name} is damaged: its contents do not match"):
        index.explain(ids=[1], k=3)
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(DamagedIndexError, match=f"{path.name} is damaged: expected {len(data)} bytes"):
        index.explain(ids=[1], k=3, certify=True)
    path.unlink()
    with pytest.raises(DamagedIndexError, match=f"{path.name} is missing"):
        index.explain(ids=[1], k=3, certify=True)


def test_lost_exchanged_or_foreign_landmarks_are_refused(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH)
    other = gradindex.build(digits_job(), tmp_path / "j", sketch=gradindex.Landmark(landmarks=50, dims=20)).store
    manifest = tmp_path / "i" / "assets" / "landmark.json"
    index = gradindex.load(tmp_path / "i", digits_job())
    text = manifest.read_text()
    manifest.write_text(text.replace('"error": ', '"error": 1'))
    with pytest.raises(DamagedIndexError, match="do not match its seal"):
        index.explain(ids=[1], k=3)
    shutil.rmtree(manifest.parent)
    with pytest.raises(DamagedIndexError, match=r"landmark\.json is missing"):
        index.explain(ids=[1], k=3)
    shutil.copytree(other.path / "assets", manifest.parent)
    with pytest.raises(DamagedIndexError, match=r"landmark\.json is not of this store"):
        index.explain(ids=[1], k=3)


def test_other_data_under_the_landmarks_are_noticed(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH)
    x, y = digits()
    changed = gradindex.Job(trained(), nn.CrossEntropyLoss(), (x * 0.5, y))
    index = gradindex.load(tmp_path / "i", changed)
    with pytest.raises(MismatchError, match=r"gradients of \d+ of 96 landmarks are not those .* was built with"):
        index.explain(ids=[1], k=3)


def test_without_a_job_vectors_are_searched_and_queries_refused(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", sketch=SKETCH)
    opened = gradindex.load(tmp_path / "i")
    scores, ids = opened.search(opened.store.gather(np.array([5, 17])), k=3)
    assert ids[:, 0].tolist() == [5, 17]
    np.testing.assert_allclose(scores[:, 0], 1, atol=2e-3)
    with pytest.raises(ValueError, match=r"open the index with gradindex\.load\(path, job\)"):
        opened.explain(ids=[1], certify=True)


def test_bad_questions_get_clear_errors(case):
    ask = case.index.explain
    with pytest.raises(ValueError, match="max_checks must be an integer of k = 10 or more, got 9"):
        ask(ids=[1], certify=True, max_checks=9)
    with pytest.raises(ValueError, match=r"max_checks must be an integer of k = 10 or more, got 20\.5"):
        ask(ids=[1], certify=True, max_checks=20.5)
    with pytest.raises(ValueError, match="max_checks limits a proof: give certify=True with it, or rerank"):
        ask(ids=[1], max_checks=20)
