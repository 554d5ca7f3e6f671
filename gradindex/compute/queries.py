"""Queries: user input to labelled inputs, gradients, norms and unit-norm sketches."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.compute import exact
from gradindex.compute.blocks import default_batch_size
from gradindex.data import labels
from gradindex.data.checks import check_finite
from gradindex.data.samples import as_columns, describe, missing, rebuilt, stack
from gradindex.data.source import Batch, Tree, has_ragged, is_ragged, length, rectangles, take_rows
from gradindex.gradients import loop
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.gradients.projector import Projector
from gradindex.runtime.stages import stage
from gradindex.sketch.unit_rows import normalise
from gradindex.words import Task

_FORWARD_BATCH = 256
_FEW = 8  # queries whose gradients are those of training steps: so few cost little, and need no comparison
MEMORY_BUDGET = 1 << 30  # bytes for the gradients of the queries handled at once


@dataclass(frozen=True)
class Queries:
    """Labelled queries: inputs `x` and labels `y`, trees of m samples.

    `seen` are the model's outputs for the first of them, as far as something else came by them.
    """

    x: Tree
    y: Tree
    seen: list[Floats] = field(default_factory=list, compare=False, repr=False)

    def __len__(self) -> int:
        return length(self.x)

    def outputs(self, engine: Engine) -> Floats:
        """Return the model's outputs (m, …), by a forward pass if they were not seen; raises like `Engine.outputs`."""
        if sum(map(len, self.seen)) == len(self):
            return self.seen[0] if len(self.seen) == 1 else np.concatenate(self.seen)
        return outputs(engine, self.x)

    def predicted_classes(self, engine: Engine) -> NDArray[np.int64] | None:
        """Return the classes (m,) that the model predicts; None if its outputs are no scores of classes."""
        if sum(map(len, self.seen)) == len(self):
            return labels.predicted_classes(self.outputs(engine))
        return predicted_classes(engine, self.x)

    def see(self, begin: int, found: Floats | None) -> None:
        """Keep the outputs for queries from `begin` on, if those for all before them are known; of one shape alone."""
        if found is not None and begin == sum(map(len, self.seen)) and not has_ragged(self.x, None):
            self.seen.append(found)


@stage("labels")
def with_labels(engine: Engine, task: Task, x: Tree, y: Tree, like: Tree) -> Queries:
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
    x = as_columns(x, "X")
    m = length(x, "X")
    if y is None:
        if task is Task.REGRESSION:
            raise ValueError("Regression task requires a target value. 'Y' must be provided.")
        found = outputs(engine, x)
        return Queries(x, labels.from_outputs(found, like, engine.losses, engine.class_axis), [found])
    y = as_columns(y, "Y")
    given = length(y, "Y")
    if given == 1 and m != 1:
        y = take_rows(y, np.zeros(m, np.int64))
    elif given != m:
        raise ValueError(f"X has {m} samples but Y has {given}.")
    return Queries(x, y)


def outputs(engine: Engine, x: Tree) -> Floats:
    """Return the model's outputs (m, …) for `x`, in batches; objects one by one."""
    size = 1 if isinstance(x, list) else _FORWARD_BATCH
    return np.concatenate([engine.outputs(take_rows(x, slice(i, i + size))) for i in range(0, length(x), size)])


def predicted_classes(engine: Engine, x: Tree) -> NDArray[np.int64] | None:
    """Return the classes (m,) that the model predicts for `x`; None if its outputs are no scores of classes."""
    if not has_ragged(x, None):
        return labels.predicted_classes(outputs(engine, x))
    found = np.empty(length(x), np.int64)
    for rows, part, _ in rectangles(x, None, _FORWARD_BATCH):
        classes = labels.predicted_classes(engine.outputs(part))
        if classes is None:
            return None
        found[rows] = classes
    return found


def predicted(engine: Engine, x: Tree, like: Tree) -> NDArray[Any]:
    """Return the labels that the model predicts for `x`, in the form of the training labels `like`."""
    return labels.from_outputs(outputs(engine, x), like, engine.losses, engine.class_axis)


def match_shapes(x: Tree, y: Tree, example: Batch) -> tuple[Tree, Tree | None]:
    """Return queries and labels with a sample axis, after comparing their shapes with training samples.

    Raises
    ------
    ValueError
        If a shape or the parts of a dict or tuple differ (the message names both), or there are no queries.
    """
    x = _match("X", x, example.x)
    if length(x, "X") == 0:
        raise ValueError("There are no queries: X is empty.")
    return x, None if y is None else _typed_like(_match("Y", y, example.y), example.y)


