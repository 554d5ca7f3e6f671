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
    a, b = _unit_ranks(one), _unit_ranks(other)
    constant = ~(a.any(axis=1) | b.any(axis=1))
    return float((np.einsum("ij,ij->i", a, b) + constant).mean())


def permuted_deviation(one: Scores, other: Scores) -> float:
    """Return the standard deviation of `rank_correlation` over all permutations of the n samples in `other`.

    One permutation for all queries, so that queries with like rankings count as the few that they are. With A and B
    the centred ranks (m, n), their rows of length 1, the mean over permutations is 0 and the variance is
    ⟨A Aᵀ, B Bᵀ⟩ / (m² (n − 1)), that of Hoeffding (1951), "A combinatorial central limit theorem", whose theorem 3
    makes the distribution normal for many samples.
    """
    a, b = _unit_ranks(one), _unit_ranks(other)
    return float(np.sqrt(max(np.vdot(a @ a.T, b @ b.T), 0) / max(a.shape[1] - 1, 1)) / len(a))


def _unit_ranks(scores: Scores) -> Scores:
    """Return the centred ranks of each row, of length 1; zeros for a constant row."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    found: Scores = np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)
    return found


def chances(train_classes: NDArray[np.generic], wanted: NDArray[np.generic], k: int = 1) -> NDArray[np.float64]:
    """Return, for each query (m,), the probability that the first k of a random ranking all have the class it wants.

    With c of n training samples of that class it is c (c − 1) … (c − k + 1) / (n (n − 1) … (n − k + 1)).
    """
    classes, counts = np.unique(train_classes, return_counts=True)
    known = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    count = np.array([known.get(one, 0) for one in wanted.tolist()], np.float64)
    steps = np.arange(k)
    found: NDArray[np.float64] = np.prod(np.maximum(count[:, None] - steps, 0) / (len(train_classes) - steps), axis=1)
    return found


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
