"""A ``tf.data.Dataset`` as samples in a fixed order."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import tensorflow as tf

from gradindex.data.names import Tree
from gradindex.data.samples import stack

Batches = Callable[[int, int, int], Iterable[Any]]
_MAKES_ELEMENTS = ("FlatMap", "Interleave", "Unbatch")  # what comes before them says nothing about a batch axis


def stream(dataset: tf.data.Dataset) -> tuple[Batches, int]:
    """Return how to read samples of a ``tf.data.Dataset``, and their number.

    Parameters
    ----------
    dataset
        Elements ``x``, ``(x,)`` or ``(x, y)``, whose parts are tensors or dicts and tuples of tensors. They are
        batches, as Keras's ``fit`` takes them, if the dataset was batched (after the last ``unbatch``), or if it
        comes from a generator and every part has a first axis of unknown length; else they are samples.

    Returns
    -------
    batches
        ``batches(start, stop, size)`` yields the samples `start` to `stop`, `size` at a time, as NumPy arrays
        (a list of arrays where their shapes differ).
    length
        Number of samples; if the dataset does not know it, it is counted by one pass.

    Raises
    ------
    ValueError
        If the dataset has no fixed order, or no end.
    TypeError
        If an element is not made of dense tensors.
    """
    _check_elements(dataset)
    _check_order(dataset)
    samples = dataset.unbatch() if is_batched(dataset) else dataset
    length = _count(dataset, samples)
    fixed = all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(samples.element_spec))

    def batches(start: int, stop: int, size: int) -> Iterator[Tree]:
        part = samples.skip(start).take(stop - start)
        if fixed:
            yield from part.batch(size).prefetch(1).as_numpy_iterator()
            return
        one_by_one = part.as_numpy_iterator()
        while chunk := list(islice(one_by_one, size)):
            yield stack(chunk)

    return batches, length


def is_batched(dataset: tf.data.Dataset) -> bool:
    """Whether the elements of a ``tf.data.Dataset`` are batches."""
    kind = type(dataset).__name__
    inputs = dataset._inputs()
    if "Unbatch" in kind:
        return False
    if "Batch" in kind or "GroupByWindow" in kind:
        return True
    if not inputs or any(name in kind for name in _MAKES_ELEMENTS):
        shapes = [spec.shape for spec in tf.nest.flatten(dataset.element_spec)]
        return all(shape.rank and shape[0] is None for shape in shapes)
    if "DirectedInterleave" in kind:
        inputs = inputs[1:]  # the first one says whose turn it is
    return all(is_batched(one) for one in inputs)


def _count(dataset: tf.data.Dataset, samples: Any) -> int:
    infinite = tf.data.INFINITE_CARDINALITY  # unbatching may lose it
    if infinite in (int(dataset.cardinality()), int(samples.cardinality())):
        raise ValueError("The dataset is infinite. Remove .repeat(), or end it with .take(n).")
    if samples.cardinality() != tf.data.UNKNOWN_CARDINALITY:
        return int(samples.cardinality())
    return int(samples.reduce(tf.constant(0, tf.int64), lambda count, *sample: count + 1))


def _check_elements(dataset: tf.data.Dataset) -> None:
    for spec in tf.nest.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                f"Expected a dataset of dense tensors, got an element of {type(spec).__name__}. "
                "Map it to dense tensors first."
            )


def _check_order(dataset: tf.data.Dataset) -> None:
    """Refuse what gives another order at the next pass, or in the next process: ids are positions."""
    if dataset.options().deterministic is False:
        raise ValueError("The dataset's order is not fixed. Set options.deterministic = True.")
    for one in _chain(dataset):
        kind = type(one).__name__
        reshuffles = "Shuffle" in kind and getattr(one, "_reshuffle_each_iteration", True) is not False
        if reshuffles or (("Shuffle" in kind or "Random" in kind) and not _is_seeded(one)):
            raise ValueError(
                "The dataset is shuffled, so positions in it are not fixed. Leave the shuffling out, or use "
                ".shuffle(…, seed=…, reshuffle_each_iteration=False)."
            )
        if getattr(one, "_deterministic", None) == "false":
            raise ValueError(f"The dataset's order is not fixed ({kind}). Leave deterministic=False out.")


def _is_seeded(random: object) -> bool:
    return any(int(getattr(random, name, 0)) for name in ("_seed", "_seed2"))


def _chain(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    yield dataset
    for one in dataset._inputs():
        yield from _chain(one)
