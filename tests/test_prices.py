"""Of the ways to exact products, the cheaper one is taken once both are known."""

import numpy as np
import pytest

from gradindex.compute import exact
from gradindex.gradients.prices import Prices
from tests.test_exact import case, kit  # noqa: F401  (a fixture)

ALONE, TOGETHER = "forward mode", "factors"


def test_the_first_time_does_not_count_and_the_least_of_the_others_does():
    prices = Prices()
    for seconds in (1.0, 8.0, 6.0):
        prices.note("pass", seconds, 2, 20)
        assert prices.of("pass", 20) is None
    prices.note("pass", 40.0, 2, 30)
    assert prices.of("pass", 20) == prices.of("pass", 63) == 3.0
    assert prices.of("pass", 15) is None is prices.of("pass", 64)  # so many at once have another price
    for _ in range(9):
        prices.note("pass", 10.0, 2, 16)
    assert prices.of("pass", 20) == 5.0  # the last ones
    assert prices.of("other", 20) is None


def settled(engine, alone, keep, once):
    """Make an engine's prices these seconds, however many are done at once."""
    engine.ways.prices = Prices()
    for name, seconds in ((ALONE, alone), (exact._KEEP, keep), (TOGETHER, once)):
        for number in range(4 * 4 if seconds else 0):
            engine.ways.prices.note(name, seconds, 1, 4 ** (number % 4))


@pytest.mark.parametrize("asked", [1, 2, 6])
def test_the_cheaper_way_is_taken_and_both_are_right(kit, monkeypatch, asked):  # noqa: F811
    monkeypatch.setattr(exact, "_SMALL", 0)
    job, batch, train, queries = case(kit)
    gradients, some = job.engine.gradients(batch.x, batch.y).gradients[:asked], batch.select(slice(0, asked))
    candidates = np.arange(asked * 6).reshape(asked, 6)  # of which none is shared
    want = np.take_along_axis(queries[:asked] @ train.T, candidates, 1)
    # 6 passes a query cost 6 s; to keep a query 3 s, and 6 passes 2.4 s, or 3.6 s.
    for once, expected in ((0.4, TOGETHER), (0.6, ALONE)):
        settled(job.engine, 1.0, 3.0, once)
        found = exact.candidate_dots(job.engine, job.source, some, gradients, candidates)
        assert found.method == expected
        assert np.abs(found.dots - want).max() <= 1e-5 * np.abs(queries @ train.T).max()


def test_another_way_is_tried_where_that_is_soon_done(kit, monkeypatch):  # noqa: F811
    monkeypatch.setattr(exact, "_SMALL", 0)
    job, batch, _, _ = case(kit)
    gradients, one = job.engine.gradients(batch.x, batch.y).gradients[:1], batch.select(slice(0, 1))

    def methods(count):
        some = np.arange(12)[None]
        return [exact.candidate_dots(job.engine, job.source, one, gradients, some).method for _ in range(count)]

    assert methods(8) == [ALONE] * 4 + [TOGETHER] * 4
    job.engine.ways.prices = Prices()
    monkeypatch.setattr(exact, "_TRIED", job.engine.size - 1)
    assert methods(8) == [ALONE] * 8


def test_queries_that_share_their_candidates_pass_together_until_it_is_known_to_be_dear(kit, monkeypatch):  # noqa: F811
    monkeypatch.setattr(exact, "_SMALL", 0)
    monkeypatch.setattr(exact, "_TRIED", 0)
    job, batch, _, _ = case(kit)
    gradients, candidates = job.engine.gradients(batch.x, batch.y).gradients, np.tile(np.arange(8), (6, 1))

    def method():
        return exact.candidate_dots(job.engine, job.source, batch, gradients, candidates).method

    settled(job.engine, None, None, None)
    assert method() == TOGETHER
    settled(job.engine, 1.0, 1.0, 7.0)  # 48 passes; or 6 queries and 8 passes: 62 s
    assert method() == ALONE


def test_a_model_without_forward_mode_has_its_own_price(kit, monkeypatch):  # noqa: F811
    monkeypatch.setattr(exact, "_SMALL", 0)
    job, batch, train, queries = case(kit)
    gradients, one = job.engine.gradients(batch.x, batch.y).gradients[:1], batch.select(slice(0, 1))

    def fails(*args):
        raise NotImplementedError("no such derivative")

    monkeypatch.setattr(type(job.engine), "directional", fails)
    some = np.arange(12)[None]
    found = [exact.candidate_dots(job.engine, job.source, one, gradients, some) for _ in range(6)]
    assert [one.method for one in found] == ["double backward"] * 4 + [TOGETHER] * 2
    assert np.abs(found[-1].dots - queries[:1] @ train[:12].T).max() <= 1e-5 * np.abs(queries @ train.T).max()
