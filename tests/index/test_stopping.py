"""Adaptive checks by themselves: which candidates are checked, and what a margin misses."""

import numpy as np
import pytest

from gradindex.search import stopping

K = 5


def drawn(seed, queries=30, candidates=80):
    """Estimates and exact values of made-up candidates, of both the cosine and a weighted kernel."""
    rng = np.random.default_rng(seed)
    exact = np.tanh(rng.normal(size=(queries, candidates)))
    z = np.arctanh(exact) + rng.normal(scale=0.3, size=exact.shape)
    weights = rng.exponential(size=exact.shape) + 0.01
    return z, exact, weights


def is_true(values):
    return values >= np.sort(values, axis=1)[:, -K, None]


def checked(z, weights, values, margin, first):
    """What `Checks` evaluates of each query: how many, and the rows."""
    out = []
    for line in range(len(z)):
        reached = stopping.reach(z[line], weights[line], margin)
        checks = stopping.Checks(np.where(np.isfinite(z[line]), np.arange(z.shape[1]), -1), reached, K, first)
        rows = []
        while len(block := checks.wanted()):
            rows += block.tolist()
            checks.take(values[line, block])
        assert len(set(rows)) == len(rows)
        out.append(rows)
    return out


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_find_all_that_single_checks_find(weighted):
    z, exact, weights = drawn(1)
    weights = weights if weighted else np.ones_like(z)
    values, margins = weights * exact, np.array([-0.4, 0.0, 0.2, 0.5, 1.0, np.inf])
    true = is_true(values)
    missed, least = stopping.losses(z, weights, values, true, margins, K)
    stopped = 0
    for place, margin in enumerate(margins):
        for first in (K, K + 4, 40):
            for line, rows in enumerate(checked(z, weights, values, margin, first)):
                hits = int(true[line, rows].sum())
                assert len(rows) >= least[line, place]
                assert K - hits <= missed[line, place]
                stopped += len(rows) < z.shape[1]
    assert stopped > 100


def test_single_checks_are_those_that_losses_count():
    """The count that a calibration rests on, against a plain loop."""
    z, exact, _ = drawn(2)
    margins = np.array([0.0, 0.3, 0.8])
    missed, least = stopping.losses(z, np.ones_like(z), exact, is_true(exact), margins, K)
    for place, margin in enumerate(margins):
        for line in range(len(z)):
            order = np.argsort(-z[line])
            count = K
            while count < z.shape[1]:
                kth = np.sort(exact[line, order[:count]])[-K]
                if np.tanh(z[line, order[count]] + margin) + 1e-5 < kth:
                    break
                count += 1
            assert least[line, place] == count
            assert missed[line, place] == K - is_true(exact)[line, order[:count]].sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_larger_margin_never_misses_more(weighted):
    z, exact, weights = drawn(3, queries=200)
    weights = weights if weighted else np.ones_like(z)
    values = weights * exact
    kth = np.sort(values, axis=1)[:, -K]
    margins = stopping.grid(z, weights, is_true(values), kth, 32)
    missed, checks = stopping.losses(z, weights, values, is_true(values), margins, K)
    assert (np.diff(missed, axis=1) <= 0).all()
    assert missed[:, 0].sum() > 100
    assert missed[:, -1].sum() == 0
    assert (np.diff(margins) >= 0).all()
    if not weighted:
        assert (np.diff(checks, axis=1) >= 0).all()


def test_what_is_missed_falls_from_margin_to_margin():
    """The grid tells losses apart where they are small, which is where promises are made."""
    z, exact, _ = drawn(4, queries=400)
    true, kth = is_true(exact), np.sort(exact, axis=1)[:, -K]
    margins = stopping.grid(z, np.ones_like(z), true, kth, 64)
    missed, _ = stopping.losses(z, np.ones_like(z), exact, true, margins, K)
    mean = missed.mean(axis=0) / K
    below = mean[mean < 0.1]
    assert len(below) > 10
    assert (below[:-1] - below[1:]).max() < 0.02


def test_an_infinite_margin_checks_every_candidate():
    z, exact, _ = drawn(5)
    z[:, 70:] = -np.inf
    rows = checked(z, np.ones_like(z), exact, np.inf, K)
    assert all(sorted(found) == list(range(70)) for found in rows)


def test_a_bound_below_the_kth_value_ends_the_checks():
    z = np.zeros(20)
    bounds = np.r_[np.full(6, 0.9), np.full(14, 0.5)]
    values = np.r_[np.full(6, 0.8), np.full(14, 0.1)]
    checks = stopping.Checks(np.arange(20), stopping.reach(z, np.ones(20), np.inf, bounds), K, 6)
    assert sorted(checks.wanted()) == list(range(6))
    checks.take(values[:6])
    assert len(checks.wanted()) == 0


def test_fewer_candidates_than_wanted_are_all_checked():
    z = np.where(np.arange(9) < 3, 0.5, -np.inf)
    rows = np.where(np.arange(9) < 3, np.arange(9), -1)
    checks = stopping.Checks(rows, stopping.reach(z, np.ones(9), 0.0), K, K)
    assert sorted(checks.wanted()) == [0, 1, 2]
    checks.take(np.zeros(3))
    assert len(checks.wanted()) == 0
    missed, least = stopping.losses(z[None], np.ones((1, 9)), np.zeros((1, 9)), rows[None] >= 0, np.zeros(1), K)
    assert (missed[0, 0], least[0, 0]) == (K - 3, 3)


def test_no_candidate_that_is_true_gives_a_grid_all_the_same():
    margins = stopping.grid(np.full((2, 4), -np.inf), np.ones((2, 4)), np.zeros((2, 4), bool), np.zeros(2), 8)
    assert margins.shape == (8,) and margins[-1] == np.inf


@pytest.mark.parametrize("k", [1, 5])
def test_counts_of_cosines_are_those_of_any_kernel(k):
    """The fast way of counting against the one for all kernels."""
    z, exact, _ = drawn(6, queries=40, candidates=300)
    z[:, 280:] = -np.inf
    exact[:, 280:] = -np.inf
    z[0], exact[0] = np.arctanh(1 - 2.0**-11), 1.0  # more than single precision tells apart
    true = exact >= np.sort(exact, axis=1)[:, -k, None]
    margins = np.array([-0.3, 0.0, 0.1, 0.4, 1.5, np.inf])
    one = np.ones_like(z)
    fast = stopping._counts_of_cosines(z, one, exact, true, margins, k, None)
    slow = stopping._counts(z, one, exact, true, margins, k, None)
    np.testing.assert_array_equal(fast[1], slow[1])
    np.testing.assert_array_equal(fast[0], slow[0])
