"""One score of a wrong label from many signs: weights that were fitted to labels planted wrong on purpose.

Networks were trained on data of which some labels had been changed, and the signs of every sample were taken as a
review takes them, so that the weights are those of models that have learned from wrong labels. The data were others
than those the score is judged on; ``python benchmarks/review.py --part tune`` fits the weights anew.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WEIGHTS: dict[str, dict[str, float]] = {
    "hidden and inputs": {
        "loss": 0.146,
        "self-influence": 0.0,
        "opponents": 0.173,
        "hidden neighbours": 0.112,
        "hidden model": 0.0,
        "inputs neighbours": 0.305,
        "inputs model": 0.264,
    },
    "hidden": {
        "loss": 0.386,
        "self-influence": 0.0,
        "opponents": 0.335,
        "hidden neighbours": 0.279,
        "hidden model": 0.0,
    },
    "inputs": {
        "loss": 0.207,
        "self-influence": 0.0,
        "opponents": 0.201,
        "inputs neighbours": 0.322,
        "inputs model": 0.27,
    },
}
"""Of each sign, by the spaces of vectors that there are; from benchmarks/results/review_weights.json."""


def score(signs: Mapping[str, Floats], weights: Mapping[str, float] | None = None) -> Floats:
    """Return a score (n,) between 0 and 1, larger for labels that are rather wrong.

    It is a weighted mean of the signs' ranks: 1 / (1 + exp(−Σ w log(r / (1 − r)) / Σ w)), with r a sample's rank by a
    sign as a share of the samples. Ranks mean the same whatever the loss and the number of classes.

    Parameters
    ----------
    signs
        By name, each (n,), as `gradindex.review.evidence.Evidence.signs` has them. Where some are missing, as of rows
        that are no gradients, the others count.
    weights
        Of signs; None: those of `WEIGHTS`.

    Raises
    ------
    ValueError
        If none of the signs has a weight.
    """
    if weights is None:
        spaces = [space for space in ("hidden", "inputs") if any(name.startswith(space) for name in signs)]
        weights = WEIGHTS[" and ".join(spaces) or "hidden and inputs"]
    used = {name: weights[name] for name in signs if weights.get(name)}
    if not used:
        raise ValueError(f"None of the signs {sorted(signs)} has a weight.")
    total = np.sum([weight * rank_logits(signs[name]) for name, weight in used.items()], axis=0)
    return np.asarray(1 / (1 + np.exp(-total / sum(used.values()))))


def rank_logits(values: Floats) -> Floats:
    """Return log(r / (1 − r)) of ranks r between 0 and 1, (n,); equal values have their mean rank."""
    from scipy.stats import rankdata

    share = (rankdata(values) - 0.5) / len(values)
    return np.asarray(np.log(share / (1 - share)))
