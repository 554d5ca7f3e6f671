"""A fingerprint of a dataset: enough to notice that other samples came in the place of those a build began with."""

import hashlib
from typing import Any

import numpy as np

from gradindex.data.names import Leaf
from gradindex.data.source import Source, Tree, leaves
from gradindex.data.tensors import is_torch

_SAMPLES = 16


def fingerprint(source: Source, start: int, stop: int) -> str:
    """Return a sha256 over up to 16 samples `start` to `stop`, evenly spaced, inputs and labels.

    Objects that are neither numbers nor text count by their type only.
    """
    ids = np.unique(np.linspace(start, stop - 1, _SAMPLES).astype(np.int64))
    batch = source.take(ids)
    return of_all((batch.x, batch.y))


def of_all(tree: Tree) -> str:
    """Return a sha256 over all of a tree's leaves; objects count as in `fingerprint`."""
    found = hashlib.sha256()
    for leaf in leaves(tree):
        _update(found, leaf)
    return found.hexdigest()


def _update(found: Any, leaf: Leaf) -> None:
    if isinstance(leaf, list):
        for item in leaf:
            _update(found, item)
        return
    if isinstance(leaf, str | bytes | bool | int | float | None):
        found.update(repr(leaf).encode())
        return
    array = np.asarray(leaf.detach().cpu() if is_torch(leaf) else leaf)
    found.update(f"{type(leaf).__name__ if array.dtype == object else array.dtype} {array.shape}".encode())
    if array.dtype != object:
        found.update(np.ascontiguousarray(array).tobytes())
