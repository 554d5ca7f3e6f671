"""Drawn Keras models: rows, and scores that are said to be exact, against a tape around model and loss."""

import warnings

import pytest

pytest.importorskip("tensorflow")

from tests.gradients import tensorflow_draws as draws


REFUSED = {11}  # a loss that branches on its batch, of which the first samples go both ways


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(40))
def test_drawn_models(seed, tmp_path):
    case = draws.draw(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "branching" in case.about and seed in REFUSED:
            with pytest.raises(ValueError, match="loss of a batch is not made of the losses of its samples"):
                draws.errors(case, tmp_path / "index")
            return
        found = draws.errors(case, tmp_path / "index")
    assert max(found.values()) <= (3e-2 if case.half else 1e-3), (case.about, found)
