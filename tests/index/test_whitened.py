"""Whitened rows: their kernels against plain linear algebra, and what becomes of them as the index changes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import gradindex
from gradindex.compute.blocks import exact_gradients
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.kernels import WhiteKernel
from gradindex.lifecycle.whiten import follow, whiten
from gradindex.search.whitened import place_of
from gradindex.sketch.whitening import spectrum
from gradindex.store import Store, locks
from tests.jobs import ROWS, digits_job

LEFT_OUT = ROWS - 40


@pytest.fixture(scope="module")
def job():
    return digits_job()


@pytest.fixture(scope="module")
def built(tmp_path_factory, job):
    return gradindex.build(job, tmp_path_factory.mktemp("white") / "i", whiten=True)


@pytest.fixture
def index(built, tmp_path, job):
    """A copy, to be changed."""
    shutil.copytree(built.store.path, tmp_path / "i")
    return gradindex.load(tmp_path / "i", job)


def by_hand(job, damping, queries):
    """Return qᵀ (F + λ)⁻¹ g for queries and all samples, F the mean of g gᵀ, in float64 with formed gradients."""
    gradients = exact_gradients(job, np.arange(ROWS)).astype(np.float64)
    # (F + λ)⁻¹ g = (g − Gᵀ (K + λ)⁻¹ G g / n) / λ, with K = G Gᵀ / n
    gram = gradients @ gradients.T / ROWS
    dots = gradients[queries] @ gradients.T
    return (dots - np.linalg.solve(gram + damping * np.eye(ROWS), gram).T[queries] @ (gram * ROWS)) / damping


def spread(a, b):
    """Return the mean correlation of the lines of two matrices."""
    return np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(a, b, strict=True)])


def test_all_landmarks_give_the_exact_fisher_kernel(built, job):
    queries = np.arange(8)
    want = by_hand(job, built.white.damping, queries)
    got = built.scores(ids=queries, kernel="white_dot")
    assert got.shape == (8, ROWS) and got.dtype == np.float32
    assert spread(got, want) > 0.999
    # along the samples themselves: what lies outside the span of the rows is not in it
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()


def test_more_damping_makes_the_gradients_own_product(built, job):
    built_with = built.white.spectrum.whitener((1e6 * built.white.damping,))
    rows, norms = built.embedded(built.labelled(None, ids=np.arange(5)))
    white, lengths = built_with(rows, norms)
    gradients = exact_gradients(job, np.arange(5)).astype(np.float64)
    want = gradients @ gradients.T
    got = (white @ white.T) * np.outer(lengths, lengths)
    np.testing.assert_allclose(got / got[0, 0], want / want[0, 0], atol=2e-3 * np.abs(want / want[0, 0]).max())


@pytest.mark.parametrize("kernel", WhiteKernel)
def test_explain_finds_the_best_of_all_scores(built, kernel):
    queries = np.array([3, 100, 200])
    every = built.scores(ids=queries, kernel=kernel)
    found = built.explain(ids=queries, kernel=kernel, k=7)
    order = np.argsort(-every, axis=1, kind="stable")
    np.testing.assert_array_equal(found.ordered_indices, order[:, :7])
    np.testing.assert_array_equal(found.opponent_indices, order[:, ::-1][:, :7])
    np.testing.assert_allclose(found.scores, np.take_along_axis(every, order[:, :7], 1), rtol=1e-4)
    assert not found.exact.any() and not found.proved.any() and (found.checked == 0).all()
    assert found.meta["params"]["estimator"] == "whitened rows"
    assert found.meta["params"]["whitened"]["moment_rows"] == ROWS


def test_white_cos_is_the_cosine_of_whitened_rows(built):
    dots = built.scores(ids=np.arange(ROWS), kernel="white_dot").astype(np.float64)
    norms = np.sqrt(np.diag(dots))
    got = built.scores(ids=np.arange(ROWS), kernel="white_cos")
    np.testing.assert_allclose(got, dots / np.outer(norms, norms), atol=0.02)


def test_plain_scores_are_those_of_the_sketch(built):
    found = built.explain(ids=[5], k=5, rerank=0)
    every = built.scores(ids=[5])
    np.testing.assert_allclose(np.sort(every[0])[::-1][:5], found.scores[0], atol=1e-3)


def test_vectors_are_searched_without_a_job(built):
    vectors = built.sketch(ids=[3, 8])
    scores, ids = gradindex.load(built.store.path).search(vectors, 4, whitened=True)
    found = built.explain(ids=[3, 8], kernel="white_cos", k=4)
    np.testing.assert_array_equal(ids, found.ordered_indices)
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4)


def test_filters_hold(built, job):
    labels = np.asarray(job.source.take(np.arange(ROWS)).y)
    found = built.explain(ids=[0], kernel="white_dot", k=3, where={"label": 4})
    every = np.where(labels == 4, built.scores(ids=[0], kernel="white_dot")[0], -np.inf)
    np.testing.assert_array_equal(found.ordered_indices[0], np.argsort(-every)[:3])


def test_countsketch_rows_are_whitened_without_the_model(tmp_path, job):
    gradindex.build(job, tmp_path / "i", sketch=gradindex.CountSketch(512))
    gradindex.load(tmp_path / "i").whiten(damping=0.01)
    index = gradindex.load(tmp_path / "i", job)
    assert index.white.damping == pytest.approx(0.01)
    rows = index.store.gather(np.arange(ROWS)).astype(np.float64) * index.store.norms[:, None].astype(np.float64)
    inverse = np.linalg.inv(rows.T @ rows / ROWS + 0.01 * np.eye(512))
    want = rows[:6] @ inverse @ rows.T
    got = index.scores(ids=np.arange(6), kernel="white_dot")
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()


def test_removed_samples_are_not_found(index):
    first = index.explain(ids=[7], kernel="white_dot", k=4).ordered_indices[0]
    gone = first[1:3]
    index.remove(gone)
    after = index.explain(ids=[7], kernel="white_dot", k=2).ordered_indices[0]
    np.testing.assert_array_equal(after, first[[0, 3]])
    assert index.scores(ids=[7], kernel="white_dot").shape == (1, ROWS - 2)
    index.compact()
    assert len(index.white.store) == ROWS - 2
    np.testing.assert_array_equal(index.explain(ids=[7], kernel="white_dot", k=2).ordered_indices[0], after)
    index.check()


def test_added_samples_are_whitened_by_the_same_moment(index, job):
    batch = job.source.take(np.arange(5))
    before = index.scores(ids=[0], kernel="white_dot")
    index.add((np.asarray(batch.x), np.asarray(batch.y)))
    assert (index.white.added, index.white.missing, index.white.moment_rows) == (5, 0, ROWS)
    after = index.scores(ids=[0], kernel="white_dot")
    np.testing.assert_allclose(after[:, :ROWS], before, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(after[:, ROWS:], before[:, :5], rtol=1e-2, atol=1e-2 * before.max())
    index.check()


def test_samples_that_a_killed_process_did_not_whiten_are_said_and_made_up_for(index, job, monkeypatch):
    batch = job.source.take(np.arange(3))
    monkeypatch.setattr("gradindex.index.state.whitening.follow", lambda *args, **options: None)
    index.add((np.asarray(batch.x), np.asarray(batch.y)))
    assert index.white.missing == 3
    assert index.explain(ids=[0], kernel="white_dot", k=2).meta["params"]["whitened"]["missing"] == 3
    with pytest.raises(ValueError, match="3 samples are not whitened yet"):
        index.scores(ids=[0], kernel="white_dot")
    follow(index.store.path)
    assert gradindex.load(index.store.path, index.job).white.missing == 0


def test_whitening_again_replaces_what_was_there(index):
    before = index.white.damping
    index.whiten(damping=10 * before, dims=20)
    assert index.white.damping == pytest.approx(10 * before)
    assert index.white.store.header.dim == 20
    assert index.explain(ids=[0], kernel="white_cos", k=1).ordered_indices[0, 0] == 0
    index.check()


def test_repair_makes_damaged_rows_again(index):
    want = index.scores(ids=[0], kernel="white_dot")
    file = next(place_of(index.store).glob("shards/*.sketch.npy"))
    file.write_bytes(file.read_bytes()[:-8] + b"\1" * 8)
    with pytest.raises(DamagedIndexError):
        index.check()
    done = gradindex.repair(index.store.path, index.job)
    assert done.whitened and str(done) == "Whitened the rows again."
    again = gradindex.load(index.store.path, index.job)
    again.check()
    np.testing.assert_allclose(again.scores(ids=[0], kernel="white_dot"), want, rtol=1e-3, atol=1e-3)
    assert not gradindex.repair(index.store.path).whitened


def test_rows_of_another_store_are_refused(index, tmp_path, job):
    other = gradindex.build(job, tmp_path / "other", sketch=gradindex.CountSketch(64))
    shutil.copytree(place_of(index.store).parent, other.store.path / "whitened")
    with pytest.raises(MismatchError, match="another store"):
        other.explain(ids=[0], kernel="white_dot")


def test_a_build_that_was_killed_before_whitening_goes_on(tmp_path, job):
    sketch = gradindex.Landmark(landmarks=2048, dims=1024, draw="norm")
    gradindex.build(job, tmp_path / "i", sketch=sketch)
    index = gradindex.build(job, tmp_path / "i", whiten=True)
    assert index.is_whitened


def stopped(*args, **options):
    raise KeyboardInterrupt


def test_unfinished_whitening_is_taken_up(index, monkeypatch):
    want = index.scores(ids=[0], kernel="white_dot")
    shutil.rmtree(place_of(index.store).parent)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gradindex.lifecycle.whiten.indexing.build", stopped)
        index.whiten()
    assert Store.open(place_of(index.store)).header.rows == ROWS
    index.whiten()
    np.testing.assert_array_equal(index.scores(ids=[0], kernel="white_dot"), want)


def test_unfinished_whitening_does_not_stand_in_the_way(tmp_path, job, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gradindex.lifecycle.whiten._shard", stopped)
        gradindex.build(job, tmp_path / "i", whiten=True)
    index = gradindex.load(tmp_path / "i", job)
    assert not index.is_whitened
    index.check()
    with pytest.raises(ValueError, match="gradindex whiten"):
        index.explain(ids=[0], kernel="white_dot")
    assert gradindex.build(job, tmp_path / "i", whiten=True).is_whitened  # goes on


def test_another_sample_is_not_mixed_with_what_was_begun(index, monkeypatch):
    shutil.rmtree(place_of(index.store).parent)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gradindex.lifecycle.whiten._shard", stopped)
        index.whiten(sample=60)
    assert index.whiten().moment_rows == ROWS
    index.check()


def test_a_wrong_factory_string_costs_nothing(index):
    before = index.white.damping
    with pytest.raises(ValueError, match="Unknown index 'Foo'"):
        index.whiten(index="Foo")
    assert gradindex.load(index.store.path).white.damping == before


def test_two_processes_do_not_whiten_at_once(index):
    place = place_of(index.store)
    with locks.alone(place.parent), pytest.raises(gradindex.IndexExistsError, match="Another process whitens"):
        index.whiten()


def test_damaged_whitened_rows_do_not_stop_a_change(index, job, caplog):
    file = next(place_of(index.store).glob("assets/*.vectors.npy"))
    file.write_bytes(b"x")
    batch = job.source.take(np.arange(3))
    with caplog.at_level("WARNING", logger="gradindex"):
        ids = index.add((np.asarray(batch.x), np.asarray(batch.y)))
    assert len(ids) == 3 and len(index) == ROWS + 3 and "were not brought up to date" in caplog.text
    (place_of(index.store) / "store.json").write_text("{")
    index.whiten()
    assert index.white.missing == 0
    index.check()


def test_repair_keeps_the_options(index):
    index.whiten(index="IVF4,SQ8", sample=100, damping=0.5, dims=20, bits=4)
    file = next(place_of(index.store).glob("shards/*.sketch.npy"))
    file.write_bytes(file.read_bytes()[:-8] + b"\1" * 8)
    assert gradindex.repair(index.store.path).whitened
    white = gradindex.load(index.store.path).white
    assert (white.searcher.factory, white.moment_rows, white.damping) == ("IVF4,SQ8", 100, 0.5)
    assert (white.store.header.dim, white.store.header.row_bytes, white.to_json()["bits"]) == (20, 10, 4)


def test_rows_of_four_bits_take_half_the_bytes_and_keep_the_kernel(index, job):
    eight = index.white.store
    want = index.scores(ids=np.arange(8), kernel="white_dot")
    white = index.whiten(bits=4)
    assert white.store.header.row_bytes == -(-eight.header.row_bytes // 2)
    assert white.store.shards[0].sketches.dtype == np.uint8
    np.testing.assert_array_equal(white.store.norms, eight.norms)
    assert spread(index.scores(ids=np.arange(8), kernel="white_dot"), want) > 0.98
    batch = job.source.take(np.arange(3))
    new = index.add((np.asarray(batch.x), np.asarray(batch.y)))
    index.remove([0])
    gradindex.compact(index.store.path)
    again = gradindex.load(index.store.path, index.job)
    assert again.white.missing == 0 and again.white.to_json()["bits"] == 4
    got = again.explain(ids=[1], kernel="white_cos", k=2)
    assert set(got.ordered_indices[0]) == {1, int(new[1])}  # the sample and its copy
    assert again.verify(queries=10, kernel="white_dot", k=5).recall > 0.85


def test_audits_of_samples_that_are_not_whitened_say_so(index, job, monkeypatch):
    monkeypatch.setattr("gradindex.index.state.whitening.follow", lambda *args, **options: None)
    batch = job.source.take(np.arange(3))
    index.add((np.asarray(batch.x), np.asarray(batch.y)))
    with pytest.raises(ValueError, match="3 samples are not whitened yet"):
        index.verify(queries=5, kernel="white_dot", k=2)


def test_one_direction_a_checkpoint(tmp_path, along_training):
    job, _ = along_training
    sketch = gradindex.Landmark(landmarks=20, dims=1, draw="norm", per_checkpoint=True)
    index = gradindex.build(job, tmp_path / "i", sketch=sketch, whiten=True)
    assert len(index.white.dampings) == 3


def test_a_checkpoint_without_gradients():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    rows, ones = np.hstack([np.zeros((30, 4), np.float32), rows]), np.ones(30)
    found = spectrum([(rows, ones)], (4, 4), 1.0)
    assert found.dampings()[0] == 0 and found.dampings()[1] > 0
    white, lengths = found.whitener(found.dampings())(rows, ones)
    assert np.isfinite(white).all() and (lengths > 0).all()


def test_an_enormous_row_leaves_the_others_their_kernel(tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 6))
    norms = np.linalg.norm(rows, axis=1)
    norms[7] = 1e6
    store = gradindex.Store.from_arrays(rows, np.arange(100), norms, tmp_path / "s")
    white = gradindex.index_store(store).whiten()
    stored = store.gather(np.arange(100)).astype(np.float64) * store.norms[:, None].astype(np.float64)
    inverse = np.linalg.inv(stored.T @ stored / 100 + white.damping * np.eye(6))
    others = np.delete(np.arange(100), 7)
    want = stored[others] @ inverse @ stored[others].T
    made, lengths = white.whitener(store.gather(others), store.norms[others])
    got = (made @ made.T) * np.outer(lengths, lengths)
    assert spread(got, want) > 0.999


def test_audits_measure_against_the_definition(built):
    audit = built.verify(queries=30, k=5, kernel="white_dot")
    assert audit.kernel == "white_dot" and audit.recall > 0.95 and audit.rank_correlation > 0.99
    assert json.loads((built.store.path / "audit.json").read_text())["kernel"] == "white_dot"


def test_audits_leave_out_removed_samples_and_stop_in_time(index):
    gone = index.explain(ids=np.arange(ROWS), kernel="white_dot", k=3).ordered_indices[:, 1]
    index.remove(np.unique(gone)[:60])
    audit = index.verify(queries=30, k=5, kernel="white_dot")
    assert audit.complete and audit.stages["index against store"]["recall@10"][0] == 1
    short = index.verify(queries=30, k=5, kernel="white_dot", max_seconds=1e-9)
    assert 0 < short.compared <= short.rows


def test_few_numbers_a_row_are_seen_by_the_audit(index):
    index.whiten(dims=3)
    assert index.verify(queries=30, k=5, kernel="white_dot").recall < 0.9


@pytest.mark.parametrize("options", [{"certify": True}, {"recall": 0.9}, {"eps": 1e-7}])
def test_what_has_no_meaning_is_refused(built, options):
    with pytest.raises(ValueError, match="no meaning"):
        built.explain(ids=[0], kernel="white_dot", **options)


def test_an_index_without_whitened_rows_says_how_to_make_them(tmp_path, job):
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.CountSketch(64))
    assert not index.is_whitened and not index.explain(ids=[0]).meta["params"]["whitened"]
    with pytest.raises(ValueError, match="gradindex whiten"):
        index.explain(ids=[0], kernel="white_dot")


@pytest.mark.parametrize(
    "options",
    [
        {"damping": 0.0},
        {"damping": np.nan},
        {"damping": "a"},
        {"damping": True},
        {"dims": 0},
        {"dims": True},
        {"sample": 0},
        {"bits": 16},
        {"bits": "4"},
    ],
)
def test_options_are_checked(index, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        index.whiten(**options)


def test_rows_of_a_metric_are_not_whitened(tmp_path, job):
    index = gradindex.build(job, tmp_path / "i", metric="cos-last")
    for call in (index.whiten, lambda: whiten(index.store.path)):
        with pytest.raises(ValueError, match="only gradients"):
            call()


def test_numbers_of_numpy_are_taken(index):
    white = index.whiten(damping=np.float32(0.5), dims=np.int64(8))
    assert (white.damping, white.store.header.dim) == (0.5, 8)


def test_fewer_rows_than_numbers_and_duplicates(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 64))
    rows = np.concatenate([rows] * 4)
    store = gradindex.Store.from_arrays(rows, np.arange(20), np.linalg.norm(rows, axis=1), tmp_path / "s")
    index = gradindex.index_store(store)
    white = index.whiten()
    values = np.linalg.eigvalsh(rows.T @ rows / 20)[::-1][:5]
    np.testing.assert_allclose(white.spectrum.values[:5] * white.spectrum.scale**2, values, rtol=1e-2)
    assert (white.spectrum.values[5:] < 1e-6 * white.spectrum.values[0]).all()  # the rounding of rows to float16


def test_one_enormous_row_is_reported(tmp_path, caplog):
    rows = np.random.default_rng(0).normal(size=(50, 8))
    norms = np.linalg.norm(rows, axis=1)
    norms[3] = 1e6
    index = gradindex.index_store(gradindex.Store.from_arrays(rows, np.arange(50), norms, tmp_path / "s"))
    with caplog.at_level("WARNING", logger="gradindex"):
        white = index.whiten()
    assert white.spectrum.largest_share > 0.99 and "100 % of the second moment" in caplog.text


def test_zero_rows_are_refused(tmp_path):
    index = gradindex.index_store(
        gradindex.Store.from_arrays(np.zeros((4, 8)), np.arange(4), np.zeros(4), tmp_path / "s")
    )
    with pytest.raises(ValueError, match="All 4 rows are zero"):
        index.whiten()


def test_tiny_and_huge_norms(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 8))
    for name, factor in (("tiny", 1e-30), ("huge", 1e30)):
        store = gradindex.Store.from_arrays(rows, np.arange(40), np.linalg.norm(rows, axis=1) * factor, tmp_path / name)
        white = gradindex.index_store(store).whiten()
        assert np.isfinite(white.store.norms).all() and white.store.norms.max() < 100


@pytest.fixture(scope="module")
def along_training():
    """A job with three states of a model, the last of which is the model's own."""
    job = digits_job()
    states = []
    for place in range(3):
        torch.manual_seed(place)
        state = {
            name: value + (2 - place) * 0.1 * torch.randn_like(value) for name, value in job.model.state_dict().items()
        }
        states.append((state, 0.1 * (place + 1)))
    return replace(job, checkpoints=states), states


