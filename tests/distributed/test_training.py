"""A retraining bank whose models are trained on Ray."""

import os
from functools import partial

import numpy as np
import pytest

from gradindex.distributed import Ray
from gradindex.evaluation import Bank
from tests.evaluation import bank_fits as fits


def test_a_bank_trained_on_ray_is_that_of_this_machine(address, tmp_path):
    cluster = Ray(address=address, workers=2)
    some = {"queries": fits.data()[1], "subsets": 5, "models": 2}
    calls = tmp_path / "calls"
    calls.mkdir()
    fit = partial(fits.counted, calls)
    found = Bank.build(fit, fits.N, tmp_path / "ray", engine=cluster, **some)
    here = Bank.build(partial(fits.ridge, noise=0.01), fits.N, tmp_path / "here", **some)
    np.testing.assert_array_equal(found.losses, here.losses)
    assert str(os.getpid()) not in {path.name.partition("-")[2] for path in calls.iterdir()}
    for path in list((tmp_path / "ray" / "models").iterdir())[:3]:
        path.unlink()
    again = Bank.build(fit, fits.N, tmp_path / "ray", engine=cluster, **some)
    np.testing.assert_array_equal(again.losses, here.losses)
    assert len(list(calls.iterdir())) <= 13


def test_a_model_that_cannot_be_asked_stops_the_bank(address, tmp_path):
    with pytest.raises(TypeError, match=r"without a method loss\(queries\)"):
        Bank.build(
            lambda ids, seed: object(),
            fits.N,
            tmp_path,
            queries=fits.data()[1],
            subsets=4,
            engine=Ray(address=address, workers=1),
        )
