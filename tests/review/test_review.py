"""A review finds what was planted, and says what it leaves out."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

import gradindex
from gradindex.ann import vectors
from gradindex.influence import label_disagreement
from gradindex.report import review_page
from gradindex.review import Kind, combine, distances, evidence, out_of_sample, planting, review, votes
from gradindex.review.making import _opponents
from gradindex.review.making import review as from_index
from tests.jobs import digits
from tests.review.kit import COPIES, ROWS, STRANGER, WRONG, samples, targets_job, wrong_job
from tests.serve.jobs import keras_job, texts_job, tokens_job
from tests.test_report import EVIL, read

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    x, *_ = samples()
    job = wrong_job(render=lambda i: x[i].reshape(8, 8), class_names=[EVIL, *"123456789"])
    return gradindex.build(job, tmp_path_factory.mktemp("review") / "index")


@pytest.fixture(scope="module")
def found(index):
    return review(index)


def test_planted_labels_come_first_with_what_they_were(found):
    _, y, wrong, true = samples()
    lines = found.of("label")
    first = [one.id for one in lines[:WRONG]]
    assert wrong[first].mean() >= 0.9
    assert average_precision_score(wrong, found.label_scores) > 0.95
    planted = [one for one in lines if wrong[one.id]]
    assert np.mean([one.proposed == true[one.id] for one in planted]) > 0.9
    for one in lines:
        assert one.label == y[one.id] and one.proposed != one.label
        assert one.neighbour_labels == tuple(y[list(one.neighbours)]) and one.id not in one.neighbours
        assert found.label_scores[one.id] == one.score


def test_the_score_is_ahead_of_the_loss(index, found):
    *_, wrong, _ = samples()
    by_loss = average_precision_score(wrong, index.store.columns["loss"])
    assert average_precision_score(wrong, found.label_scores) > by_loss + 0.02


def test_the_expected_precision_is_near_the_true_one(found):
    *_, wrong, _ = samples()
    lines = found.of("label")
    for depth in (10, 20, WRONG):
        true = wrong[[one.id for one in lines[:depth]]].mean()
        assert abs(lines[depth - 1].precision - true) < 0.25
    assert 0.5 * WRONG / ROWS < found.about["label_errors"] < 2 * WRONG / ROWS


def test_near_duplicates_and_strangers(found):
    pairs = [tuple(sorted((one.id, *one.neighbours))) for one in found.of("duplicate")]
    assert set(COPIES.items()) <= set(pairs[:6])
    assert len(set(pairs)) == len(pairs)
    assert found.of("outlier")[0].id == STRANGER
    assert all(one.score >= distances.FARTHER for one in found.of("outlier"))


def test_opponents_are_counted_as_the_index_finds_them(index, found):
    _, y, *_ = samples()
    predictions = index.store.columns["prediction"]
    right = np.flatnonzero(predictions == y)
    rows = index.store.gather(right)
    cosines, ids = index.search(-rows, 11)
    hits = np.where((ids != right[:, None]) & (cosines > 0), ids, -1)
    hits = np.array([[*line[line != own][:10]] for line, own in zip(hits, right, strict=True)])
    counts = np.bincount(hits[hits >= 0], minlength=ROWS)
    for one in found.of("opponent")[:10]:
        assert counts[one.id] == one.score
    assert found.of("opponent")[0].score == counts.max()


def test_only_what_opposes_correct_predictions_counts(index):
    seen = evidence.Evidence(index)
    places = np.full((ROWS, 1), -1)
    cosines = np.full((ROWS, 1), -np.inf)
    places[[1, 2, 3, 4], 0], cosines[[1, 2, 3, 4], 0] = 7, [0.5, 0.6, -0.1, 0.9]
    seen.opponents = evidence.Near(cosines, places)
    seen.predictions = index.store.columns["label"].copy()
    seen.predictions[4] += 1  # predicted wrong, and the cosine of 3 is no opposition
    (one,) = _opponents(seen, 5)
    assert (one.id, one.score, one.neighbours) == (7, 2, (2, 1))


def test_each_pair_is_there_once():
    logs = np.linspace(-2, 0, 40)
    cosines = np.stack([1 - np.exp(logs), np.zeros(40)], axis=1)
    places = np.stack([np.arange(40) ^ 1, np.full(40, -1)], axis=1)
    cosines[[6, 7], 0] = 1 - 1e-6
    near = evidence.Near(cosines, places)
    pairs, scores, fence = distances.pairs(near, near)
    assert pairs.tolist() == [[6, 7]] and scores[0] > distances.NEARER
    farther = evidence.Near(cosines.clip(max=fence - 1e-3), places)
    assert distances.pairs(farther, farther)[0].size == 0


@pytest.mark.parametrize(("second", "named"), [(6.0, True), (4.0, False)])
def test_beyond_the_inner_fence_a_pair_is_alike_if_the_next_is_five_times_as_far(second, named):
    logs = np.linspace(-2, 0, 40)  # the quartiles −1.5 and −.5
    usual = evidence.Near(1 - np.exp(logs)[:, None], np.arange(40)[:, None] ^ 1)
    nearest = np.exp(-1.5 - 1.7)
    near = evidence.Near(1 - np.array([[nearest, second * nearest]]), np.array([[7, 8]]))
    assert 1.5 < distances.nearness(near, usual)[0][0, 0] < 3
    assert distances.alike(near, usual).tolist() == [[named, False]]
    assert not distances.alike(evidence.Near(near.cosines[:, :1], near.places[:, :1]), usual).any()


def test_of_a_pair_that_is_seen_from_both_sides_the_nearer_one_counts():
    logs = np.linspace(-2, 0, 40)
    places = np.arange(40)[:, None] ^ 1
    usual = evidence.Near(1 - np.exp(logs)[:, None], places)
    cosines = usual.cosines.copy()
    cosines[6], cosines[7] = 1 - 1e-5, 1 - 1e-6
    pairs, scores, _ = distances.pairs(evidence.Near(cosines, places), usual)
    expected, _ = distances.nearness(evidence.Near(cosines, places), usual)
    assert pairs.tolist() == [[6, 7]] and scores.tolist() == [expected[7, 0]] and expected[7, 0] > expected[6, 0]


def test_confused_classes_are_symmetric_and_sorted(found):
    lines = found.of("confusion")
    assert lines and all(one.label < one.prediction and one.id is None for one in lines)
    assert [one.score for one in lines] == sorted((one.score for one in lines), reverse=True)
    for one in lines[:5]:
        assert set(one.neighbour_labels) <= {one.label, one.prediction}


def test_the_signs_are_those_of_the_index(index):
    seen = evidence.Evidence(index)
    assert np.array_equal(seen.signs["opponents"], label_disagreement(index))
    assert np.array_equal(seen.signs["loss"], index.store.columns["loss"])
    assert set(seen.signs) == set(combine.WEIGHTS["hidden and inputs"])


def test_removed_samples_are_left_alone(tmp_path):
    built = gradindex.build(wrong_job(), tmp_path / "index")
    gone = [one.id for one in review(built, top=5).of("label")]
    built.remove(gone)
    again = review(built)
    assert len(again.ids) == ROWS - len(gone) and not np.isin(gone, again.ids).any()
    for one in again.findings:
        assert one.id not in gone and not set(one.neighbours) & set(gone)


def test_the_same_seed_gives_the_same_review(index, found):
    assert json.dumps(review(index).to_json()) == json.dumps(found.to_json())


def test_tables(found, tmp_path):
    found.save(tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.to_pylist() == found.to_arrow().to_pylist()
    assert table["decision"].null_count == table["new_label"].null_count == len(found)
    assert json.loads(table.schema.metadata[b"gradindex.review"])["samples"] == ROWS
    found.save(tmp_path / "r.csv")
    lines = pc.read_csv(tmp_path / "r.csv").to_pylist()
    assert [line["id"] for line in lines] == [one.id for one in found.findings]
    assert lines[0]["neighbours"] == " ".join(map(str, found.findings[0].neighbours))
    with pytest.raises(ValueError, match=r"written as .csv, .parquet or .html, got 'r.txt'"):
        found.save(tmp_path / "r.txt")


def test_the_page_shows_every_line_and_runs_nothing(index, found):
    page = review_page(index, found)
    reader = read(page)
    assert reader.addresses == {"data:image/png;base64"} and not reader.handlers
    assert not reader.tags & {"script", "link", "iframe", "object", "form"}
    assert "<script" not in page
    words = "".join(reader.texts)
    assert "<script>alert(1)</script>" in words
    for one in found.findings:
        assert one.id is None or f"Sample {one.id}" in words
    assert f"{found.of('label')[-1].precision:.0%}" in words


def test_regression_has_duplicates_and_outliers_alone(tmp_path):
    found = review(gradindex.build(targets_job(), tmp_path / "index"))
    assert {one.kind for one in found.findings} <= {Kind.DUPLICATE, Kind.OUTLIER}
    assert set(COPIES.items()) <= {tuple(sorted((one.id, *one.neighbours))) for one in found.of("duplicate")}
    assert found.label_scores is None
    (said,) = found.left_out
    assert said.startswith("The job's task is regression: wrong labels") and "duplicates and outliers are not" in said
    review_page(gradindex.load(tmp_path / "index", targets_job()), found)


def test_keras(tmp_path):
    built = gradindex.build(keras_job(), tmp_path / "index")
    found = review(built)
    _, y = digits()
    assert {one.kind for one in found.findings} >= {Kind.LABEL, Kind.OPPONENT, Kind.CONFUSION}
    assert all(one.label == y[one.id] for one in found.of("label")) and not found.left_out


def test_texts_of_several_lengths_say_what_is_left_out(tmp_path):
    hidden = review(gradindex.build(tokens_job(), tmp_path / "tokens"))
    assert hidden.of("label") and hidden.of("label")[0].precision is not None
    assert "Inputs of different shapes" in hidden.left_out[0]
    nothing = review(gradindex.build(texts_job(), tmp_path / "texts"))
    assert nothing.of("label")[0].precision is None and nothing.about["label_errors"] is None
    assert len(nothing.left_out) == 2 and not nothing.of("duplicate")


def test_rows_of_a_metric_are_no_gradients(tmp_path):
    found = review(gradindex.build(wrong_job(), tmp_path / "index", metric="cos-last"))
    assert not found.of("opponent") and found.of("label")
    assert "Rows of a metric are no gradients" in found.left_out[0]


def test_wrong_arguments(index, tmp_path):
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        from_index(index, top=0)
    with pytest.raises(ValueError, match="k is 501, but there are only 500"):
        from_index(index, k=501)
    with pytest.raises(ValueError, match="This needs the model and the data"):
        from_index(gradindex.load(index.store.path))


def test_the_weights_are_those_that_were_fitted():
    saved = json.loads((ROOT / "benchmarks" / "results" / "review_weights.json").read_text())["results"]["weights"]
    assert saved == combine.WEIGHTS


def test_the_score_depends_on_ranks_alone():
    random = np.random.default_rng(0)
    signs = {name: random.normal(size=50) for name in combine.WEIGHTS["hidden and inputs"]}
    expected = combine.score(signs)
    assert np.array_equal(combine.score({name: np.exp(values) for name, values in signs.items()}), expected)
    highest = {name: np.arange(50.0) for name in signs}
    assert np.allclose(combine.score(highest), (np.arange(50) + 0.5) / 50)
    one = {"loss": signs["loss"]}
    assert np.array_equal(np.argsort(combine.score(one)), np.argsort(signs["loss"]))
    with pytest.raises(ValueError, match="None of the signs"):
        combine.score({"self-influence": signs["loss"]})


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_known_share_of_wrong_labels_is_found(share):
    random = np.random.default_rng(0)
    n = 20_000
    planted, wrong = random.random(n) < 0.1, random.random(n) < share
    looks = random.normal(np.where(planted | wrong, 3.0, 0.0))
    chance, found = planting.wrong_by(looks, planted)
    assert found == pytest.approx(share, rel=0.1)
    left = ~planted
    for threshold in (1.0, 2.0, 3.0):
        high = left & (looks > threshold)
        assert chance[high].mean() == pytest.approx(wrong[high].mean(), abs=0.05)


def test_votes():
    places = np.array([[1, 2], [0, -1], [-1, -1]])
    found = votes.shares(places, np.array([0, 1, 1]), 3)
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert votes.lead(found, np.array([0, 0, 2])).tolist() == [1, -1, 0]


@pytest.mark.parametrize("most", [50_000, 100])
def test_the_nearest_others_are_those_of_all_pairs(most, monkeypatch):
    monkeypatch.setattr(vectors, "_ALL_PAIRS", most)
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    scores, places = vectors.nearest_others(rows, 5)
    products = rows @ rows.T
    np.fill_diagonal(products, -np.inf)
    expected = np.argsort(-products, axis=1)[:, :5]
    same = (places[:, :, None] == expected[:, None]).any(axis=2).mean()
    assert same == 1 if most > 300 else same > 0.6
    assert np.allclose(scores, np.take_along_axis(products, places, 1), rtol=1e-4)
    assert vectors.nearest_others(rows[:3], 5)[1].shape == (3, 2)


def test_no_model_sees_the_sample_that_it_judges():
    x, y, *_ = samples()
    before = out_of_sample.probabilities(x, y, 10, 0)
    assert np.allclose(before.sum(axis=1), 1) and (before.argmax(axis=1) == y).mean() > 0.8
    changed = y.copy()
    changed[7] = (y[7] + 1) % 10
    assert np.array_equal(out_of_sample.probabilities(x, changed, 10, 0)[7], before[7])


def test_a_missing_package_says_what_to_type(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.kernel_approximation", None)
    with pytest.raises(ImportError, match=r"A review needs scikit-learn.*pip install 'gradindex\[review\]'"):
        review(index)


def test_of_many_samples_some_are_learned_from(monkeypatch):
    x, y, *_ = samples()
    monkeypatch.setattr(out_of_sample, "_FITTED", 100)
    found = out_of_sample.probabilities(x, y, 10, 0)
    right = (found.argmax(axis=1) == y).mean()
    monkeypatch.undo()
    every = (out_of_sample.probabilities(x, y, 10, 0).argmax(axis=1) == y).mean()
    assert 0.5 < right < every and np.allclose(found.sum(axis=1), 1)


def test_a_class_of_one_sample_is_no_obstacle():
    x = np.random.default_rng(0).normal(size=(12, 3))
    found = out_of_sample.probabilities(x, np.array([0] * 11 + [1]), 2, 0)
    assert np.isfinite(found).all() and np.allclose(found.sum(axis=1), 1)
