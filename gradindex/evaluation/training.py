"""Training the models of a bank, in this process, in several, or on a cluster: each is published as it is finished."""

import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradindex.data import labels
from gradindex.data.names import LossFunction, Tree
from gradindex.data.samples import as_columns
from gradindex.data.source import length, take_rows
from gradindex.evaluation import bank_store
from gradindex.evaluation.asked import Asked
from gradindex.evaluation.bank_store import Trained, save_model
from gradindex.gradients import backend_of, make_engine
from gradindex.runtime.interrupts import stop_on_sigterm
from gradindex.runtime.log import log
from gradindex.runtime.progress import progress_bar
from gradindex.store.location import Location, locate

Ids = NDArray[np.int64]
Fit = Callable[[Ids, int], Any]
"""``fit(ids, seed) -> model`` trains a fresh model on the training samples `ids`, (k,) int64 in order."""
_BATCH = 256
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


class WrongModelError(TypeError):
    """What `fit` returns cannot be asked: no model of it could, so training stops."""


@dataclass(frozen=True)
class Task:
    """A model to train: the `name` of its file, the `ids` it is trained on, its `seed`."""

    name: str
    ids: Ids
    seed: int


@dataclass(frozen=True)
class Trainer:
    """Trains, asks the model about the queries, publishes; what a worker process is given once.

    `path` and `bank` are those of the bank and its header's seal; `count` is the number of queries; with `again` what
    is published is replaced.
    """

    path: str
    bank: str
    fit: Fit
    queries: Tree
    loss_fn: LossFunction | None
    count: int
    again: bool = False

    def __call__(self, task: Task) -> str | None:
        """Train one model; return why it failed, if it did."""
        begun = time.monotonic()
        losses, predictions, error = None, None, None
        try:
            model = self.fit(task.ids, task.seed)
            losses, predictions = ask(model, self.queries, self.loss_fn, self.count)
            if not np.isfinite(losses).all():
                error = f"the losses of {int((~np.isfinite(losses)).sum())} queries are not finite"
        except WrongModelError:
            raise
        except Exception as raised:  # whatever a user's training raises is that model's failure
            error = f"{type(raised).__name__}: {raised}"
        found = Trained(
            task.seed,
            None if error or losses is None else losses.tolist(),
            None if error or predictions is None else predictions.tolist(),
            error,
            round(time.monotonic() - begun, 3),
        )
        save_model(locate(self.path), task.name, self.bank, found, replace=self.again)
        return error


class Cluster(Protocol):
    """Where models may be trained beside this machine, such as `gradindex.Ray`."""

    def train(self, trainer: Trainer, tasks: Sequence[Task]) -> Iterator[tuple[int, str | None]]:
        """Yield the position of each task when it is done, and why its model failed, if it did."""
        ...


