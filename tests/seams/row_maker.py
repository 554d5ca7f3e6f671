"""What every `RowMaker` does: a test class of an implementation inherits it and makes one in `make`."""

import json
import pickle

import numpy as np

from gradindex.gradients import loop
from gradindex.gradients.engine import Engine
from gradindex.job import RowMaker
from tests.jobs import digits_job


class RowMakerSuite:
    """`make(self)` returns a row maker of `digits_job`."""

    def test_its_engine_makes_a_row_for_each_sample(self):
        job, maker = digits_job(), self.make()
        assert isinstance(maker, RowMaker)
        engine = maker.engine(job)
        assert isinstance(engine, Engine)
        batch = job.source.take(np.arange(5))
        found = engine.gradients(batch.x, batch.y)
        assert found.gradients.shape == (5, engine.size)
        np.testing.assert_allclose(found.gradients, loop.gradients(engine, batch.x, batch.y).gradients, atol=1e-5)

    def test_it_is_told_by_values_that_json_holds(self):
        saved = self.make().to_json()
        assert json.loads(json.dumps(saved)) == saved == self.make().to_json()

    def test_it_survives_a_pickle(self):
        maker = self.make()
        again = pickle.loads(pickle.dumps(maker))
        assert type(again) is type(maker)
        assert again.to_json() == maker.to_json()
