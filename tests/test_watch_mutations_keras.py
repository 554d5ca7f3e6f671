"""Ways of computing broken on purpose in Keras; see `test_watch_mutations`."""

import contextlib
import logging

import numpy as np
import pytest

import gradindex
from tests import oracles
from tests.test_watch_mutations import (  # noqa: F401  (a fixture)
    BATCH,
    FOUND,
    RIGHT,
    SAMPLES,
    SHARD,
    WRONG,
    _embedded,
    _method,
    _row_error,
    _score_error,
    _swapped,
    _times,
    unwatched,
)


def _scaled_layer(patch, job):
    from gradindex.gradients.tensorflow.passes import Sketches

    call = Sketches.__call__

    def wrapped(self, name, uses):
        before = self.sketches.copy(), self.squares.copy()
        call(self, name, uses)
        if name.endswith("kernel"):
            self.sketches[:] = before[0] + 1.02 * (self.sketches - before[0])
            self.squares[:] = before[1] + 1.02**2 * (self.squares - before[1])

    patch.setattr(Sketches, "__call__", wrapped)


def _directional(patch, job):
    _method(type(job.engine), "directional", _times(1.01))(patch, job)


FAULTS = {
    "one layer's rule scaled by 1.02": ("rows", _scaled_layer),
    "samples swapped from the third shard on": ("rows", _embedded(_swapped)),
    "forward mode off by 1 %": ("one", _directional),
}


def _error(name, folder):
    asked, arm = FAULTS[name]
    kit = oracles.kit("tensorflow")
    model = kit.mlp()
    x, y = oracles.points(SAMPLES)
    job = gradindex.Job(model, kit.loss, (x, y))
    job.engine.settle(x[:8], y[:8])  # the first batch is right
    true = kit.gradients(model, kit.loss, x, y)
    options = {"sketch": gradindex.CountSketch(128), "shard_rows": SHARD, "batch_size": BATCH, "progress": False}
    options["row_type"] = "float16"  # whose rounding is below what a fault does
    index = None if asked == "rows" else gradindex.build(job, folder, **options)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ValueError):
        arm(patch, job)
        if asked != "rows":
            return _score_error(index, true, asked)
        index = gradindex.build(job, folder, **options)
    return 0.0 if index is None else _row_error(index, np.asarray(true))


@pytest.mark.parametrize("name", FAULTS)
def test_the_watch_finds(name, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "gradindex")
    assert _error(name, tmp_path / "index") < RIGHT
    assert any(text in caplog.text for text in FOUND)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore")
def test_nothing_else_finds(name, tmp_path, unwatched):  # noqa: F811
    assert _error(name, tmp_path / "index") > WRONG