def test_every_checkpoint_is_whitened_by_its_own_moment(tmp_path, along_training):
    job, states = along_training
    sketch = gradindex.Landmark(landmarks=ROWS, dims=ROWS, per_checkpoint=True)
    index = gradindex.build(job, tmp_path / "i", sketch=sketch)
    index.whiten(dims=3 * ROWS)
    dampings = index.white.dampings
    assert len(dampings) == 3 and len(set(dampings)) == 3
    queries, want = np.arange(6), 0.0
    for (state, rate), damping in zip(states, dampings, strict=True):
        one = digits_job()
        one.model.load_state_dict(state)
        want = want + by_hand(one, damping / rate, queries)  # √η on both sides, and η in the moment: they cancel
    got = index.scores(ids=queries, kernel="white_dot")
    assert spread(got, want) > 0.999
    again = gradindex.load(index.store.path, job)
    np.testing.assert_allclose(again.scores(ids=queries, kernel="white_dot"), got, rtol=1e-3, atol=1e-3 * got.max())


def test_rows_of_checkpoints_side_by_side_bound_the_cosine(tmp_path, along_training):
    job, _ = along_training
    sketch = gradindex.Landmark(landmarks=64, dims=16, per_checkpoint=True)
    index = gradindex.build(job, tmp_path / "i", sketch=sketch)
    gradients = exact_gradients(job, np.arange(ROWS)).astype(np.float64)
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    rows = index.store.gather(np.arange(ROWS)).astype(np.float64)
    assert rows.shape[1] == 3 * 16 + 1
    left = np.abs(gradients @ gradients.T - rows[:, :-1] @ rows[:, :-1].T)
    assert (left <= np.outer(rows[:, -1], rows[:, -1]) + 2e-3).all()
    found = index.explain(ids=[3], k=4, certify=True)
    assert found.proved.all()
    np.testing.assert_array_equal(found.ordered_indices[0], np.argsort(-(gradients @ gradients[3]))[:4])


def test_a_residual_for_every_checkpoint_is_refused():
    with pytest.raises(ValueError, match="per_checkpoint"):
        gradindex.Landmark(residual=16, per_checkpoint=True)
