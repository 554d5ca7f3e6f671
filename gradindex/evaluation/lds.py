"""The linear datamodeling score, and the most that any prediction could reach.

LDS (Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", section 2, after Ilyas et al. 2022, "Datamodels"):
train on random subsets of the training set; of each query, rank the subsets by the sum of the scores of their members,
and by minus the query's mean loss over the models trained on them; LDS is Spearman's correlation of the two rankings,
averaged over queries.

The noise ceiling: models of one subset differ by their seeds, so even a prediction without any noise correlates with
the mean loss of M models by √ρ at most, ρ the reliability of that mean. The means of two halves of a subset's models
agree over subsets with correlation r; by Spearman (1910) and Brown (1910) ρ = k r / (1 + (k − 1) r), k = M / (M // 2).
Here r is the mean over queries, whose √ρ is at least the mean of the queries' own: the ceiling errs upwards, and the
share of it that a kernel reaches downwards. Both formulas are those of Pearson's correlation, here of ranks.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradindex.defaults import SEED
from gradindex.evaluation import rank_agreement
from gradindex.evaluation.rank_agreement import Resamples, Scores, Values

FEWEST_SUBSETS = 4  # fewer than that rank nothing
_DIGITS = 12


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, `low` to `high`, over queries and subsets drawn anew."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @classmethod
    def of(cls, value: float, resampled: Values, least: float = -np.inf, most: float = np.inf) -> "Estimate":
        """Return a value with the interval that its values (B,) in resamples give, cut at what it can be."""
        low, high = rank_agreement.interval(value, resampled)
        return cls(float(value), max(low, least), min(high, most))


@dataclass(frozen=True)
class LDS:
    """The linear datamodeling score of one kernel.

    `estimate` with its interval; `of_queries` (m,) float64, each query's rank correlation; `ceiling`, the noise
    ceiling, None with one model a subset; `constant`: how many queries have the same predicted sum, or the same loss,
    for all subsets, and so count as 0; `subsets` that were ranked, and `models` trained on each at most.
    """

    estimate: Estimate
    of_queries: Values = field(repr=False)
    ceiling: Estimate | None
    constant: int
    subsets: int
    models: int
    resampled: Values = field(repr=False)

    @property
    def value(self) -> float:
        """The score, between −1 and 1."""
        return self.estimate.value

    @property
    def share(self) -> float | None:
        """Which part of the noise ceiling is reached; None without one, or where it is 0."""
        return self.value / self.ceiling.value if self.ceiling is not None and self.ceiling.value > 0 else None

    def to_dict(self) -> dict[str, object]:
        """Return everything but resamples as JSON's types."""
        return {
            "lds": dataclasses.asdict(self.estimate),
            "ceiling": None if self.ceiling is None else dataclasses.asdict(self.ceiling),
            "share_of_ceiling": self.share,
            "constant": self.constant,
            "subsets": self.subsets,
            "models": self.models,
            "queries": [float(one) for one in self.of_queries],
        }


class Truth:
    """What happened to some queries in a bank: mean losses of the subsets, the ceiling, and resamples of both.

    Parameters
    ----------
    masks
        Who is in which subset, (S, n) bool.
    losses
        Of each subset, model and query, (S, M, m) float64; NaN for models that failed. Subsets without any model are
        left out; for the ceiling, those without all of them.
    seed
        Of the resamples.

    Raises
    ------
    ValueError
        If fewer than 4 subsets have a model.
    """

    def __init__(self, masks: NDArray[np.bool_], losses: Values, seed: int = SEED) -> None:
        trained = is_trained(losses)
        kept = np.asarray(trained.any(axis=1))
        if kept.sum() < FEWEST_SUBSETS:
            raise ValueError(
                f"Only {int(kept.sum())} of {len(kept)} subsets have a trained model, and at least {FEWEST_SUBSETS} "
                "are needed."
            )
        self.masks = masks[kept]
        self.models = losses.shape[1]
        self.actual = -np.nanmean(np.where(trained[:, :, None], losses, np.nan)[kept], axis=1).T
        self.resamples = Resamples.draw(len(self.actual), len(self.masks), seed=seed)
        self.ceiling = _ceiling(losses[trained.all(axis=1)], seed)

    def judge(self, scores: Mapping[str, Scores]) -> dict[str, LDS]:
        """Return the LDS of several kernels' scores (m, n), judged in the same resamples.

        Raises
        ------
        ValueError
            If scores have another shape, or are not finite.
        """
        shape = (len(self.actual), self.masks.shape[1])
        for name, one in scores.items():
            if one.shape != shape:
                raise ValueError(
                    f"The scores of {name!r} have shape {one.shape}; expected (queries, samples) = {shape}."
                )
            if not np.isfinite(one).all():
                raise ValueError(f"{int((~np.isfinite(one)).sum())} scores of {name!r} are not finite.")
        sums = [_sums(one.astype(np.float64), self.masks) for one in scores.values()]
        values = rank_agreement.correlations(self.actual, sums)
        resampled = rank_agreement.correlations(self.actual, sums, self.resamples.subsets)
        flat = rank_agreement.is_constant(self.actual)
        found = {}
        for name, total, value, again in zip(scores, sums, values, resampled, strict=True):
            means = self.resamples.mean(again)
            found[name] = LDS(
                Estimate.of(value.mean(), means, -1, 1),
                value[:, 0],
                self.ceiling,
                int((flat | rank_agreement.is_constant(total)).sum()),
                len(self.masks),
                self.models,
                means,
            )
        return found


def is_trained(losses: Values) -> NDArray[np.bool_]:
    """Return which models (S, M) have losses (S, M, m), and so did not fail."""
    return np.asarray(np.isfinite(losses).all(axis=2))


def _sums(scores: Values, masks: NDArray[np.bool_]) -> Values:
    """Return the summed scores of each subset's members (m, S), over the sum of all magnitudes.

    Rounded to `_DIGITS` places, so that sums of equal scores are equal whatever the order of summation.
    """
    scale = np.abs(scores).sum(axis=1, keepdims=True)
    sums: Values = np.round(scores @ masks.T.astype(np.float64) / np.where(scale > 0, scale, 1), _DIGITS)
    return sums


def _ceiling(losses: Values, seed: int) -> Estimate | None:
    if len(losses) < FEWEST_SUBSETS:
        return None
    resamples = Resamples.draw(losses.shape[2], len(losses), seed=seed)
    whole = rank_agreement.ceiling(losses, seed=seed)
    again = rank_agreement.ceiling(losses, resamples.subsets, seed)
    if whole is None or again is None:
        return None
    (agreement, factor), means = whole, resamples.mean(again[0])
    value = np.sqrt(rank_agreement.reliability(agreement.mean(axis=0), factor))
    return Estimate.of(value[0], np.sqrt(rank_agreement.reliability(means, factor)), 0, 1)
