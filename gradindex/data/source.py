"""Any dataset as blocks of (ids, x, y) in one fixed order; ids are dataset positions.

`x` and `y` are trees: an array (or tensor) whose first axis is the sample, a ``list`` of objects, or a
dict or tuple of such. A single sample of a tree keeps its first axis, with length 1. Samples whose arrays differ
in shape, such as texts, are a ``list`` of arrays; `rectangles` makes batches of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data import tensors
from gradindex.data.names import Leaf
from gradindex.data.names import Tree as Tree
from gradindex.data.samples import (
    as_columns,
    check_present,
    column,
    describe,
    is_pair,
    native,
    rebuilt,
    stack,
)
from gradindex.data.tensors import is_tensor, take

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
        return Batch(self.ids[rows], take_rows(self.x, rows), None if self.y is None else take_rows(self.y, rows))


def map_leaves(function: Callable[[Leaf], Leaf], tree: Tree) -> Tree:
    """Apply `function` to every array, tensor or list of objects in `tree`."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return rebuilt(tree, [map_leaves(function, value) for value in tree])
    return function(tree)


def merge(function: Callable[[list[Leaf]], Leaf], trees: Sequence[Tree]) -> Tree:
    """Apply `function` to each list of leaves that have the same place in `trees`.

    Raises
    ------
    ValueError
        If the trees differ in their parts.
    """
    first = trees[0]
    kinds = [describe(tree) if isinstance(tree, Mapping | tuple) else "one array or list" for tree in trees]
    if other := next((kind for kind in kinds if kind != kinds[0]), None):
        raise ValueError(f"Some samples are {kinds[0]}, others {other}. Give all of them the same parts.")
    if not isinstance(first, Mapping | tuple):
        return function(list(trees))
    if isinstance(first, Mapping):
        return {key: merge(function, [tree[key] for tree in trees]) for key in first}
    return rebuilt(first, [merge(function, part) for part in zip(*trees, strict=True)])


def named_leaves(tree: Tree, name: str) -> Iterator[tuple[str, Leaf]]:
    """Yield the leaves of a tree that is called `name`, each with what messages call it, such as ``X['ids']``."""
    if not isinstance(tree, Mapping | tuple):
        yield name, tree
        return
    for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from named_leaves(part, f"{name}[{key!r}]")


def leaves(tree: Tree) -> list[Leaf]:
    """Return the arrays, tensors and lists of objects in `tree`, in order."""
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found


def length(tree: Tree, name: str = "The input") -> int:
    """Return the number of samples in `tree`, which messages call `name`.

    Raises
    ------
    ValueError
        If its leaves disagree, one is a single number, or there is none.
    """
    sizes = {}
    for path, leaf in named_leaves(tree, name):
        if not isinstance(leaf, list) and not getattr(leaf, "shape", ()):
            raise ValueError(f"{path} is a single value: expected a first axis with an entry for each sample.")
        sizes[path] = len(leaf)
    found = sorted(set(sizes.values()))
    if len(found) > 1:
        each = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise ValueError(f"Parts of the input have different numbers of samples: {found} ({each}).")
    if not found:
        raise ValueError(f"{name} is {describe(tree)} without any part: expected arrays with an entry for each sample.")
    return found[0]


def take_rows(tree: Tree, rows: slice | NDArray[Any]) -> Tree:
    """Return the given rows of every leaf."""

    def some(leaf: Leaf) -> Leaf:
        if isinstance(leaf, list):
            return leaf[rows] if isinstance(rows, slice) else [leaf[i] for i in rows]
        return native(take(leaf, rows))

    return map_leaves(some, tree)


index = take_rows  # the name that it had


def is_ragged(leaf: Leaf) -> bool:
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
            found.append((some, _stacked(take_rows(x, some)), None if y is None else _stacked(take_rows(y, some))))
    return found


