"""What an evaluation repeats: data, and the function that trains a model on some of them."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.labels import as_classes
from gradindex.data.names import LossFunction, Model
from gradindex.data.samples import as_columns
from gradindex.data.source import Tree, length, take_rows
from gradindex.job import Job


@dataclass(frozen=True)
class Split:
    """Training and test samples of one repeat."""

    x_train: Tree
    y_train: NDArray[np.int64]
    x_test: Tree
    y_test: NDArray[np.int64]


@dataclass(frozen=True)
class Experiment:
    """A model that can be trained anew, its loss and its data.

    Parameters
    ----------
    fit
        ``fit(x, y, classes, seed) -> model`` trains a fresh model with `classes` outputs on labels 0 … classes−1.
    loss_fn
        As in `Job`.
    data
        (X, Y), Y classes (n,).
    test
        (X, Y) of test samples; None: what `train_size` leaves of `data`, drawn anew in every repeat.
    train_size
        How many samples of `data` train, or which share of them.
    queries
        At most so many test samples are asked about.
    fresh
        ``fresh(classes, seed) -> model``: a freshly initialised model for the randomization test. None: layers
        of a copy of the trained one are initialised again.
    parameters, device
        As in `Job`.
    """

    fit: Callable[[Any, Any, int, int], Any]
    loss_fn: LossFunction
    data: tuple[Any, Any]
    _: KW_ONLY
    test: tuple[Any, Any] | None = None
    train_size: int | float = 0.5
    queries: int = 500
    fresh: Callable[[int, int], Any] | None = None
    parameters: str | Sequence[str] | None = None
    device: Any = None

    def __post_init__(self) -> None:
        y = np.asarray(self.data[1])
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError(f"Y must be classes (n,) as integers, got shape {y.shape} of {y.dtype}.")
        if not 0 < self._count() <= len(y) - (self.test is None):
            raise ValueError(f"train_size {self.train_size} is not a part of the {len(y)} samples.")
        if self.queries < 1:
            raise ValueError(f"queries must be at least 1, got {self.queries}.")

    @classmethod
    def of_job(cls, job: Job, test: tuple[Tree, Tree]) -> "Experiment":
        """Return an experiment around a trained model, which cannot be trained anew: no subclass test.

        The job's training data are read into memory.
        """
        batch = job.source.take(np.arange(len(job.source), dtype=np.int64))
        classes = as_classes(batch.y)
        if classes is None:
            raise ValueError("The tests need labels that are classes (n,) or one-hot rows (n, c).")

        def fit(x: Tree, y: Tree, outputs: int, seed: int) -> Model:
            if outputs < len(np.unique(classes)):
                raise ValueError(
                    "The subclass test trains anew, and a Job cannot. Give an Experiment with a function fit."
                )
            return job.model

        return cls(
            fit,
            job.loss_fn,
            (batch.x, classes),
            test=test,
            train_size=len(job.source),
            parameters=job.parameters,
            device=job.device,
        )

    def _count(self) -> int:
        n = len(self.data[1])
        return round(self.train_size * n) if isinstance(self.train_size, float) else self.train_size

    def split(self, seed: int) -> Split:
        """Return the samples of the repeat with this seed."""
        x, y = as_columns(self.data[0]), np.asarray(self.data[1]).astype(np.int64)
        rng = np.random.default_rng(seed)
        order = rng.permutation(length(x))
        train, rest = order[: self._count()], order[self._count() :]
        if self.test is None:
            x_test, y_test = take_rows(x, rest), y[rest]
        else:
            x_test, y_test = as_columns(self.test[0]), np.asarray(self.test[1]).astype(np.int64)
        return Split(take_rows(x, train), y[train], x_test, y_test)

    def job(self, split: Split, y: NDArray[np.int64], classes: int, seed: int) -> Job:
        """Train on a split with labels `y` and return the job."""
        return self.job_of(self.fit(split.x_train, y, classes, seed), split, y)

    def job_of(self, model: Model, split: Split, y: NDArray[np.int64]) -> Job:
        """Return the job of a model on a split's training samples."""
        return Job(model, self.loss_fn, (split.x_train, y), parameters=self.parameters, device=self.device)
