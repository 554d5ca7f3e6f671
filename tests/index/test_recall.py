"""`explain(recall=…)`: calibrated margins, what they promise, and what is refused."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import gradindex
from gradindex import kernels
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.kernels import Kernel
from gradindex.search import adaptive, bounds, calibrate, calibration, cascade, checking, question
from gradindex.search.calibration import About, Calibration
from tests.jobs import trained

ROWS, K = 500, 5
KERNELS = [kernel.value for kernel in Kernel]


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(x))
    return (x[order] / 16).astype(np.float32), y[order]


def job(**options):
    x, y = digits()
    return gradindex.Job(trained(), nn.CrossEntropyLoss(), (x[:ROWS], y[:ROWS]), **options)


@pytest.fixture(scope="module")
def held_out():
    x, y = digits()
    return x[ROWS:], y[ROWS:]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A sketch of few numbers, so that estimates are poor and checks are needed."""
    return gradindex.build(job(), tmp_path_factory.mktemp("recall") / "digits", sketch=gradindex.CountSketch(48))


@pytest.fixture(scope="module")
def calibrated(index, held_out):
    """Calibrated on the first 500 queries that are not in the training set; the others are for tests."""
    x, y = held_out
    return {name: index.calibrate(x[:500], y[:500], k=K, kernel=name) for name in KERNELS}


@pytest.fixture(scope="module")
def truth(index, held_out):
    """Exact kernel values of the other queries with all training samples, from the plain loop."""
    x, y = held_out[0][500:], held_out[1][500:]
    rows = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    every = gradindex.Job(trained(), nn.CrossEntropyLoss(), (x, y))
    queries = gradindex.exact_gradients(every, np.arange(len(x))).astype(np.float64)
    norms = [np.linalg.norm(part, axis=1) for part in (queries, rows)]
    return {name: kernels.values(Kernel(name), queries @ rows.T, *norms) for name in KERNELS}, norms


