"""Scores of all pairs of queries and training samples by the names of kernels, for a bank to judge.

``grad_dot``, ``grad_cos``, ``grad_asym_dot``: of exact gradients, by one scan of the training set. ``label``: 1 where
the classes are equal. ``hidden``, ``pixels``: cosine of what the last layer receives, of the inputs. ``white_…``: of
the stored rows of an index (`gradindex.Index.scores`). Besides, the metrics of `gradindex.relevance`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import relevance
from gradindex.compute import exact, queries
from gradindex.data.labels import as_array, as_classes
from gradindex.data.source import Batch, Tree, take_rows
from gradindex.job import Job
from gradindex.kernels import Kernel, values
from gradindex.words import Task

_METRICS = {"hidden": "cos-last", "pixels": "cos-x"}
WHITE = ("white_dot", "white_cos")
NAMES = (*Kernel, "label", *_METRICS, *WHITE)
Rows = NDArray[np.float32]
PairScores = Callable[[Tree, Tree, str], NDArray[Any]]
"""``scores(x, y, kernel) -> (m, n)``, such as an index gives."""


def scores(job: Job, x: Tree, y: Tree, names: Sequence[str], stored: PairScores | None = None) -> dict[str, Rows]:
    """Return the scores of m queries against all n training samples, larger says more helpful.

    Parameters
    ----------
    job
        The trained model and its training samples.
    x, y
        Queries and their labels, whose losses the scores are to explain.
    names
        Of `NAMES`, or of `gradindex.relevance.METRICS`.
    stored
        Gives the scores of stored rows, for the names of `WHITE`.

    Returns
    -------
    dict of numpy.ndarray
        By name, (m, n) float32.

    Raises
    ------
    ValueError
        For a name that is unknown, ``"label"`` without classes, or `WHITE` without `stored`.
    """
    for name in names:
        if name not in NAMES and name not in relevance.METRICS:
            options = " | ".join(f"'{one}'" for one in NAMES)
            raise ValueError(
                f"Unknown kernel {name!r}. Expected one of: {options}, or a metric of gradindex.relevance."
            )
        if name in WHITE and stored is None:
            raise ValueError(f"{name!r} scores the rows of an index: give one that was whitened.")
    kernels = [Kernel(name) for name in names if name in list(Kernel)]
    found: dict[str, Rows] = {}
    if kernels:
        found |= {kernel.value: rows for kernel, rows in gradient_scores(job, x, y, kernels).items()}
    metrics = {name: _METRICS.get(name, name) for name in names}
    metrics = {name: metric for name, metric in metrics.items() if metric in relevance.METRICS}
    for name, metric in zip(metrics, relevance.metrics(list(metrics.values()), job).values(), strict=True):
        found[name] = metric.scores(x, y).astype(np.float32)
    for name in names:
        if name == "label":
            found[name] = same_class(job, y)
        elif name in WHITE and stored is not None:
            found[name] = np.asarray(stored(x, y, name), np.float32)
            if found[name].shape[1] != len(job.source):
                raise ValueError(
                    f"The index scores {found[name].shape[1]} of {len(job.source)} samples: some were removed from it, "
                    "or not added. A bank judges scores of all samples."
                )
    return {name: found[name] for name in names}


def gradient_scores(job: Job, x: Tree, y: Tree, kernels: Sequence[Kernel]) -> dict[Kernel, Rows]:
    """Return exact kernels of gradients (m, n) float32: one scan for as many queries as 1 GiB of gradients holds.

    Parameters
    ----------
    job
        As in `scores`; with checkpoints, gradients are those along training.
    x, y
        As in `scores`.
    kernels
        Which.
    """
    source, engine = job.source, job.engine
    example = source.take(np.arange(min(2, len(source)), dtype=np.int64))
    asked = queries.with_labels(engine, Task(job.task), *queries.match_shapes(x, y, example), example.y)
    found = {kernel: np.empty((len(asked), len(source)), np.float32) for kernel in kernels}
    for rows, gradients, norms in queries.gradient_chunks(engine, asked):
        ids = np.arange(rows.start, rows.stop, dtype=np.int64)
        some = Batch(ids, take_rows(asked.x, rows), take_rows(asked.y, rows))
        for batch, dots, train_norms in exact.scan(engine, source, some, gradients):
            for kernel in kernels:
                found[kernel][rows, batch.ids] = values(kernel, dots, norms, train_norms)
    return found


def same_class(job: Job, y: Tree) -> Rows:
    """Return 1 where a query and a training sample have the same class, else 0, (m, n) float32.

    Raises
    ------
    ValueError
        If labels are no classes.
    """
    train = as_classes(job.source.take(np.arange(len(job.source), dtype=np.int64)).y)
    asked = as_classes(as_array(y))
    if train is None or asked is None or train.dtype.kind == "f":
        raise ValueError("The labels are no classes, so 'label' has no meaning here. Leave it out.")
    return np.asarray(asked[:, None] == train, np.float32)
