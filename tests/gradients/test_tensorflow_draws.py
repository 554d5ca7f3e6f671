"""Drawn Keras models: rows, and scores that are said to be exact, against a tape around model and loss."""

import warnings

import pytest

pytest.importorskip("tensorflow")

from tests.gradients import tensorflow_draws as draws  # noqa: E402


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(40))
def test_drawn_models(seed, tmp_path):
    case = draws.draw(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = draws.errors(case, tmp_path / "index")
    assert max(found.values()) <= (3e-2 if case.half else 1e-3), (case.about, found)


def test_an_error_is_seen(tmp_path):
    case = draws.draw(14)
    loss = case.loss
    case.loss = lambda y, out: loss(y, out) + 0.02 * (draws.tf.reduce_sum(out) if hasattr(out, "graph") else 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = draws.gradindex.Job(case.model, case.loss, (case.x, case.y))
        assert "loop" in {job.engine.settle(case.x, case.y), *job.engine.paths.values()}
