"""Building a FAISS index over a store's rows, and adding rows to one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.ann import files, operating_point
from gradindex.ann.plan import new_index, plan, training_rows, unfold
from gradindex.ann.searcher import as_vectors, inverted
from gradindex.defaults import BLOCK_ROWS
from gradindex.store import Store

if TYPE_CHECKING:
    import faiss


def add(index: "faiss.Index", store: Store, dim: int, advance: Callable[[int], None], first: int = 0) -> None:
    """Add the rows of a store from `first` on, folded to `dim` numbers, to a trained index."""
    at_once: list[NDArray[np.float32]] = []
    for _, rows in store.blocks(first=first):
        vectors = as_vectors(rows, dim)
        if operating_point.grows(index):
            index.add(vectors)
        else:
            at_once.append(vectors)
        advance(len(rows))
    if at_once:
        index.add(np.concatenate(at_once))


def build(
    store: Store,
    index: str,
    seed: int,
    advance: Callable[[int], None] = lambda rows: None,
    adding: "Callable[[faiss.Index, Store, int, Callable[[int], None]], None]" = add,
) -> None:
    """Build and save the FAISS index of a store.

    Parameters
    ----------
    store
        A complete store.
    index
        ``'auto'`` or a FAISS factory string.
    seed
        Chooses the rows that a quantiser is trained on.
    advance
        Called with the number of rows added.
    adding
        Does what `add` does.

    Raises
    ------
    ValueError
        If FAISS does not know the string, or cannot train it on this many rows.
    """
    factory, dim = plan(store.header, index, len(store))
    built = new_index(unfold(factory, dim)[1], dim)
    if not built.is_trained:
        _train(built, factory, store, dim, seed)
    adding(built, store, dim, advance)
    files.save(store, built, factory)


def extend(before: Store, after: Store) -> None:
    """Save the index of `after`, which has the rows of `before` and more: that of `before` with those rows added.

    Raises
    ------
    DamagedIndexError
        If the index of `before` is damaged.
    """
    searcher = files.load(before, mapped=False)
    if operating_point.grows(searcher.index):
        add(searcher.index, after, searcher.dim, lambda rows: None, len(before))
        files.save(after, searcher.index, searcher.factory)
    else:
        build(after, searcher.factory, after.header.seed)


def _train(index: "faiss.Index", factory: str, store: Store, dim: int, seed: int) -> None:
    lists = getattr(inverted(index), "nlist", 256)
    size = training_rows(len(store), lists)
    chosen = np.sort(np.random.default_rng(seed).choice(len(store), size, replace=False))
    rows = np.empty((size, dim), np.float32)
    for at in range(0, size, BLOCK_ROWS):  # wide rows are folded before the next ones are read
        some = slice(at, at + BLOCK_ROWS)
        rows[some] = as_vectors(store.gather(chosen[some]), dim)
        store.release()
    try:
        index.train(rows)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"FAISS cannot train {factory!r} on {len(store)} rows: {reason}") from None
