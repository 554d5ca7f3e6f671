"""Held-out samples that were trained on are found, and others are not."""

import json

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

import gradindex
from gradindex.cli.app import run
from gradindex.report import review_page
from gradindex.review import Kind, evidence, leaks, moved, read_decisions, review
from gradindex.review.kept import Kept, as_parquet
from tests.review.kit import ROWS, samples, targets_job, wrong_job
from tests.serve.jobs import texts_job, tokens_job
from tests.test_report import read

HELD, PLANTED = 400, 30


def pictured_job():
    x, *_ = samples()
    return wrong_job(render=lambda i: x[i].reshape(8, 8))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(pictured_job(), tmp_path_factory.mktemp("leaks") / "index")


def held_out(change=None):
    """Test samples (400, 64), the first 30 of which may be changed training samples; labels; which those are."""
    x, y = load_digits(return_X_y=True)
    x, y = (x[ROWS : ROWS + HELD] / 16).astype(np.float32), y[ROWS : ROWS + HELD].copy()
    train, labels, *_ = samples()
    chosen = np.random.default_rng(0).choice(400, PLANTED, replace=False)  # none of those that have planted copies
    if change is not None:
        x[:PLANTED], y[:PLANTED] = change(train[chosen]), labels[chosen]
    return x, y, chosen


def moved_by(down, right):
    def change(x):
        padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
        return padded[:, 1 - down : 9 - down, 1 - right : 9 - right].reshape(len(x), 64)

    return change


def noisy(x):
    return (x + np.random.default_rng(1).normal(0, 0.01, x.shape)).astype(np.float32)


CHANGES = {
    "exact": lambda x: x,
    "noisy": noisy,
    "down": moved_by(1, 0),
    "left": moved_by(0, -1),
    "both": moved_by(-1, 1),
}


@pytest.mark.parametrize("how", CHANGES)
def test_planted_leaks_are_found_and_nothing_else(index, how):
    x, y, chosen = held_out(CHANGES[how])
    found = review(index, held_out=x, held_out_labels=y)
    lines = found.of("leak")
    named = {one.held_out for one in lines}
    right = {one.held_out for one in lines if one.held_out < PLANTED and chosen[one.held_out] in one.neighbours}
    assert len(right) / PLANTED >= (0.95 if how in ("exact", "noisy") else 0.8), "recall"
    assert len(right) / len(named) >= 0.95, "precision"
    assert len(named) == len(lines) == found.about["leaks"] and found.about["held_out"] == HELD
    assert [one.score for one in lines] == sorted((one.score for one in lines), reverse=True)
    labels = samples()[1]
    for one in lines:
        assert one.id is None and one.prediction is None and one.proposed is None and one.score >= 1.5
        assert one.label == y[one.held_out]
        assert one.neighbour_labels == tuple(labels[list(one.neighbours)])


def test_without_planted_leaks_there_are_none(index):
    found = review(index, held_out=held_out()[0])
    assert not found.of("leak") and (found.about["leaks"], found.about["held_out"]) == (0, HELD)
    plain = review(index)
    assert not plain.of("leak") and "leaks" not in plain.about
    assert json.dumps(plain.to_json()["findings"]) == json.dumps(found.to_json()["findings"])
    assert "Leaks: 0 of 400 held-out samples" in "".join(read(review_page(index, found)).texts)


def test_a_move_is_looked_for_where_pictures_are_known(tmp_path):
    x, _, chosen = held_out(moved_by(1, 0))
    flat = gradindex.build(wrong_job(), tmp_path / "flat")
    assert not review(flat, held_out=x).of("leak")
    exact = review(flat, held_out=held_out(CHANGES["exact"])[0]).of("leak")
    assert [one.neighbours[0] for one in sorted(exact, key=lambda one: one.held_out)] == chosen.tolist()


@pytest.mark.parametrize(
    ("shape", "wanted"), [((8, 8), (8, 8)), ((1, 8, 8), (8, 8)), ((3, 8, 9), (8, 9, 3)), ((8, 9, 3), (8, 9, 3))]
)
def test_pixels_of_every_form_of_picture(shape, wanted):
    class Seen:
        vectors = ("inputs",)

        class index:
            class example:
                x = np.zeros((2, *shape))

    columns = moved.pixels(Seen)
    assert columns.shape == wanted and sorted(columns.ravel()) == list(range(int(np.prod(shape))))
    if shape[0] == 3:
        assert columns[0, 1].tolist() == [1, 73, 145]
    Seen.index.example.x = np.zeros((2, 5, 8))
    assert moved.pixels(Seen) is None
    Seen.index.example.x = {"a": np.zeros((2, 8, 8))}
    assert moved.pixels(Seen) is None


def test_a_sample_that_several_windows_find_counts_once():
    cosines = np.array([[0.9, 0.5, 0.7, 0.8, 0.6, -np.inf]])
    found, named = moved._each_once(cosines, np.array([[4, 2, 4, 4, 3, -1]]), 4)
    assert named.tolist() == [[4, 3, 2, -1]] and found.tolist() == [[0.9, 0.6, 0.5, -np.inf]]


