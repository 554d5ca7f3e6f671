"""Datasets made of others: one behind the other, or some samples of one."""

from collections.abc import Iterator, Sequence

import numpy as np

from gradindex.data.source import Batch, Ids, Source, Tree, concatenate, merge, take_rows


class Chain(Source):
    """Several datasets, one behind the other; `blocks` ends a block where a dataset ends."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources: list[Source] = [
            part for one in sources for part in (one._sources if isinstance(one, Chain) else [one])
        ]
        self._starts = np.cumsum([0, *map(len, self._sources)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions, in that order."""
        self._check(ids)
        number = np.searchsorted(self._starts, ids, "right") - 1
        owners = np.unique(number) if len(ids) else np.zeros(1, int)
        places = [np.flatnonzero(number == owner) for owner in owners]
        parts = [
            self._sources[owner].take(ids[here] - self._starts[owner])
            for owner, here in zip(owners, places, strict=True)
        ]
        order = np.argsort(np.concatenate(places), kind="stable")
        y = None if any(part.y is None for part in parts) else _joined([part.y for part in parts], order)
        return Batch(ids, _joined([part.x for part in parts], order), y)

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield samples `start` to `stop` in order, at most `size` at a time."""
        stop = len(self) if stop is None else stop
        for begin, source in zip(self._starts.tolist(), self._sources, strict=False):
            low, high = max(start - begin, 0), min(stop - begin, len(source))
            for part in source.blocks(size, low, high) if low < high else ():
                yield Batch(part.ids + begin, part.x, part.y)


class Picked(Source):
    """Some samples of a dataset, in a given order."""

    def __init__(self, source: Source, ids: Ids) -> None:
        self._source, self._ids = source, ids

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions among those picked."""
        self._check(ids)
        found = self._source.take(self._ids[ids])
        return Batch(ids, found.x, found.y)


def _joined(trees: list[Tree], order: Ids) -> Tree:
    """Concatenate trees of samples and put the samples in order; a part of another shape makes a list of samples."""
    return take_rows(trees[0] if len(trees) == 1 else merge(concatenate, trees), order)
