"""Copies within the training set are found, those moved by a pixel included, and others are not."""

import numpy as np
import pytest

import gradindex
from gradindex.review import evidence, moved, review
from tests.review.kit import ROWS, samples, wrong_job
from tests.review.test_leaks import CHANGES

COPIES = 30


def built(folder, change=None):
    """Build an index of digits, 30 of which are changed copies of others; return it and those pairs."""
    x, *_ = samples()
    x, random = x.copy(), np.random.default_rng(5)
    chosen, replaced = random.permutation(np.arange(400, ROWS))[: 2 * COPIES].reshape(2, -1)
    if change is not None:
        x[replaced] = change(x[chosen])
    model = wrong_job()
    job = gradindex.Job(model.model, model.loss_fn, (x, samples()[1]), render=lambda i: x[i].reshape(8, 8))
    index = gradindex.build(job, folder / "index", progress=False)
    return index, {tuple(sorted(pair)) for pair in zip(chosen.tolist(), replaced.tolist(), strict=True)}


def named(index):
    found = review(index, top=2 * ROWS)
    return {tuple(sorted((one.id, one.neighbours[0]))) for one in found.of("duplicate")}, found


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return named(built(tmp_path_factory.mktemp("before"))[0])[0]


@pytest.mark.parametrize("how", CHANGES)
def test_copies_are_found(tmp_path, before, how):
    """Where all pairs are compared."""
    index, pairs = built(tmp_path, CHANGES[how])
    found, _ = named(index)
    assert len(found & pairs) / COPIES >= (0.95 if how in ("exact", "noisy") else 0.8), "recall"
    assert len(found - pairs - before) <= 3, "precision"


@pytest.mark.parametrize("everywhere", [0, ROWS])
def test_pairs_are_compared_as_a_plain_loop_does(tmp_path, monkeypatch, everywhere):
    """By the best cosine of the nine windows of one picture with the middle of the other, less the mean picture."""
    monkeypatch.setattr(moved, "_EVERYWHERE", everywhere)
    index, _ = built(tmp_path, CHANGES["left"])
    seen = evidence.Evidence(index)
    near = moved.Moved.of(seen).of_training()
    x = index.job.source.take(np.arange(ROWS)).x.reshape(-1, 8, 8)
    mean = x.mean(0)[1:7, 1:7]

    def standard(window):
        return (window - mean).ravel() / np.linalg.norm(window - mean)

    for row in (0, 401, 499):
        windows = [standard(x[row, a : a + 6, b : b + 6]) for a in range(3) for b in range(3)]
        best = [max(window @ standard(one[1:7, 1:7]) for window in windows) for one in x]
        allowed = (
            np.arange(ROWS) if everywhere else np.unique(np.hstack([seen.near[s].places[row] for s in seen.vectors]))
        )
        order = sorted((-best[place], place) for place in allowed if place != row)[: seen.k]
        assert near.places[row][: seen.k].tolist() == [place for _, place in order]
        np.testing.assert_allclose(near.cosines[row][: seen.k], [-cosine for cosine, _ in order], atol=1e-4)


@pytest.mark.parametrize(("times", "all_found"), [(2, True), (4, True), (20, False)])
def test_data_that_are_there_several_times(tmp_path, times, all_found):
    """As after a concatenation by mistake: every sample has copies, which say nothing of what is usual."""
    x, *_ = samples()
    rows = np.tile(np.arange(60), times)
    model = wrong_job()
    index = gradindex.build(gradindex.Job(model.model, model.loss_fn, (x[rows], samples()[1][rows])), tmp_path / "i")
    found, told = named(index)
    assert ({one for pair in found for one in pair} >= set(range(60 * times))) == all_found
    assert all(one % 60 == other % 60 for one, other in found)
    assert any("are its copies, so near-duplicates are not told" in one for one in told.left_out) != all_found
