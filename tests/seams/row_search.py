"""What every `RowSearch` must do, against brute force over the same rows.

A test class of an implementation inherits `RowSearchSuite` and has two fixtures: `index`, opened with its job, whose
`rows` are the implementation, and `jobless`, the same index without a job. `make` builds what they open.
"""

from dataclasses import replace

import numpy as np
import pytest

import gradindex
from gradindex import kernels
from gradindex.ann.selection import Selection
from gradindex.compute.held_queries import hold
from gradindex.kernels import Kernel
from tests.jobs import ROWS, digits_job

QUERIES = np.array([0, 17, 100, 239])
K = 7


def make(path):
    """Build the index that is searched: of exact vectors, so that brute force has the same answers."""
    gradindex.build(digits_job(), path, sketch=gradindex.CountSketch(256), shard_rows=50, index="Flat")
    return path


def best(values, k=K):
    """Return the k highest values of each line and their rows; −1 where a value is −inf."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(values, order, 1)
    return scores, np.where(scores == -np.inf, -1, order)


def selections():
    few, most = np.zeros(ROWS, bool), np.ones(ROWS, bool)
    few[[3, 60, 61, 200]] = True
    most[[0, 17, 180]] = False
    return {"all": None, "few": Selection(few), "most": Selection(most, everywhere=False)}


class RowSearchSuite:
    @pytest.fixture
    def sketches(self, index):
        return index.store.gather(QUERIES)

    @pytest.fixture
    def norms(self, index):
        return index.store.norms[QUERIES].astype(np.float64)

    @pytest.mark.parametrize("selection", selections().values(), ids=selections())
    def test_nearest_are_those_of_brute_force(self, index, sketches, selection):
        cosines = sketches @ index.store.gather(np.arange(ROWS)).T
        if selection is not None:
            cosines = np.where(selection.mask, cosines, -np.inf)
        want, rows = best(cosines)
        scores, found, scanned = index.rows.nearest(sketches, K, selection)
        np.testing.assert_array_equal(found, rows)
        np.testing.assert_allclose(scores[rows >= 0], want[rows >= 0], atol=5e-4)  # norms are 1 to 2^-11
        assert scores.dtype == np.float32 and scanned.shape == (len(sketches),)
        assert (scanned >= (rows >= 0).sum(axis=1)).all()

    @pytest.mark.parametrize("selection", selections().values(), ids=selections())
    @pytest.mark.parametrize("eps", [0.0, 0.5])
    @pytest.mark.parametrize("kernel", Kernel)
    def test_a_scan_finds_what_brute_force_does(self, index, sketches, norms, kernel, eps, selection):
        weights = np.stack([kernels.weights(kernel, norm, index.store.norms, eps) for norm in norms])
        values = (sketches @ index.store.gather(np.arange(ROWS)).T) * weights
        if selection is not None:
            values = np.where(selection.mask, values, -np.inf)
        want, rows = best(values)
        scores, found, scanned = index.rows.scan(sketches, norms, kernel, K, eps, selection)
        np.testing.assert_array_equal(found, rows)
        np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-7)
        assert (scanned > 0).all()
        assert (scanned <= ROWS).all()

    def test_dots_are_those_of_the_gradients(self, index):
        job, ids = index.job, np.array([[5, 210, 60], [5, -1, 100], [-1, -1, -1], [17, 18, 239]])
        gradients = gradindex.exact_gradients(job, QUERIES)
        found = index.rows.dots(job.source.take(QUERIES), gradients, ids)
        every = gradients.astype(np.float64) @ gradindex.exact_gradients(job, np.arange(ROWS)).astype(np.float64).T
        there = ids >= 0
        np.testing.assert_allclose(found.dots[there], np.take_along_axis(every, ids, 1)[there], rtol=1e-4, atol=1e-7)
        losses = index.store.columns["loss"]
        assert {row: pytest.approx(losses[row], rel=1e-4, abs=1e-6) for row in set(ids[there].tolist())} == found.losses
        assert found.method != "none"

    def test_held_queries_are_evaluated(self, index):
        job, ids = index.job, np.array([239, 5, 100])
        held = hold(job.engine, job.source.take(QUERIES))
        found, losses = index.rows.evaluate(held, ids)
        gradients = (gradindex.exact_gradients(job, some).astype(np.float64) for some in (QUERIES, ids))
        queries, samples = gradients
        np.testing.assert_allclose(found, queries @ samples.T, rtol=1e-4, atol=1e-7)
        assert losses.keys() == set(ids.tolist())

    def test_a_later_state_has_the_same_rows(self, index, sketches):
        store = index.store
        later = type(store)(store.path, store.header, replace(store.state, removals=(np.array([3]),)))
        want, found = index.rows.nearest(sketches, K, None), index.rows.over(later).nearest(sketches, K, None)
        for one, other in zip(want, found, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_without_a_job_nothing_is_evaluated(self, index, jobless, sketches):
        assert jobless.rows.nearest(sketches, K, None)[1].shape == (len(QUERIES), K)
        gradients = gradindex.exact_gradients(index.job, QUERIES)
        with pytest.raises(ValueError, match="job"):
            jobless.rows.dots(index.job.source.take(QUERIES), gradients, np.array([[5]] * len(QUERIES)))
        held = hold(index.job.engine, index.job.source.take(QUERIES))
        with pytest.raises(ValueError, match="job"):
            jobless.rows.evaluate(held, np.array([5]))