def _match(name: str, value: Any, example: Tree) -> Tree:
    if isinstance(example, list):
        return _match_list(name, value, example)
    if isinstance(example, dict | tuple):
        one_by_one = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping | tuple)
        return _match_parts(name, stack(value, name) if one_by_one else as_columns(value, name), example)
    found = as_columns(list(value) if isinstance(value, tuple) else value, name)
    if isinstance(found, dict | list):
        _check_present(name, found)
        return _match_parts(name, found, example)
    value = found
    want, got = tuple(example.shape[1:]), tuple(value.shape)
    if got == want:
        return value[None]
    if got[1:] == want:
        return value
    if got[1:] in ((), (1,)) and want in ((), (1,)):  # (m,) for (n, 1) labels and the other way round
        return value.reshape(-1, *want)
    sample = got if len(got) <= len(want) else got[1:]
    raise ValueError(f"{name} has samples of shape {sample} but the training data has shape {want}.")


def _match_list(name: str, value: Any, example: list[Any]) -> list[Any]:
    """Return queries where training samples are objects, or arrays that differ in shape."""
    if is_ragged(example):
        return _match_ragged(name, value, len(example[0].shape))
    if hasattr(value, "__array__") and not isinstance(value, type(example[0])):
        value = list(as_columns(value, name))  # an array or a table's column of objects
    elif isinstance(value, tuple) and not isinstance(example[0], tuple):
        value = list(value)
    # One object may itself be a list.
    nested = isinstance(example[0], list)
    several = isinstance(value, list) and not (value and nested and not isinstance(value[0], list))
    found = value if several else [value]
    _check_present(name, found)
    return found


def _check_present(name: str, value: Any) -> None:
    gone = np.flatnonzero(missing(value if isinstance(value, list) else []))
    if len(gone):
        raise ValueError(f"{name} is None for queries {gone[:10].tolist()}: expected one for every query.")


def _match_ragged(name: str, value: object, axes: int) -> list[Any]:
    """Return queries as a list of arrays of so many axes each; their lengths may be any."""
    found = as_columns(list(value) if isinstance(value, tuple) else value, name)
    if not isinstance(found, dict | list) and len(found.shape) in (axes, axes + 1):
        found = list(found if len(found.shape) > axes else found[None])
    parts = found if isinstance(found, list) else [found]
    _check_present(name, parts)
    if wrong := [one for one in parts if not is_ragged([one]) or len(one.shape) != axes]:
        raise ValueError(f"{name} holds {describe(wrong[0])}, but training samples are arrays with {axes} axes each.")
    return parts


def _typed_like(y: Tree, example: Tree) -> Tree:
    """Return labels with the type of the training labels where no value changes: 1 becomes 1.0, or 1.0 becomes 1."""
    if isinstance(y, dict | tuple | list):
        return y
    found, dtype = labels.as_array(y), labels.as_array(example[:1]).dtype
    if found.dtype.kind == "f":
        check_finite(np.arange(len(found)), "label (queries)", found)
    if found.dtype == dtype or not {found.dtype.kind, dtype.kind} <= set("biuf"):
        return y
    cast = found.astype(dtype)
    return cast if (cast == found).all() else y


def _match_parts(name: str, value: Any, example: Tree) -> Tree:
    got, wanted = describe(value), describe(example)
    if got != wanted or not isinstance(example, dict | tuple):
        form = "like that" if isinstance(example, dict | tuple) else f"of shape {tuple(example.shape[1:])}, in an array"
        raise ValueError(f"{name} is {got} but the training data is {wanted}. Give queries {form}.")
    if isinstance(example, dict):
        return {key: _match(f"{name}[{key!r}]", value[key], part) for key, part in example.items()}
    pairs = enumerate(zip(value, example, strict=True))
    return rebuilt(example, [_match(f"{name}[{i}]", *pair) for i, pair in pairs])


def gradient_chunks(
    engine: Engine, queries: Queries, most: int | None = None, by_steps: bool = False
) -> Iterator[tuple[slice, Floats, NDArray[np.float64]]]:
    """Yield (rows, gradients (c, P), norms (c,)) over chunks of queries that fit the memory budget, at most `most`.

    With `by_steps`, gradients are those of training steps; they are in any case where there are few.

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
            ids = np.arange(part.start, part.stop, dtype=np.int64)
            batch = Batch(ids, take_rows(queries.x, part), take_rows(queries.y, part))
            with stage("gradients"):
                if by_steps or len(queries) <= _FEW:
                    found = loop.gradients(engine.of_queries, batch.x, batch.y)
                else:
                    found = exact.gradients_of(engine.of_queries, batch)
            check_finite(ids, "loss (queries)", found.losses)
            check_finite(ids, "gradient (queries)", found.gradients)
            queries.see(part.start, found.outputs)
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
                found = engine.of_queries.embed(take_rows(queries.x, part), take_rows(queries.y, part), projector)
            ids = np.arange(part.start, part.stop, dtype=np.int64)
            check_finite(ids, "loss (queries)", found.losses)
            check_finite(ids, "gradient (queries)", found.norms)
            queries.see(part.start, found.outputs)
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
