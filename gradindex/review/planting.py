"""How many of the labels that a review ranks first are wrong: an estimate from labels planted wrong on purpose.

A tenth of the labels is changed. How a cross-validated classifier and the nearest vectors see these samples says what
wrong labels look like. Where planted labels are ρ times as frequent as the others, one of the others is wrong with the
probability π ρ, with π the share of wrong labels among them. This is learning from positive and unlabelled samples
(Elkan and Noto 2008, "Learning Classifiers from Only Positive and Unlabeled Data").

The model is not trained on what is planted, so its loss and gradients would take planted labels for too wrong: they are
left out here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradindex.review import out_of_sample, votes
from gradindex.review.combine import rank_logits
from gradindex.review.evidence import SMALLEST, Evidence

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PLANTED = 0.1


@dataclass(frozen=True)
class Estimate:
    """Estimated numbers of wrong labels.

    Parameters
    ----------
    precision
        Among the first 1, 2, …, n samples of an order, the share of wrong labels, (n,); NaN where nothing was planted.
    share
        Among all; NaN likewise.
    how
        A sentence on how it was got.
    """

    precision: Floats
    share: float
    how: str


def estimate(evidence: Evidence, order: Ints) -> Estimate:
    """Estimate the share of wrong labels among the first samples of an order.

    Twice a tenth of the labels is planted, drawn by the evidence's seed: once any other class, once the class that
    cross-validated classifiers find most likely beside the sample's own. Wrong labels of the first kind are easy to
    see, of the second hard; the mean of the two is given.

    Parameters
    ----------
    evidence
        Of samples with classes.
    order
        Places (n,) of all samples, first the likeliest to be wrong.
    """
    labels, spaces = evidence.labels, [space for space in ("inputs", "hidden") if space in evidence.vectors]
    assert labels is not None
    if not spaces:
        nothing = np.full(len(order), np.nan)
        return Estimate(nothing, float("nan"), "Nothing was planted: the samples have no vectors to compare.")
    space, random = spaces[0], np.random.default_rng(evidence.seed)
    planted = np.zeros(len(labels), bool)
    planted[random.choice(len(labels), max(1, round(PLANTED * len(labels))), replace=False)] = True
    rows, classes = np.arange(len(labels)), len(evidence.classes)
    others = evidence.probabilities[space].copy()
    others[rows, labels] = -1
    found, shares = [], []
    for wrong in ((labels + random.integers(1, classes, len(labels))) % classes, others.argmax(axis=1)):
        given = np.where(planted, wrong, labels).astype(np.int64)
        each, share = wrong_by(_looks(evidence, space, given), planted)
        found.append(each)
        shares.append(share)
    each = np.where(planted, 0, np.mean(found, axis=0))[order]
    kept = np.cumsum(~planted[order])
    precision = np.cumsum(each) / np.maximum(kept, 1)
    precision[kept == 0] = each[~planted[order]][0]  # the first were planted all: as the next one
    how = (
        f"The precision is an estimate: {planted.sum():,} labels were planted wrong, twice, and compared with the "
        f"others by their nearest {space} and by a cross-validated classifier. It is too low where wrong labels are of "
        "the kind that fools a classifier."
    )
    return Estimate(precision, float(np.mean(shares)), how)


def wrong_by(looks: Floats, planted: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Return the probability (n,) that a label that was not planted is wrong, and the share of those that are.

    ρ(s), how much more frequent planted labels are at a look s, is that of an isotonic regression. The share is
    P(s ≥ m) of labels that were not planted over P(s ≥ m) of those that were, ½, with m the median of planted labels.

    Parameters
    ----------
    looks
        How wrong each label looks, (n,).
    planted
        Which are planted, (n,), some and not all.
    """
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (2 * len(looks))
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(looks, planted)
    chance = np.asarray(fitted.predict(looks))
    rate = planted.mean()
    ratio = chance / (1 - chance) * (1 - rate) / rate
    middle = np.median(looks[planted])
    share = float(min(1, (looks[~planted] >= middle).mean() / (looks[planted] >= middle).mean()))
    return np.clip(share * ratio, 0, 1), share


def _looks(evidence: Evidence, space: str, labels: Ints) -> Floats:
    """Return how wrong labels (n,) look by the nearest vectors and by a cross-validated classifier."""
    classes = len(evidence.classes)
    near = votes.lead(votes.shares(evidence.near[space].places, labels, classes), labels)
    chances = out_of_sample.probabilities(evidence.vectors[space], labels, classes, evidence.seed)
    model = votes.lead(np.log(np.maximum(chances, SMALLEST)), labels)
    return 0.5 * rank_logits(near) + rank_logits(model)
