"""What queries need of a job beside a store: the sketch, the batch size, the comparisons with training steps."""

from functools import cached_property

import numpy as np

from gradindex.compute import landmarks, watch
from gradindex.compute.blocks import embedding_batch_size
from gradindex.data.source import Batch
from gradindex.gradients.projector import Projector
from gradindex.job import Job
from gradindex.store import Store


class Prepared:
    """What queries need of a job and its store's header, computed once and shared by all states."""

    def __init__(self, store: Store, job: Job) -> None:
        self._store, self.job = store, job

    @cached_property
    def projector(self) -> Projector:
        """The projection that made the stored sketches."""
        return landmarks.bound(self._store, self.job)

    @cached_property
    def batch_size(self) -> int:
        """Samples at once."""
        return embedding_batch_size(self.job)

    @cached_property
    def compared(self) -> watch.Compared:
        """How many stored rows were compared with training steps: in the build, or else now.

        Where some differed in the build, what made them differ may make exact products wrong, too: these are then taken
        from training steps alone. Likewise where the first samples, on which the paths were chosen, differed.
        """
        _ = self.batch_size  # the paths are chosen on the dataset's first samples, as in the build, if none were yet
        found = watch.of_store(self._store)
        self.job.engine.ways.distrusted |= bool(found.differed)
        return found or self._comparison[0]

    @cached_property
    def rows_hold(self) -> bool:
        """Whether stored rows were compared with training steps, and are theirs."""
        return bool(watch.of_store(self._store)) or self._comparison[1]

    @cached_property
    def _comparison(self) -> tuple[watch.Compared, bool]:
        return watch.compare_stored(self._store, self.job, self.projector)

    @cached_property
    def example(self) -> Batch:
        """The first samples of the dataset: the form that queries and labels must have."""
        return self.job.source.take(np.arange(min(64, len(self.job.source)), dtype=np.int64))
