"""What the models of a bank are asked: queries, their loss, and the classes of queries and training samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data import fingerprint
from gradindex.data.dataset_types import as_source
from gradindex.data.labels import as_classes
from gradindex.data.names import LossFunction, Tree
from gradindex.data.samples import as_columns
from gradindex.data.source import length


@dataclass(frozen=True)
class Asked:
    """Queries of a bank, `count` m of them with the hash `sha256`, and the loss of `Bank.build`.

    `classes`: of the training samples (n,) and of the queries (m,); None where they are not known, or no classes.
    """

    queries: Tree
    count: int
    sha256: str
    loss_fn: LossFunction | None
    classes: tuple[NDArray[Any], NDArray[Any]] | None


def ask(queries: Tree, loss_fn: LossFunction | None, dataset: Tree, n: int) -> Asked:
    """Return what models are asked, after looking at it; arguments are those of `Bank.build`.

    Raises
    ------
    TypeError
        If `queries` is no (X, Y) and there is a `loss_fn`, or that is not callable.
    ValueError
        If there are no queries.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}.")
    pair = isinstance(queries, tuple | list) and len(queries) == 2
    if loss_fn is not None and not pair:
        raise TypeError(f"With loss_fn, queries must be (X, Y), got {type(queries).__name__}.")
    tree = as_columns(tuple(queries) if pair else queries, "queries")
    count = length(tree, "queries")
    if count < 1:
        raise ValueError("There are no queries.")
    asked = as_classes(tree[1]) if pair else None
    classes = None
    if dataset is not None and asked is not None:
        source = as_source(dataset)
        known = as_classes(source.take(np.arange(len(source), dtype=np.int64)).y) if len(source) == n else None
        classes = None if known is None or known.dtype.kind == "f" else (known, asked)
    return Asked(queries, count, fingerprint.of_all(tree), loss_fn, classes)


def sha256_of_dataset(dataset: Tree, n: int) -> str:
    """Return the fingerprint of a bank's training samples; raises ValueError unless there are n."""
    source = as_source(dataset)
    if len(source) != n:
        raise ValueError(f"The dataset has {len(source)} samples, and the bank is one of {n}.")
    return fingerprint.fingerprint(source, 0, n)
