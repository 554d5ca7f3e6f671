"""The tests' criteria as plain functions of scores."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def passes(
    scores: Scores, train_classes: NDArray[np.generic], wanted: NDArray[np.generic], k: int = 1
) -> NDArray[np.bool_]:
    """Return, for each query (m,), whether its k most relevant samples all have the class it wants.

    Definitions 3 to 6 of the study. Ties go to the smaller position.

    Parameters
    ----------
    scores
        (m, n), larger is more relevant.
    train_classes, wanted
        (n,) and (m,).
    k
        How many samples have to be right.

    Raises
    ------
    ValueError
        If k is not between 1 and n, or a score is NaN.
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be between 1 and the {scores.shape[1]} training samples, got {k}.")
    if np.isnan(scores).any():
        raise ValueError("Scores hold NaN: the metric is not defined here. Try a larger damping.")
    return agrees(np.argsort(-scores, axis=1, kind="stable")[:, :k], train_classes, wanted)


def agrees(
    ids: NDArray[np.int64], train_classes: NDArray[np.generic], wanted: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """Return, for each query (m,), whether the samples `ids` (m, k) all have the class it wants."""
    found: NDArray[np.bool_] = (train_classes[ids] == wanted[:, None]).all(axis=1)
    return found


def rank_correlation(one: Scores, other: Scores) -> float:
    """Return Spearman's correlation of two rankings (m, n), averaged over the m queries (definition 2).

    A constant row has no ranking: it counts as 0, or as 1 where both are constant.
    """
    from scipy.stats import rankdata

    a, b = (rankdata(scores, axis=1) for scores in (one, other))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    same = (a == b).all(axis=1).astype(np.float64)
    return float(np.divide(dots, scale, out=same, where=scale > 0).mean())


def merge_classes(y: NDArray[np.generic], seed: int) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Return labels merged at random into two classes of as many subclasses as possible, and the assignment.

    Raises
    ------
    ValueError
        If there are fewer than three classes: no class would have subclasses.
    """
    classes = np.unique(y)
    if len(classes) < 3:
        raise ValueError(f"The subclass test merges classes and needs at least 3 of them, got {len(classes)}.")
    sides = np.arange(len(classes)) % 2
    sides = np.random.default_rng(seed).permutation(sides)
    mapping = {int(one): int(side) for one, side in zip(classes, sides, strict=True)}
    return sides[np.searchsorted(classes, y)].astype(np.int64), mapping