def recalls(values, scores, norms, kernel):
    """Recall of each answer whose scores are exact; values so near to the k-th that rounding decides count as it."""
    weights = np.array([kernels.weights(Kernel(kernel), norm, np.array([norm]))[0] for norm in norms[0]])
    kth = -np.sort(-values, axis=1)[:, scores.shape[1] - 1]
    return (scores >= (kth - 1e-5 * weights)[:, None]).mean(axis=1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_answers_hold_what_was_wanted_with_fewer_checks(index, calibrated, held_out, truth, kernel, wanted):
    x, y = held_out[0][500:], held_out[1][500:]
    values, norms = truth
    result = index.explain(x, y, k=K, kernel=kernel, recall=wanted)
    sides = [
        recalls(values[kernel], result.scores, norms, kernel),
        recalls(-values[kernel], -result.opponent_scores, norms, kernel),
    ]
    for side, expected in zip(sides, (result.expected_recall, result.opponent_expected_recall), strict=True):
        assert side.mean() >= wanted - 3 * side.std() / np.sqrt(len(side))
        assert (expected >= wanted).all()
        assert side.mean() >= expected.mean() - 3 * side.std() / np.sqrt(len(side))
    assert result.exact.all() and result.opponent_exact.all()
    assert (result.checked < 400).mean() > 0.5  # of 500 rows all may be checked
    about = result.meta["params"]["recall"]
    assert about == {"wanted": wanted, "calibrated": True, "queries": 500, "note": ""}


def test_more_recall_takes_more_checks(index, calibrated, held_out):
    x, y = held_out[0][500:600], held_out[1][500:600]
    counts = [index.explain(x, y, k=K, recall=recall).checked.mean() for recall in (0.5, 0.9, 0.99)]
    assert 2 * K <= counts[0] < counts[1] < counts[2]


def test_one_query_alone_is_answered_as_among_others(index, calibrated, held_out):
    x, y = held_out[0][500:504], held_out[1][500:504]
    together = index.explain(x, y, k=K, recall=0.9)
    for line in range(4):
        alone = index.explain(x[line : line + 1], y[line : line + 1], k=K, recall=0.9)
        np.testing.assert_array_equal(alone.ordered_indices[0], together.ordered_indices[line])
        np.testing.assert_array_equal(alone.opponent_indices[0], together.opponent_indices[line])
        assert alone.checked[0] == together.checked[line]
        np.testing.assert_allclose(alone.scores[0], together.scores[line], atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_with_an_infinite_margin_give_the_answers_of_all_candidates(index, held_out, truth, kernel, monkeypatch):
    x, y = held_out[0][500:510], held_out[1][500:510]
    wanted = index.explain(x, y, k=K, kernel=kernel, rerank=60, candidates=60)
    endless = checking.Checking(calibration.unlimited(K, 60), None, {})
    monkeypatch.setattr("gradindex.index.explaining.checking", lambda *args, **options: endless)
    found = index.explain(x, y, k=K, kernel=kernel)
    if kernel == "grad_cos":
        np.testing.assert_array_equal(found.ordered_indices, wanted.ordered_indices)
        np.testing.assert_array_equal(found.opponent_indices, wanted.opponent_indices)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
        np.testing.assert_array_equal(found.checked, wanted.checked)
    else:  # weights alone rule some candidates out, and what is checked for one side's sake may serve the other
        values = truth[0][kernel][:10]
        asked = question.ask(ROWS, Kernel(kernel), gradindex.SearchOptions(k=K, rerank=60, candidates=60))
        sketches, norms = index.embedded(index.labelled(x, y))
        for sign, scores, most in (
            (1, found.scores, wanted.scores),
            (-1, -found.opponent_scores, -wanted.opponent_scores),
        ):
            _, rows, _ = cascade.candidates(index, sign * sketches, norms, asked)
            own = -np.sort(-sign * np.take_along_axis(values, rows, 1), axis=1)[:, :K]
            tolerance = 1e-5 * np.abs(values).max(axis=1, keepdims=True)
            assert (scores >= own - tolerance).all() and (scores <= most + tolerance).all()
        assert (found.checked < wanted.checked).any()
    assert np.isnan(found.expected_recall).all()


def made_up(rng, n, points=1, k=10):
    """A calibration whose losses fall with the margin, at a pace that depends on the difficulty."""
    difficulty = rng.uniform(size=(points, 2, n))
    margins = np.broadcast_to(np.r_[np.linspace(0, 3, 63), np.inf], (points, 2, 64)).copy()
    needed = rng.exponential(size=(points, 2, n, k)) * (0.1 + difficulty[..., None])
    missed = (needed[..., None, :] > margins[:, :, None, :, None]).sum(axis=-1)
    about = About(
        kernel="grad_cos",
        k=k,
        candidates=400,
        queries=n,
        labelled=True,
        points=tuple(f"nprobe={2**i}" for i in range(points)),
        seconds=tuple(1e-3 * 2**i for i in range(points)),
        seconds_per_check=1e-4,
        file="x.faiss",
        rows=1000,
        removed=0,
    )
    return Calibration(about, margins, missed, k + 64 - missed, difficulty, np.zeros((2, 5, 101)))


def loss(found, promise, side):
    """What the queries of another calibration lose on average with a promise."""
    point = found.about.points.index(promise.point)
    margins, _, _ = promise.sides[side].of(found.difficulty[point, side])
    place = np.searchsorted(found.margins[point, side], margins)
    return found.missed[point, side, np.arange(found.about.queries), place] / found.about.k


@pytest.mark.parametrize(("n", "wanted", "points"), [(10, 0.9, 1), (19, 0.9, 1), (400, 0.9, 1), (60, 0.9, 3)])
def test_the_promise_holds_on_average_over_calibrations(n, wanted, points):
    """With 10 queries the `+ 1` of conformal risk control decides: without it the mean is 3 % short."""
    rng = np.random.default_rng(11)
    losses = []
    for _ in range(400 if n < 100 else 40):
        promise = made_up(rng, n, points).promise(wanted)
        losses.append(loss(made_up(rng, 50, points), promise, 0).mean())
    losses = np.array(losses)
    assert losses.mean() <= 1 - wanted + 3 * losses.std() / np.sqrt(len(losses))


def test_groups_have_margins_of_their_own_and_each_holds():
    rng = np.random.default_rng(12)
    promise = made_up(rng, 2000).promise(0.9)
    margins = promise.proponents.margins
    assert len(margins) == 5
    assert margins[0] < margins[-1] / 2  # what is easy takes less
    fresh = made_up(rng, 4000)
    lost, group = loss(fresh, promise, 0), np.searchsorted(promise.proponents.edges, fresh.difficulty[0, 0])
    for number in range(5):
        some = lost[group == number]
        assert some.mean() <= 0.1 + 4 * some.std() / np.sqrt(len(some)) + 0.01  # one calibration's own luck
    assert len(made_up(rng, 150).promise(0.9).proponents.margins) < 5


def test_real_losses_keep_the_promise_over_splits(calibrated):
    """Half of real queries calibrate, the other half are asked: 300 splits, on average."""
    found = calibrated["grad_cos"]
    rng, lost = np.random.default_rng(13), []
    for _ in range(300):
        order = rng.permutation(500)
        halves = [
            dataclasses.replace(
                found,
                about=dataclasses.replace(found.about, queries=250),
                missed=found.missed[:, :, part],
                checks=found.checks[:, :, part],
                difficulty=found.difficulty[:, :, part],
            )
            for part in (order[:250], order[250:])
        ]
        lost.append(loss(halves[1], halves[0].promise(0.95), 0).mean())
    assert np.mean(lost) <= 0.05 + 3 * np.std(lost) / np.sqrt(len(lost))
    assert np.mean(lost) > 0.01  # else it would check far more than it has to


def test_the_operating_point_is_chosen_by_cost_and_the_widest_where_none_serves():
    rng = np.random.default_rng(14)
    found = made_up(rng, 500, points=3)
    assert found.promise(0.9).point == "nprobe=1"
    short = found.missed.copy()
    short[0] = np.maximum(short[0], 2)  # the fastest point misses two in ten, whatever the margin
    assert dataclasses.replace(found, missed=short).promise(0.9).point == "nprobe=2"
    short[1] = np.maximum(short[1], 2)
    wide = dataclasses.replace(found, missed=short).promise(0.9)
    assert wide.point == "nprobe=4"
    short[2, :, :, :-1] = np.maximum(short[2, :, :, :-1], 2)
    assert set(dataclasses.replace(found, missed=short).promise(0.9).proponents.margins) == {np.inf}


def test_hard_queries_that_a_fast_point_does_not_serve_do_not_cost_a_check_of_all_candidates():
    """FAISS finds enough on average, but not for the hardest fifth: more lists are looked at, with margins as ever."""
    rng = np.random.default_rng(15)
    found = made_up(rng, 500, points=3)
    hard = found.difficulty[0, 0] > 0.85
    short = found.missed.copy()
    short[0, 0, hard] = np.maximum(short[0, 0, hard], 2)
    promise = dataclasses.replace(found, missed=short).promise(0.9)
    assert promise.point == "nprobe=2"
    assert np.isfinite(promise.proponents.margins).all()
    # Those that choose the point, the first fifth, do not show it.
    short = found.missed.copy()
    hard[:100] = False
    short[0, 0, hard] = np.maximum(short[0, 0, hard], 2)
    promise = dataclasses.replace(found, missed=short).promise(0.9)
    assert promise.point == "nprobe=4"
    assert np.isfinite(promise.proponents.margins).all()


def test_what_cannot_be_certified_is_refused():
    found = made_up(np.random.default_rng(15), 50)
    with pytest.raises(ValueError, match="cannot be certified by 50 queries: it takes 99 or more"):
        found.promise(0.99)
    with pytest.raises(ValueError, match=r"below 1, got 1\.0: no number of queries certifies more"):
        found.promise(1.0)
    lost = dataclasses.replace(found, missed=np.maximum(found.missed, 3))
    with pytest.raises(ValueError, match=r"more than this index can promise: with all 400 candidates"):
        lost.promise(0.9)
    assert "cannot be certified" in str(found) and "recall=0.9: " in str(found)


def test_least_queries():
    assert [calibration.least_queries(recall) for recall in (0.5, 0.9, 0.95, 0.99, 0.999)] == [1, 9, 19, 99, 999]


@pytest.fixture
def copied(index, calibrated, tmp_path):
    shutil.copytree(index.store.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_it_is_kept_with_the_index(copied, calibrated, held_out):
    opened = gradindex.load(copied, job())
    found = opened.calibration(K, "grad_dot")
    assert found.about == calibrated["grad_dot"].about
    np.testing.assert_array_equal(found.missed, calibrated["grad_dot"].missed)
    np.testing.assert_array_equal(found.margins, calibrated["grad_dot"].margins)
    assert opened.calibration(K + 1) is None
    opened.check()
    again = opened.calibrate(held_out[0][:120], held_out[1][:120], k=K)
    assert opened.calibration(K).about.queries == again.about.queries == 120
    assert gradindex.load(copied).calibration(K).about.queries == 120
    opened.check()  # files of the one before are gone


@pytest.mark.parametrize("what", ["checks", "json"])
def test_a_damaged_file_is_refused_and_repaired_away(copied, held_out, what):
    assets = copied / "assets"
    path = assets / "recall.grad_cos.5.json" if what == "json" else next(assets.glob("recall.grad_cos.5.*.checks.npy"))
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(DamagedIndexError, match="damaged"):
        gradindex.load(copied, job()).explain(held_out[0][:1], k=K, recall=0.9)
    removed = gradindex.repair(copied).removed
    assert "recall.grad_cos.5.json" in removed
    opened = gradindex.load(copied, job())
    opened.check()
    assert opened.calibration(K) is None
    assert opened.calibration(K, "grad_dot") is not None


def test_that_of_another_store_is_refused(copied, tmp_path, held_out):
    gradindex.build(job(), tmp_path / "other", sketch=gradindex.CountSketch(48), seed=1)
    shutil.copytree(copied / "assets", tmp_path / "other" / "assets")
    with pytest.raises(DamagedIndexError, match="is not of this store"):
        gradindex.load(tmp_path / "other", job()).explain(held_out[0][:1], k=K, recall=0.9)


def test_an_addition_makes_it_void_and_a_removal_is_noted(copied, held_out):
    x, y = held_out
    opened = gradindex.load(copied, job())
    opened.remove([3, 4])
    result = opened.explain(x[600:602], y[600:602], k=K, recall=0.9)
    assert result.meta["params"]["recall"]["note"] == "2 samples were removed since the calibration"
    opened.add((x[:10], y[:10]))
    with pytest.raises(MismatchError, match=r"rows were added or left out, or it was built anew\. Calibrate again"):
        opened.explain(x[600:602], y[600:602], k=K, recall=0.9)
    opened.calibrate(x[10:120], y[10:120], k=K)
    assert opened.explain(x[600:602], y[600:602], k=K, recall=0.9).meta["params"]["recall"]["calibrated"]
    opened.compact()
    with pytest.raises(MismatchError, match="Calibrate again"):
        opened.calibration(K)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"where": {"label": [1, 2]}}, "a filter is another question"),
        ({"rerank": 0}, "rerank=0: nothing is checked"),
        ({"eps": 0.1}, "eps=0 alone"),
        ({"candidates": 100}, "calibrated for 400 candidates alone"),
        ({"certify": True, "max_checks": 5}, "a proof needs no calibration"),
    ],
)
def test_what_was_not_calibrated_is_asked_as_ever_and_said(index, calibrated, held_out, options, note):
    x, y = held_out[0][600:602], held_out[1][600:602]
    result = index.explain(x, y, k=K, recall=0.9, **options)
    assert note in result.meta["params"]["recall"]["note"]
    assert not result.meta["params"]["recall"]["calibrated"]
    plain = index.explain(x, y, k=K, **options)
    np.testing.assert_array_equal(result.ordered_indices, plain.ordered_indices)
    np.testing.assert_array_equal(result.checked, plain.checked)
    assert np.isnan(result.expected_recall[~result.proved]).all()


