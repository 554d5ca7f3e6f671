"""Any dataset as blocks of (ids, x, y) in one fixed order; ids are dataset positions.

`x` and `y` are trees: an array (or tensor) whose first axis is the sample, a ``list`` of objects, or a
dict or tuple of such. A single sample of a tree keeps its first axis, with length 1. Samples whose arrays differ
in shape, such as texts, are a ``list`` of arrays; `rectangles` makes batches of them.
"""

import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tree = Any
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples `ids` (b,) int64 of a dataset, their inputs `x` and labels `y` (None without labels)."""

    ids: Ids
    x: Tree
    y: Tree | None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: slice | NDArray[Any]) -> "Batch":
        """Return the given rows (positions within this batch)."""
        return Batch(self.ids[rows], index(self.x, rows), None if self.y is None else index(self.y, rows))


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch or TensorFlow tensor (neither package is imported to find out)."""
    torch, tensorflow = sys.modules.get("torch"), sys.modules.get("tensorflow")
    return (torch is not None and isinstance(value, torch.Tensor)) or (
        tensorflow is not None and tensorflow.is_tensor(value)
    )


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply `function` to every array, tensor or list of objects in `tree`."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_leaves(function, value) for value in tree)
    return function(tree)


def leaves(tree: Tree) -> list[Any]:
    """Return the arrays, tensors and lists of objects in `tree`, in order."""
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found


def length(tree: Tree) -> int:
    """Return the number of samples in `tree`.

    Raises
    ------
    ValueError
        If its leaves disagree.
    """
    sizes = {len(leaf) for leaf in leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"Parts of the input have different numbers of samples: {sorted(sizes)}.")
    return sizes.pop()


def index(tree: Tree, rows: slice | NDArray[Any]) -> Tree:
    """Return the given rows of every leaf."""

    def take(leaf: Any) -> Any:
        if isinstance(leaf, list):
            return leaf[rows] if isinstance(rows, slice) else [leaf[i] for i in rows]
        if is_tensor(leaf) and not isinstance(rows, slice):
            return leaf[sys.modules["torch"].as_tensor(rows)]
        return leaf[rows]

    return map_leaves(take, tree)


