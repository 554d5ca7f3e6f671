"""Retraining without one sample at a time, for small training sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradindex.evaluation.lds import Estimate
from gradindex.evaluation.rank_agreement import RESAMPLES, Resamples, Scores, Values, correlations
from gradindex.evaluation.removal import Results, count_failed
from gradindex.evaluation.training import Ids


@dataclass(frozen=True)
class LeaveOneOut:
    """What training without one sample did to the queries' losses.

    `ids` (i,) of the samples; `changes` (m, i) float64: the loss without it minus that with all samples, mean over
    seeds, NaN where all models failed; `errors` (m, i), its standard error by the seeds, NaN with one; `failed`, how
    many models failed.
    """

    ids: Ids
    changes: Values
    errors: Values
    failed: int

    def agreement(self, scores: Scores) -> Estimate:
        """Return Spearman's correlation of scores (m, n) with loss changes, mean and interval over queries.

        Raises
        ------
        ValueError
            If a sample has no model.
        """
        if not np.isfinite(self.changes).all():
            raise ValueError(f"{self.failed} models failed, so that some samples have no loss change.")
        found = correlations(self.changes, [np.asarray(scores, np.float64)[:, self.ids]])[0][:, 0]
        draws = Resamples.draw(len(found), 1, RESAMPLES).queries
        return Estimate.of(found.mean(), draws @ found / len(found), -1, 1)


def summarised(ids: Ids, names: Sequence[str], results: Results, whole: str) -> LeaveOneOut:
    """Return the result for samples `ids` (i,), whose models have these names; `whole` is that of all samples."""
    before = results[whole][0]
    changes = np.array([results[name][0] - before for name in names]).transpose(1, 2, 0)
    count = np.isfinite(changes).sum(axis=0)
    mean = np.where(count > 0, np.nansum(changes, axis=0) / np.maximum(count, 1), np.nan)
    squares = np.nansum((changes - mean) ** 2, axis=0)
    errors = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
    return LeaveOneOut(ids, mean, np.where(count > 1, errors, np.nan), count_failed(results))