def test_a_question_of_which_nothing_is_promised_needs_no_certificate(index, calibrated, held_out):
    x, y = held_out
    with pytest.raises(ValueError, match="cannot be certified"):
        index.explain(x[600:602], y[600:602], k=K, recall=0.9999)
    found = index.explain(x[600:602], y[600:602], k=K, recall=0.9999, where={"label": [1, 2]})
    assert not found.meta["params"]["recall"]["calibrated"]
    with pytest.raises(ValueError, match="below 1"):
        index.explain(x[600:602], y[600:602], k=K, recall=1.0, where={"label": [1, 2]})


def test_queries_unlike_those_of_the_calibration_are_promised_nothing(index, calibrated, held_out):
    for given, note in (
        ({"ids": [3, 4]}, "the queries are training samples"),
        ({"x": held_out[0][600:602]}, "the queries have predicted labels"),
    ):
        result = index.explain(**given, k=K, recall=0.9)
        about = result.meta["params"]["recall"]
        assert note in about["note"] and not about["calibrated"]
        assert np.isnan(result.expected_recall).all() and result.exact.all()


def test_without_a_calibration_it_is_an_operating_point_and_says_so(index, calibrated, held_out):
    with pytest.raises(ValueError, match=r"not calibrated for k=7.*Index.calibrate.*index.tune"):
        index.explain(held_out[0][:1], k=7, recall=0.9)
    index.tune(queries=20)
    result = index.explain(held_out[0][:1], k=7, recall=0.9)
    assert "not calibrated for k=7" in result.meta["params"]["recall"]["note"]
    assert result.checked[0] > 50 and np.isnan(result.expected_recall).all()
    assert index.explain(held_out[0][:1], k=7).meta["params"]["recall"] is None


