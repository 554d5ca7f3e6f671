"""What the inverse of a damped matrix does, whichever way it is had."""

from abc import ABC, abstractmethod

import numpy as np

from gradindex.gradients.curvature import AUTOMATIC_DAMPING
from gradindex.gradients.curvature.block import mean_eigenvalue
from gradindex.relevance.base import STUDY, Rows

STUDY_DAMPING = 1e-10
"""Share of the mean diagonal that the published study adds (Hanawa et al. 2021)."""


class Inverse(ABC):
    """(A + d)⁻¹ for a symmetric matrix A."""

    solver: str
    damping: float
    negative: int = 0
    """Damped eigenvalues below 0, of a Hessian away from a minimum."""
    stands_for_hessian: bool = False
    """Whether it is that of another matrix, the Gauss-Newton matrix, where the Hessian's was asked for."""

    @abstractmethod
    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g for rows (b, P)."""

    @abstractmethod
    def root(self, rows: Rows) -> Rows:
        """Return the real part of (A + d)^(−1/2) g for rows (b, P)."""

    def halves(self, rows: Rows, *, query: bool) -> Rows:
        """Return one side of a product: ⟨halves(q, query=True), halves(g, query=False)⟩ = ⟨q, (A + d)⁻¹ g⟩."""
        return self.apply(rows) if query else rows


def damping_of(given: float | str | None, diagonal: float, values: Rows | None = None) -> float:
    """Return the number to add to a matrix's diagonal.

    Parameters
    ----------
    given
        As in `gradindex.relevance.base.Options`.
    diagonal
        Mean of the matrix's |diagonal|.
    values
        Its eigenvalues; None: not known, and the mean diagonal stands for their mean.
    """
    if given is None:
        return AUTOMATIC_DAMPING * (diagonal if values is None else mean_eigenvalue(np.abs(values)))
    return STUDY_DAMPING * diagonal if given == STUDY else float(given)
