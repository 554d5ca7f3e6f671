"""What the inverse of a damped matrix does, whichever way it is had."""

from abc import ABC, abstractmethod

from gradindex.relevance.base import Rows

RELATIVE_DAMPING = 1e-10


class Inverse(ABC):
    """(A + d)⁻¹ for a symmetric matrix A."""

    solver: str
    damping: float

    @abstractmethod
    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g for rows (b, P)."""

    @abstractmethod
    def root(self, rows: Rows) -> Rows:
        """Return the real part of (A + d)^(−1/2) g for rows (b, P)."""

    def halves(self, rows: Rows, *, query: bool) -> Rows:
        """Return one side of a product: ⟨halves(q, query=True), halves(g, query=False)⟩ = ⟨q, (A + d)⁻¹ g⟩."""
        return self.apply(rows) if query else rows