def test_training_samples_are_refused_or_warned_of(index, held_out):
    x, y = digits()
    with pytest.raises(ValueError, match="40 of 60 queries have the gradient of a training sample"):
        index.calibrate(x[460:520], y[460:520], k=3)
    with pytest.warns(UserWarning, match="10 of 60 queries"):
        index.calibrate(x[490:550], y[490:550], k=3)
    with pytest.raises(ValueError, match="takes 2 queries or more"):
        index.calibrate(held_out[0][:1], held_out[1][:1])
    with pytest.raises(ValueError, match="white_dot is an estimate by whitened rows"):
        index.calibrate(held_out[0][:9], held_out[1][:9], kernel="white_dot")


def test_proved_answers_are_expected_to_be_whole(index, calibrated, held_out):
    result = index.explain(held_out[0][:1], held_out[1][:1], k=K, certify=True, max_checks=ROWS)
    assert result.proved.all() and result.expected_recall.tolist() == [1.0]


def test_verify_measures_whether_it_holds(index, calibrated, held_out):
    x, y = held_out[0][500:700], held_out[1][500:700]
    audit = index.verify(k=K, x=x, y=y, recall=0.9)
    found = audit.coverage
    assert found.queries == 200 and found.wanted == 0.9 and found.holds
    assert set(found.by_class) == set("0123456789") and len(found.by_norm) == 4
    assert found.recall[0] == pytest.approx(audit.recall, abs=0.01)
    assert 0 < found.below < 0.5
    assert "recall where 0.9 was wanted" in str(audit) and "queries with less" in str(audit)
    assert json.loads(json.dumps(audit.to_json()))["coverage"]["wanted"] == 0.9
    assert index.verify(queries=5, k=K).coverage is None
    with pytest.raises(ValueError, match="measured on held-out queries"):
        index.verify(queries=5, k=K, recall=0.9)


