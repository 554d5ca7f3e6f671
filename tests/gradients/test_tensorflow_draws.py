"""Drawn Keras models: rows, and scores that are said to be exact, against a tape around model and loss."""

import warnings

import pytest

pytest.importorskip("tensorflow")

from tests.gradients import tensorflow_draws as draws


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(40))
def test_drawn_models(seed, tmp_path):
    case = draws.draw(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = draws.errors(case, tmp_path / "index")
    assert max(found.values()) <= (3e-2 if case.half else 1e-3), (case.about, found)
