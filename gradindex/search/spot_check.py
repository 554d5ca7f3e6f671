"""Kernel values against training steps: what an audit's own truth, and what answers call exact, are worth."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.compute.held_queries import by_steps
from gradindex.compute.queries import Queries, gradient_chunks
from gradindex.data.source import Ids
from gradindex.gradients import paths
from gradindex.kernels import Kernel

if TYPE_CHECKING:
    from gradindex.index.index import Index

STEPS = 256
"""Rows whose kernel values are computed by training steps."""

_AT_ONCE = 32  # rows

Answers = Sequence[tuple[Ids, NDArray[np.float64]]]
"""Rows (m, k), −1 for none, and kernel values of each, best first."""


@dataclass(frozen=True)
class SpotCheck:
    """Errors (n,) of kernel values of each of some answers, over the kernel's weight: as cosines."""

    errors: list[NDArray[np.float64]]

    @property
    def count(self) -> int:
        """How many values were compared."""
        return sum(map(len, self.errors))

    @property
    def error(self) -> float:
        """The largest error."""
        return float(max((found.max(initial=0.0) for found in self.errors), default=0.0))


def spot_check(
    index: "Index", asked: Queries, answers: Answers, kernel: Kernel, max_seconds: float | None = None
) -> SpotCheck:
    """Compute kernel values of answers' rows by training steps, those of the best ranks first, and compare.

    Of at most 256 rows, and for a fifth of `max_seconds` at most. What rounding alone may do is left out of the errors.
    """
    engine, store = index.job.engine, index.store
    depth = max(rows.shape[1] for rows, _ in answers)
    ranked = np.concatenate([rows[:, rank] for rank in range(depth) for rows, _ in answers if rank < rows.shape[1]])
    wanted = list(dict.fromkeys(ranked[ranked >= 0].tolist()))[:STEPS]
    end = math.inf if max_seconds is None else time.perf_counter() + max_seconds / 5
    errors: list[list[float]] = [[] for _ in answers]
    largest = float(store.norms.max(initial=0.0))
    for some, gradients, norms in gradient_chunks(engine, asked, by_steps=True):
        for begin in range(0, len(wanted), _AT_ONCE):
            these = np.array(wanted[begin : begin + _AT_ONCE])
            dots, lengths, _ = by_steps(engine, gradients, index.job.source.take(store.ids[these]))
            values = kernels.values(kernel, dots, norms, lengths)
            weights = np.stack([kernels.weights(kernel, float(norm), lengths) for norm in norms])
            rounding = _rounding(norms, largest)[:, None] + _rounding(lengths, largest)
            for found, (rows, scores) in zip(errors, answers, strict=True):
                lines, columns, places = np.nonzero(rows[some][:, :, None] == these)
                off = np.abs(values[lines, places] - scores[some][lines, columns])
                off = np.divide(off, weights[lines, places], out=np.zeros_like(off), where=weights[lines, places] > 0)
                found += np.maximum(off - rounding[lines, places], 0.0).tolist()
            if time.perf_counter() > end:
                break
    return SpotCheck([np.array(found) for found in errors])


def _rounding(norms: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    return np.array([paths.allowance(max(float(norm), 1e-30), largest, math.inf) for norm in norms])