def ask(
    model: Any, queries: Tree, loss_fn: LossFunction | None, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """Return a model's losses of the queries (m,), and the classes it predicts (m,) where its outputs are classes.

    Parameters
    ----------
    model
        A torch or Keras model; without `loss_fn`, anything with ``loss(queries) -> (m,)``, and with
        ``predict(queries) -> (m,)`` if it predicts classes.
    queries
        ``(X, Y)`` of m samples with `loss_fn`; else whatever the model's ``loss`` takes.
    loss_fn
        As in `gradindex.Job`; it is called with batches of one sample, the model in inference mode.
    count
        m.

    Raises
    ------
    WrongModelError
        A TypeError: if the model has no way to give losses, or gives another number of them.
    """
    if loss_fn is not None:
        losses, predictions = _ask_framework(model, queries, loss_fn)
    else:
        if not callable(getattr(model, "loss", None)) or isinstance(model, type):
            raise WrongModelError(
                f"fit returned {type(model).__name__} without a method loss(queries). Return a model that has one, or "
                "give loss_fn=, as for gradindex.Job."
            )
        losses = np.asarray(labels.as_array(model.loss(queries)), np.float64)
        predict = getattr(model, "predict", None)
        predictions = None if predict is None else np.asarray(predict(queries)).astype(np.int64)
    shapes = {losses.shape} | ({predictions.shape} if predictions is not None else set())
    if shapes != {(count,)}:
        raise WrongModelError(f"The model gave losses or predictions of shape {sorted(shapes)}; expected ({count},).")
    return losses, predictions


def _ask_framework(
    model: Any, queries: Tree, loss_fn: LossFunction
) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    x, y = as_columns(queries[0], "X"), as_columns(queries[1], "Y")
    try:
        backend = backend_of(model)
    except TypeError as error:
        raise WrongModelError(f"{error} Without loss_fn, models with a method loss(queries) are taken.") from None
    engine = make_engine(model, loss_fn, backend=backend)
    size = 1 if isinstance(x, list) else _BATCH
    losses, classes = [], []
    for begin in range(0, length(x, "X"), size):
        rows = slice(begin, begin + size)
        outputs = engine.outputs(take_rows(x, rows))
        losses.append(engine.losses(outputs, take_rows(y, rows)))
        classes.append(labels.predicted_classes(outputs))
    known = [one for one in classes if one is not None]
    return np.concatenate(losses).astype(np.float64), np.concatenate(known) if len(known) == len(classes) else None


@dataclass(frozen=True)
class How:
    """Where and how models are trained; see `Bank.build`."""

    workers: int = 1
    engine: Cluster | None = None
    retry: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}.")


def fill(place: Location, header: bank_store.Header, fit: Fit, asked: Asked, tasks: Sequence[Task], how: How) -> None:
    """Train and publish those models of a bank whose files are missing; those that fail are logged, and kept as such.

    Raises
    ------
    TypeError
        If several processes are to train, and `fit` cannot be sent to them.
    RuntimeError
        If the process of a worker ends by itself, for lack of memory say: what was published is kept.
    """
    there = {name for folder in bank_store.FOLDERS for name in bank_store.published(place, folder)}
    if how.retry:
        known = [task.name for task in tasks if task.name in there]
        models = {name: bank_store.read_model(place, name, header.seal, header.queries) for name in known}
        there -= {name for name, model in models.items() if model.error is not None}
    left = [task for task in tasks if task.name not in there]
    if not left:
        return
    trainer = Trainer(str(place), header.seal, fit, asked.queries, asked.loss_fn, header.queries, how.retry)
    if how.engine is not None:
        done = how.engine.train(trainer, left)
    else:
        done = _here(trainer, left) if how.workers == 1 else _in_processes(trainer, left, how.workers)
    with stop_on_sigterm(), progress_bar("Training", len(tasks), len(tasks) - len(left), how.progress) as advance:
        for number, error in done:
            if error is not None:
                log.warning("the model of %s, seed %d, failed: %s", left[number].name, left[number].seed, error)
            advance(1)


def _here(trainer: Trainer, tasks: Sequence[Task]) -> Iterator[tuple[int, str | None]]:
    for number, task in enumerate(tasks):
        yield number, trainer(task)


_trainer: Trainer | None = None  # of a worker process


def _in_processes(trainer: Trainer, tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, str | None]]:
    try:
        pickle.dumps(trainer)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"This cannot be sent to other processes: {error}. Write fit and loss_fn at the top of a module, or take "
            "workers=1."
        ) from error
    workers = min(workers, len(tasks))
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_start, initargs=(trainer, threads))
    try:
        waiting = {pool.submit(_train, task): number for number, task in enumerate(tasks)}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A process that trained models ended by itself (out of memory? a script without if __name__ == "
            "'__main__'?). Finished models are kept: run the same again to go on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(trainer: Trainer, threads: int) -> None:
    global _trainer
    _trainer = trainer
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def _train(task: Task) -> str | None:
    if _trainer is None:
        raise RuntimeError("This process has no trainer.")
    return _trainer(task)
