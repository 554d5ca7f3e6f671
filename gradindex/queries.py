"""Queries: user input to labelled inputs, gradients, norms and unit-norm sketches."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import exact, labels
from gradindex.batches import Batch, Tree, as_columns, index, length
from gradindex.embedding import check_finite, default_batch_size
from gradindex.gradients.base import Engine, Floats, Projector
from gradindex.kernels import Task
from gradindex.store.shard import normalise
from gradindex.timing import stage

_FORWARD_BATCH = 256
MEMORY_BUDGET = 1 << 30  # bytes for the gradients of the queries handled at once


@dataclass(frozen=True)
class Queries:
    """Labelled queries: inputs `x` and labels `y`, trees of m samples."""

    x: Tree
    y: Tree

    def __len__(self) -> int:
        return length(self.x)


@stage("labels")
def with_labels(engine: Engine, task: Task, x: Tree, y: Any, like: Any) -> Queries:
    """Return queries with their labels: given ones, one for all, or the model's own predictions.

    Parameters
    ----------
    engine
        The model.
    task
        For regression a label must be given.
    x
        Inputs of m samples.
    y
        Labels of m samples, of one (used for all), or None.
    like
        Some training labels, whose form predicted labels take.

    Raises
    ------
    ValueError
        If `y` is missing for regression, or its number is neither 1 nor m.
    """
    x = as_columns(x)
    m = length(x)
    if y is None:
        if task is Task.REGRESSION:
            raise ValueError("Regression task requires a target value. 'Y' must be provided.")
        return Queries(x, predicted(engine, x, like))
    y = as_columns(y)
    given = length(y)
    if given == 1 and m != 1:
        y = index(y, np.zeros(m, np.int64))
    elif given != m:
        raise ValueError(f"X has {m} samples but Y has {given}.")
    return Queries(x, y)


def outputs(engine: Engine, x: Tree) -> Floats:
    """Return the model's outputs (m, …) for `x`, in batches; objects one by one."""
    size = 1 if isinstance(x, list) else _FORWARD_BATCH
    return np.concatenate([engine.outputs(index(x, slice(i, i + size))) for i in range(0, length(x), size)])


def predicted(engine: Engine, x: Tree, like: Any) -> NDArray[Any]:
    """Return the labels that the model predicts for `x`, in the form of the training labels `like`."""
    return labels.from_outputs(outputs(engine, x), like, engine.losses, engine.class_axis)


def match_shapes(x: Any, y: Any, example: Batch) -> tuple[Tree, Tree | None]:
    """Return queries and labels with a sample axis, after comparing their shapes with training samples.

    Raises
    ------
    ValueError
        If a shape or the parts of a dict or tuple differ (the message names both), or there are no queries.
    """
    x = _match("X", x, example.x)
    if length(x) == 0:
        raise ValueError("There are no queries: X is empty.")
    return x, None if y is None else _typed_like(_match("Y", y, example.y), example.y)


def _match(name: str, value: Any, example: Tree) -> Tree:
    if isinstance(example, list):
        # One object may itself be a list.
        several = isinstance(value, list) and not (
            value and isinstance(example[0], list) and not isinstance(value[0], list)
        )
        return value if several else [value]
    value = as_columns(value)
    if isinstance(example, dict | tuple) or isinstance(value, dict | tuple | list):
        return _match_parts(name, value, example)
    want, got = tuple(example.shape[1:]), tuple(value.shape)
    if got == want:
        return value[None]
    if got[1:] == want:
        return value
    if got[1:] in ((), (1,)) and want in ((), (1,)):  # (m,) for (n, 1) labels and the other way round
        return value.reshape(-1, *want)
    sample = got if len(got) <= len(want) else got[1:]
    raise ValueError(f"{name} has samples of shape {sample} but the training data has shape {want}.")


