"""What samples must be before anything is computed of them: there, with labels, finite; and ids that are integers."""

import numpy as np

from gradindex.data.samples import check_present, describe
from gradindex.data.source import Batch, Ids, is_ragged, named_leaves
from gradindex.data.tensors import are_finite


def as_ids(ids: object) -> Ids:
    """Return `ids` as a flat int64 array.

    Raises
    ------
    TypeError
        If they are not integers.
    IndexError
        If one is 2**63 or more, which no dataset has.
    """
    array = np.atleast_1d(np.asarray(ids))
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"Ids must be integers, got {array.dtype}.")
    if array.size and int(array.max()) >= 1 << 63:
        raise IndexError(f"Ids up to {array.max()} are out of range: they go to 2**63 - 1.")
    return array.astype(np.int64).ravel()


def check_batch(batch: Batch) -> None:
    """Raise ValueError if the batch has no labels, or its inputs or labels hold None, NaN or infinity."""
    if batch.y is None:
        shape = getattr(batch.x, "shape", None)
        got = describe(batch.x) if shape is None else f"an array of shape {tuple(shape[1:])}"
        raise ValueError(
            "The dataset has no labels: expected (X, Y), a tuple of two parts, or samples (x, y), but the input alone "
            f"is there: {got}. A list such as [X, Y] is one of two samples, a tuple of three parts one of three."
        )
    for what, name, tree in (("data", "X", batch.x), ("label", "Y", batch.y)):
        for path, leaf in named_leaves(tree, name):
            check_present(batch.ids, what, path, leaf)
            check_finite(batch.ids, what, leaf)


def check_finite(ids: Ids, what: str, values: object) -> None:
    """Raise ValueError naming the ids whose values hold NaN or infinity."""
    if isinstance(values, list):
        for i, value in zip(ids, values, strict=True) if is_ragged(values) else ():
            check_finite(np.array([i]), what, value[None])
        return
    good = are_finite(values)
    if not good.all():
        bad = ids[~good]
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(f"The {what} of samples {bad[:10].tolist()}{more} holds NaN or infinity.")