def test_a_calibration_that_does_not_hold_is_seen(index, calibrated, held_out):
    """Of questions that are harder than those it was calibrated on: pictures of noise, labelled at random."""
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(150, 64)).astype(np.float32)
    audit = index.verify(k=K, x=x, y=rng.integers(0, 10, 150), recall=0.6)
    easy = index.verify(k=K, x=held_out[0][500:650], y=held_out[1][500:650], recall=0.6)
    assert audit.coverage.recall[0] < easy.coverage.recall[0]


def test_a_build_calibrates(tmp_path, held_out):
    queries = held_out[0][:60], held_out[1][:60]
    built = gradindex.build(job(), tmp_path / "built", calibrate=queries)
    assert built.calibration().about.queries == 60
    with pytest.raises(ValueError, match=r"calibrate takes \(x, y\)"):
        gradindex.BuildOptions(calibrate=held_out[0])


@pytest.mark.parametrize("residual", [0, 32])
def test_landmark_rows_stop_by_their_bound(tmp_path, held_out, residual):
    x, y = held_out
    sketch = gradindex.Landmark(landmarks=120, dims=40, residual=residual)
    index = gradindex.build(job(), tmp_path / "landmark", sketch=sketch)
    one = index.labelled(x[:6], y[:6])
    sketches, norms = index.embedded(one)
    every = bounds.cosine_bounds(index, sketches)
    asked = question.ask(ROWS, Kernel.COS, gradindex.SearchOptions(k=K, rerank=80))
    estimates, rows, _ = cascade.candidates(index, sketches, norms, asked)
    found = bounds.candidate_bounds(index, sketches, rows, estimates)
    wide = np.take_along_axis(every[0], rows, 1) + bounds.errors(index)[rows]
    assert (found >= wide - 1e-6).all() and (found <= wide + 1e-3).all()  # FAISS scales rows to unit norm again
    index.calibrate(x[:300], y[:300], k=K)
    result = index.explain(x[300:400], y[300:400], k=K, recall=0.98)
    proved = index.explain(x[300:400], y[300:400], k=K, certify=True)
    hits = (result.scores >= proved.scores[:, -1:] - 1e-5).mean(axis=1)
    assert hits.mean() >= 0.98 - 3 * hits.std() / 10
    assert np.median(result.checked) < np.median(proved.checked + proved.opponent_checked) / 1.5