def _typed_like(y: Tree, example: Tree) -> Tree:
    """Return labels with the type of the training labels where no value changes: 1 becomes 1.0, or 1.0 becomes 1."""
    if isinstance(y, dict | tuple | list):
        return y
    found, dtype = labels.as_array(y), labels.as_array(example[:1]).dtype
    if found.dtype == dtype or not {found.dtype.kind, dtype.kind} <= set("biuf"):
        return y
    with np.errstate(invalid="ignore"):  # NaN has no integer, and is then refused elsewhere
        cast = found.astype(dtype)
    return cast if (cast == found).all() else y


def _match_parts(name: str, value: Any, example: Tree) -> Tree:
    keys, wanted = _keys(value), _keys(example)
    if type(value) is not type(example) or keys != wanted:
        raise ValueError(f"{name} is {keys} but the training data is {wanted}.")
    if isinstance(example, dict):
        return {key: _match(f"{name}[{key!r}]", value[key], part) for key, part in example.items()}
    return tuple(_match(f"{name}[{i}]", *parts) for i, parts in enumerate(zip(value, example, strict=True)))


def _keys(tree: Tree) -> str:
    """Return a tree's kind and parts, for comparisons and messages."""
    if isinstance(tree, dict):
        return f"a dict of {sorted(map(str, tree))}"
    return f"a tuple of {len(tree)}" if isinstance(tree, tuple) else f"a {type(tree).__name__}"


def gradient_chunks(
    engine: Engine, queries: Queries, most: int | None = None
) -> Iterator[tuple[slice, Floats, NDArray[np.float64]]]:
    """Yield (rows, gradients (c, P), norms (c,)) over chunks of queries that fit the memory budget, at most `most`.

    Raises
    ------
    ValueError
        If inputs, losses or gradients hold NaN or infinity.
    """
    chunk = max(1, MEMORY_BUDGET // (engine.size * engine.dtype.itemsize))
    chunk = chunk if most is None else min(chunk, most)
    size = min(default_batch_size(engine), chunk)
    for begin in range(0, len(queries), chunk):
        rows = slice(begin, min(begin + chunk, len(queries)))
        parts = []
        for i in range(rows.start, rows.stop, size):
            part = slice(i, min(i + size, rows.stop))
            with stage("gradients"):
                found = engine.of_queries.gradients(index(queries.x, part), index(queries.y, part))
            ids = np.arange(part.start, part.stop, dtype=np.int64)
            check_finite(ids, "loss (queries)", found.losses)
            check_finite(ids, "gradient (queries)", found.gradients)
            parts.append(found.gradients)
        gradients = parts[0] if len(parts) == 1 else np.concatenate(parts)
        norms = exact.norms(gradients)
        _warn_of_zeros(norms, begin)
        yield rows, gradients, norms


def sketch_chunks(
    engine: Engine, queries: Queries, projector: Projector, size: int, most: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float64]]]:
    """Yield (rows, unit-norm sketches (c, width), norms (c,)) over chunks of at most `most` queries.

    As training samples are embedded, `size` at once: no gradient is formed that has not to be. Raises like
    `gradient_chunks`.
    """
    for begin in range(0, len(queries), most):
        rows = slice(begin, min(begin + most, len(queries)))
        sketches, norms = [], []
        for i in range(rows.start, rows.stop, size):
            part = slice(i, min(i + size, rows.stop))
            with stage("gradients"):
                found = engine.of_queries.embed(index(queries.x, part), index(queries.y, part), projector)
            ids = np.arange(part.start, part.stop, dtype=np.int64)
            check_finite(ids, "loss (queries)", found.losses)
            check_finite(ids, "gradient (queries)", found.norms)
            sketches.append(normalise(projector.finish(found.sketches, found.norms)))
            norms.append(found.norms)
        _warn_of_zeros(np.concatenate(norms), begin)
        yield rows, np.concatenate(sketches), np.concatenate(norms)


def _warn_of_zeros(norms: NDArray[np.float64], begin: int) -> None:
    if (norms == 0).any():
        zero = np.flatnonzero(norms == 0) + begin
        warnings.warn(
            f"The gradient of queries {zero[:10].tolist()} is zero; all their scores are 0.",
            UserWarning,
            stacklevel=4,
        )