def test_usual_distances_leave_out_the_sample_itself(index):
    seen = evidence.Evidence(index)
    usual = moved.Moved.of(seen).usual
    assert usual.places.shape == (ROWS, 1) and not (usual.places[:, 0] == np.arange(ROWS)).any()
    assert (usual.cosines[:, 0] >= seen.near["inputs"].cosines[:, 0]).mean() > 0.5  # a move makes others nearer
    assert np.median(usual.cosines) < 0.999


def test_removed_samples_leak_no_more(tmp_path):
    x, _, chosen = held_out(CHANGES["exact"])
    built = gradindex.build(wrong_job(), tmp_path / "index")
    built.remove(chosen[:10])
    found = review(built, held_out=x).of("leak")
    assert sorted(one.held_out for one in found) == list(range(10, PLANTED))
    assert all(one.neighbours[0] == chosen[one.held_out] for one in found)


def test_top_limits_the_lines_and_not_the_count(index):
    found = review(index, top=4, held_out=held_out(CHANGES["exact"])[0])
    assert len(found.of("leak")) == 4 and found.about["leaks"] == PLANTED
    assert all(one.label is None for one in found.of("leak"))


def test_files_name_the_held_out_row_apart_from_ids(index, tmp_path):
    x, y, chosen = held_out(CHANGES["exact"])
    found = review(index, held_out=x, held_out_labels=y)
    found.save(tmp_path / "r.parquet")
    for line in pq.read_table(tmp_path / "r.parquet").to_pylist():
        assert (line["held_out"] is None) == (line["kind"] != "leak")
        if line["kind"] == "leak":
            assert line["id"] is None and line["neighbours"][0] == chosen[line["held_out"]]
    found.save(tmp_path / "r.csv")
    text = (tmp_path / "r.csv").read_text().splitlines()
    assert sum(line.startswith('"leak"') for line in text) == PLANTED
    assert "held_out" in pc.read_csv(tmp_path / "r.csv").column_names
    at = next(number for number, line in enumerate(text) if line.startswith('"leak"'))
    decided = text[at].rsplit(",", 2)[0] + ",remove,"
    (tmp_path / "d.csv").write_text("\n".join([text[0], decided]))
    with pytest.raises(ValueError, match="decides on no sample: its id is empty"):
        read_decisions(tmp_path / "d.csv")
    assert Kept(as_parquet(found)).lines(Kind.LEAK, 0, 100) == found.of("leak")


def test_the_page_shows_both(index):
    x, y, _ = held_out(CHANGES["exact"])
    found = review(index, top=3, held_out=x, held_out_labels=y)
    words = "".join(read(review_page(index, found)).texts)
    assert "Held-out samples that are in the training set" in words
    assert f"Leaks: {PLANTED} of {HELD} held-out samples" in words
    for one in found.of("leak"):
        assert f"Held-out sample {one.held_out}" in words
    page = review_page(index, found)
    part = page[page.index("Held-out samples that are") :]
    assert part.count("<img") == sum(1 + len(one.neighbours) for one in found.of("leak"))


def test_other_jobs_find_copies_of_their_samples(tmp_path):
    regression = gradindex.build(targets_job(), tmp_path / "targets")
    x, *_ = held_out(CHANGES["exact"])
    found = review(regression, held_out=x, held_out_labels=x.sum(axis=1, keepdims=True))
    assert {one.held_out for one in found.of("leak")} == set(range(PLANTED))
    assert all(one.label is None and one.neighbour_labels == () for one in found.of("leak"))
    texts = gradindex.build(texts_job(), tmp_path / "texts")
    some = texts.job.source.take(np.arange(3))
    found = review(texts, held_out=some.x)
    assert not found.of("leak") and any(one.startswith("Leaks: there are no vectors") for one in found.left_out)
    tokens = gradindex.build(tokens_job(), tmp_path / "tokens")
    some = tokens.job.source.take(np.arange(20))
    found = review(tokens, held_out=some.x, held_out_labels=some.y)
    assert found.about["held_out"] == 20


def test_the_command(index, tmp_path, capsys):
    x, y, _ = held_out(CHANGES["exact"])
    np.savez(tmp_path / "held.npz", x=x, y=y)
    (tmp_path / "leaky_job.py").write_text(
        "from tests.review.test_leaks import pictured_job as job\n", encoding="utf-8"
    )
    asked = ["review", str(index.store.path), f"{tmp_path}/leaky_job.py:job", "--held-out", str(tmp_path / "held.npz")]
    assert run([*asked, "-o", str(tmp_path / "r.html")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Leaks: {PLANTED} of {HELD} held-out samples." in text and "leak: the first 5 of 30" in text
    assert "held-out sample" in text and (tmp_path / "r.html").stat().st_size > 0
    assert run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(line["kind"] == "leak" for line in said["findings"]) == PLANTED


def test_wrong_arguments(index):
    x, y, _ = held_out()
    with pytest.raises(ValueError, match="64"):
        review(index, held_out=x[:, :60])
    with pytest.raises(ValueError, match="There are 400 held-out samples, but 399 labels"):
        review(index, held_out=x, held_out_labels=y[1:])
    assert leaks.checked(index, x[0], None)[0].shape == (1, 64)