def as_columns(value: Any) -> Tree:
    """Normalise inputs given as whole columns: lists of numbers or arrays become arrays, TF tensors NumPy."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return stack(list(value), as_objects=True)
    if isinstance(value, dict):
        return {key: as_columns(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(as_columns(item) for item in value)
    if is_tensor(value):
        return value if hasattr(value, "detach") else value.numpy()
    return np.asarray(value)


def stack(samples: Sequence[Any], as_objects: bool = False) -> Tree:
    """Collate samples: equal-shaped arrays are stacked, dicts and tuples by part, the rest stays a list."""
    first = samples[0] if samples else None
    if not as_objects and isinstance(first, dict):
        return {key: stack([sample[key] for sample in samples]) for key in first}
    if not as_objects and isinstance(first, tuple):
        return tuple(stack(part) for part in zip(*samples, strict=True))
    if is_tensor(first):
        if len({tuple(sample.shape) for sample in samples}) > 1:
            return list(samples)
        return (
            sys.modules["torch"].stack(list(samples))
            if hasattr(first, "detach")
            else np.stack([sample.numpy() for sample in samples])
        )
    if isinstance(first, dict | tuple | str | bytes):
        return list(samples)
    try:
        stacked = np.asarray(samples)
    except ValueError:
        return _ragged(samples)
    return stacked if stacked.dtype.kind in "biufc" else list(samples)


def _ragged(samples: Sequence[Any]) -> list[Any]:
    """Return samples of several shapes as arrays of one dtype, if they are numbers; else as they are."""
    try:
        arrays = [np.asarray(sample) for sample in samples]
    except ValueError:
        return list(samples)
    if any(array.dtype.kind not in "biufc" or array.ndim == 0 for array in arrays):
        return list(samples)
    dtype = np.result_type(*{array.dtype for array in arrays if array.size})  # an empty list would be of floats
    return [array.astype(dtype, copy=False) for array in arrays]


def is_ragged(leaf: Any) -> bool:
    """Whether `leaf` is a list of arrays or tensors, as samples of several shapes are."""
    return isinstance(leaf, list) and bool(leaf) and all(isinstance(a, np.ndarray) or is_tensor(a) for a in leaf)


def has_ragged(x: Tree, y: Tree | None) -> bool:
    """Whether samples differ in shape in some part."""
    return any(is_ragged(leaf) for leaf in leaves((x, y)))


def rectangles(x: Tree, y: Tree | None, most: int | None = None) -> list[tuple[NDArray[np.intp], Tree, Tree | None]]:
    """Split samples into batches of equal shapes, so that none is padded, each with its rows in `x`.

    The largest batch comes first, so that what is found out from the first batch comes from several samples;
    ties go by shape, and within a batch the order is kept: the same samples always make the same batches.

    Parameters
    ----------
    x, y
        Inputs and labels of b samples; objects that are not arrays stay together.
    most
        Most samples in a batch; None for no limit.
    """
    both = [leaf for leaf in leaves((x, y)) if leaf is not None]
    ragged = [leaf for leaf in both if is_ragged(leaf)]
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i in range(length(x)):
        groups.setdefault(tuple(tuple(leaf[i].shape) for leaf in ragged), []).append(i)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    found = []
    for rows in (np.array(rows, np.intp) for _, rows in ordered):
        for begin in range(0, len(rows), most or len(rows)):
            some = rows[begin : begin + (most or len(rows))]
            found.append((some, _stacked(index(x, some)), None if y is None else _stacked(index(y, some))))
    return found


def _stacked(tree: Tree) -> Tree:
    return map_leaves(lambda leaf: stack(leaf, as_objects=True) if is_ragged(leaf) else leaf, tree)


class Source(ABC):
    """A dataset with a fixed order and a known length."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions, in that order."""

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield samples `start` to `stop` in order, `size` at a time."""
        stop = len(self) if stop is None else stop
        for begin in range(start, stop, size):
            yield self.take(np.arange(begin, min(begin + size, stop), dtype=np.int64))

    def _check(self, ids: Ids) -> None:
        bad = ids[(ids < 0) | (ids >= len(self))]
        if len(bad):
            raise IndexError(f"Ids {bad[:5].tolist()} are out of range for a dataset of {len(self)} samples.")


class ColumnSource(Source):
    """Whole columns in memory: arrays, tensors, lists of objects, or dicts and tuples of them."""

    def __init__(self, x: Any, y: Any = None) -> None:
        self.x = as_columns(x)
        self.y = None if y is None else as_columns(y)
        self._length = length(self.x)
        if self.y is not None and length(self.y) != self._length:
            raise ValueError(f"X has {self._length} samples but Y has {length(self.y)}.")

    def __len__(self) -> int:
        return self._length

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        self._check(ids)
        return Batch(ids, index(self.x, ids), None if self.y is None else index(self.y, ids))


class MapSource(Source):
    """Anything with ``len`` and ``[i] -> (x, y)``: a torch Dataset, a list of pairs.

    Where it has torch's ``__getitems__(positions) -> [(x, y), ...]``, batches are taken by that.
    """

    def __init__(self, items: Any, collate: Callable[[list[Any]], Any] | None = None) -> None:
        self._items = items
        self._collate = collate

    def __len__(self) -> int:
        return len(self._items)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        self._check(ids)
        if not len(ids):
            return Batch(ids, np.empty(0), None)
        several = getattr(self._items, "__getitems__", None)
        samples = [self._items[int(i)] for i in ids] if several is None else list(several(ids.tolist()))
        if len(samples) != len(ids):
            raise ValueError(f"The dataset's __getitems__ returned {len(samples)} samples for {len(ids)} positions.")
        return Batch(ids, *_pair(self._collate(samples) if self._collate else stack(samples)))


class StreamSource(Source):
    """A re-iterable stream in a known order; random access costs a pass.

    `batches(start, stop, size)` must yield the collated samples `start` to `stop`, `size` at a time.
    """

    def __init__(self, batches: Callable[[int, int, int], Iterable[Any]], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield samples `start` to `stop` in order, `size` at a time."""
        stop = len(self) if stop is None else stop
        for raw in self._batches(start, stop, size):
            x, y = _pair(raw)
            x, y = as_columns(x), None if y is None else as_columns(y)
            yield Batch(np.arange(start, start + length(x), dtype=np.int64), x, y)
            start += length(x)
        if start < stop:
            raise ValueError(f"The dataset ended after {start} samples; {stop} were expected.")

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions, found by one pass up to the last of them."""
        self._check(ids)
        wanted, inverse = np.unique(ids, return_inverse=True)
        parts: list[Batch] = []
        if len(wanted):
            for block in self.blocks(1024, int(wanted[0]), int(wanted[-1]) + 1):
                rows = np.flatnonzero(np.isin(block.ids, wanted))
                if len(rows):
                    parts.append(block.select(rows))
        x = _concatenate([part.x for part in parts])
        y = None if parts and parts[0].y is None else _concatenate([part.y for part in parts])
        return Batch(wanted, x, y).select(inverse)


def _concatenate(trees: list[Tree]) -> Tree:
    first = trees[0]
    if isinstance(first, dict):
        return {key: _concatenate([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        return tuple(_concatenate(list(part)) for part in zip(*trees, strict=True))
    if isinstance(first, list):
        return [item for tree in trees for item in tree]
    return np.concatenate(trees)


def _pair(sample: Any) -> tuple[Tree, Tree | None]:
    """Split a collated sample into (x, y)."""
    if isinstance(sample, list | tuple):
        if len(sample) == 2:
            return sample[0], sample[1]
        if len(sample) == 1:
            return sample[0], None
        raise ValueError(
            f"A sample must be (x, y), got {len(sample)} parts. Put several inputs into a tuple or dict: ((a, b), y)."
        )
    return sample, None


def as_source(dataset: Any) -> Source:
    """Turn a user's dataset into a `Source`.

    Parameters
    ----------
    dataset
        ``(X, Y)`` or ``(X,)`` columns as a tuple; a torch ``Dataset``; a torch ``DataLoader`` (its dataset in
        order and its ``collate_fn``; its sampler is ignored, since ids are dataset positions); a
        ``tf.data.Dataset``, batched or not; a Hugging Face ``datasets.Dataset`` with a column ``label`` or ``labels``
        (see `gradindex.hugging_face.source`); or any sequence of ``(x, y)`` samples.

    Raises
    ------
    ValueError
        If the dataset is empty, or its order is not fixed.
    TypeError
        If it is none of these.
    """
    source = _as_source(dataset)
    if len(source) == 0:
        raise ValueError("The dataset is empty: there is nothing to embed.")
    return source


def _as_source(dataset: Any) -> Source:
    if isinstance(dataset, Source):
        return dataset
    if isinstance(dataset, tuple) and len(dataset) in (1, 2):
        return ColumnSource(*dataset)
    if isinstance(dataset, np.ndarray):
        return ColumnSource(dataset)
    from gradindex import hugging_face

    if hugging_face.is_dataset(dataset):
        return hugging_face.source(dataset)
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(dataset, tensorflow.data.Dataset):
        from gradindex.gradients.tensorflow_data import stream

        return StreamSource(*stream(dataset))
    collate = None
    if hasattr(dataset, "dataset") and hasattr(dataset, "collate_fn"):
        dataset, collate = dataset.dataset, dataset.collate_fn
    torch_data = sys.modules.get("torch.utils.data")
    streams = torch_data is not None and isinstance(dataset, torch_data.IterableDataset)
    streams = streams or (hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"))
    if streams and hasattr(dataset, "__len__"):
        return _iterable(dataset, collate or stack)
    if not streams and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return MapSource(dataset, collate)
    if streams:
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} has no length. Give it a __len__, so that ids and shards "
            "are fixed before the first sample is read."
        )
    raise TypeError(
        f"Cannot read a dataset of type {type(dataset).__name__}. Expected (X, Y) arrays, a torch Dataset or "
        "DataLoader, a tf.data.Dataset, or a sequence of (x, y) samples."
    )


def _iterable(dataset: Any, collate: Callable[[list[Any]], Any]) -> StreamSource:
    def batches(start: int, stop: int, size: int) -> Iterator[Any]:
        samples = itertools.islice(iter(dataset), start, stop)
        while chunk := list(itertools.islice(samples, size)):
            yield collate(chunk)

    return StreamSource(batches, len(dataset))