def test_candidates_come_from_inverted_lists(tmp_path, held_out, monkeypatch):
    """What FAISS misses is lost, too: a wide promise takes more lists, where these cost more than a few checks."""
    x, y = held_out
    costs = lambda index, wanted, *_: np.append(1e-3 * np.arange(1, len(wanted) + 1), 1e-5)  # noqa: E731  (of no clock)
    monkeypatch.setattr(calibrate, "_seconds", costs)
    index = gradindex.build(job(), tmp_path / "lists", index="IVF32,Flat", sketch=gradindex.CountSketch(128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = index.calibrate(x[:500], y[:500], k=K)
    assert len(found.about.points) > 2
    few, many = found.promise(0.4), found.promise(0.97)
    places = [found.about.points.index(one.point) for one in (few, many)]
    assert places[0] < places[1]
    result = index.explain(x[500:], y[500:], k=K, recall=0.97)
    assert result.meta["params"]["point"] == {"nprobe": float(many.point.removeprefix("nprobe="))}
    exact = index.explain(x[500:], y[500:], k=K, certify=True, max_checks=ROWS)
    hits = (result.scores >= exact.scores[:, -1:] - 1e-5).mean(axis=1)
    assert hits.mean() >= 0.97 - 3 * hits.std() / np.sqrt(len(hits))


def test_a_keras_model(tmp_path, held_out):
    keras = pytest.importorskip("keras")
    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made = gradindex.Job(model, loss_fn, (x[:200], y[:200]))
    index = gradindex.build(made, tmp_path / "keras", sketch=gradindex.CountSketch(128))
    index.calibrate(x[200:320], y[200:320], k=K)
    result = index.explain(x[320:380], y[320:380], k=K, recall=0.9)
    exact = index.explain(x[320:380], y[320:380], k=K, rerank=200)
    hits = (result.scores >= exact.scores[:, -1:] - 1e-5).mean(axis=1)
    assert hits.mean() >= 0.9 - 3 * hits.std() / np.sqrt(60)
    assert result.checked.mean() < 0.7 * exact.checked.mean()


def test_the_margin_is_in_units_that_errors_have_everywhere(calibrated):
    """Estimates are off by less where cosines are large; the percentiles that are kept say how much."""
    errors = calibrated["grad_cos"].errors[0]
    spread = errors[:, 95] - errors[:, 5]
    assert errors.shape == (5, 101) and (np.diff(errors, axis=1) >= 0).all()
    assert spread[-1] < spread[0]


def test_difficulty_is_the_kth_estimate():
    z = np.array([[0.1, 0.9, 0.5, -np.inf], [2.0, 1.0, 3.0, 0.0]])
    np.testing.assert_array_equal(adaptive.difficulty(z, 2), [0.5, 2.0])


CALLS = []


class Counted(nn.Module):
    """Notes how many samples each forward pass is called with."""

    def __init__(self):
        super().__init__()
        self.inner = trained()

    def forward(self, x):
        CALLS.append(len(x))
        return self.inner(x)


def test_a_warm_query_takes_one_pass_of_its_own_and_one_for_each_block(tmp_path, held_out):
    x, y = held_out
    made = gradindex.Job(Counted(), nn.CrossEntropyLoss(), (digits()[0][:200], digits()[1][:200]))
    index = gradindex.build(made, tmp_path / "counted", sketch=gradindex.CountSketch(64))
    index.calibrate(x[:60], y[:60], k=K)
    for _ in range(3):
        index.explain(x[:1], y[:1], k=K, recall=0.9)
    made.engine.ways._cost = np.inf  # no comparison is due
    for given in ((x[70:71], y[70:71]), (x[70:71], None)):
        CALLS.clear()
        result = index.explain(*given, k=K, recall=0.9)
        blocks = [count for count in CALLS if count > 1]
        assert len(CALLS) - len(blocks) == (1 if given[1] is not None else 2)  # its label is a pass before
        assert sum(blocks) == result.checked[0]
        assert 1 <= len(blocks) <= 4
        prediction = trained()(torch.from_numpy(given[0])).argmax(1).numpy()
        np.testing.assert_array_equal(result.query_predictions, prediction)