def _stacked(tree: Tree) -> Tree:
    return map_leaves(lambda leaf: column(leaf) if is_ragged(leaf) else leaf, tree)


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

    def __init__(self, x: Tree, y: Tree = None) -> None:
        self.x = as_columns(x, "X")
        self.y = None if y is None else as_columns(y, "Y")
        self._length = length(self.x, "X")
        if self.y is not None and length(self.y, "Y") != self._length:
            raise ValueError(f"X has {self._length} samples but Y has {length(self.y)}.")
        for what, name, tree in (("data", "X", self.x), ("label", "Y", self.y)):
            for path, leaf in named_leaves(tree, name):
                check_present(np.arange(self._length), what, path, leaf)

    def __len__(self) -> int:
        return self._length

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        self._check(ids)
        return Batch(ids, take_rows(self.x, ids), None if self.y is None else take_rows(self.y, ids))


class MapSource(Source):
    """Anything with ``len`` and ``[i] -> (x, y)``: a torch Dataset, a list of pairs.

    Where it has torch's ``__getitems__(positions) -> [(x, y), ...]``, batches are taken by that.
    """

    def __init__(self, items: Any, collate: Callable[[list[Tree]], Tree] | None = None) -> None:
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
        samples = [self._sample(int(i)) for i in ids] if several is None else list(several(ids.tolist()))
        if len(samples) != len(ids):
            raise ValueError(f"The dataset's __getitems__ returned {len(samples)} samples for {len(ids)} positions.")
        batch = Batch(ids, *(collated(samples) if self._collate is None else _pair(self._collate(samples))))
        sizes = {len(leaf) for leaf in leaves(batch.x) if isinstance(leaf, list) or leaf.shape}
        if sizes - {len(ids)}:
            raise ValueError(f"The collate function made {sorted(sizes)} entries for {len(ids)} samples.")
        return batch

    def _sample(self, position: int) -> Tree:
        try:
            return self._items[position]
        except LookupError as error:
            raise TypeError(
                f"The dataset ({type(self._items).__name__}) of {len(self)} samples fails at [{position}], "
                f"{type(error).__name__}: {error}. Expected a sample (x, y) at each position."
            ) from error


class StreamSource(Source):
    """A re-iterable stream in a known order; random access costs a pass.

    `batches(start, stop, size)` must yield the collated samples `start` to `stop`, `size` at a time.
    """

    def __init__(self, batches: Callable[[int, int, int], Iterable[Tree]], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield samples `start` to `stop` in order, `size` at a time."""
        stop = len(self) if stop is None else stop
        for raw in self._batches(start, stop, size):
            x, y = _pair(raw)
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
        x = merge(concatenate, [part.x for part in parts])
        y = None if parts and parts[0].y is None else merge(concatenate, [part.y for part in parts])
        return Batch(wanted, x, y).select(inverse)


def concatenate(parts: list[Leaf]) -> Leaf:
    """Return leaves of several trees one behind the other; those of several shapes as a list of samples."""
    shapes = {None if isinstance(part, list) else tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1 or None in shapes:
        return [sample for part in parts for sample in part]
    return tensors.concatenate(parts)


def collated(samples: list[Tree]) -> tuple[Tree, Tree | None]:
    """Collate samples ``(x, y)``, ``[x, y]``, ``(x,)`` or ``x``."""
    found = stack([tuple(sample) if is_pair(sample) else sample for sample in samples])
    return _pair(found) if isinstance(found, tuple) else (found, None)


def _pair(batch: Tree) -> tuple[Tree, Tree | None]:
    """Split a collated batch into (x, y), in the forms of trees."""
    parts = batch if isinstance(batch, list | tuple) else (batch,)
    if len(parts) not in (1, 2):
        raise ValueError(
            f"A sample must be (x, y), got {len(parts)} parts. Put several inputs into a tuple or dict: ((a, b), y)."
        )
    y = parts[1] if len(parts) == 2 else None
    return as_columns(parts[0], "X"), None if y is None else as_columns(y, "Y")
