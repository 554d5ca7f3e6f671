"""One parameter's block of a curvature matrix: a Kronecker product's eigenvectors, and an eigenvalue for each pair.

A parameter is seen as a matrix (R × C, in memory order; see `gradindex.gradients.parameter`). Its block is
(Q_R ⊗ Q_C) diag(λ) (Q_R ⊗ Q_C)ᵀ with orthogonal Q_R (R, R) and Q_C (C, C), and a power of it scales the coordinates
Q_Rᵀ ∇W Q_C one by one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from gradindex.gradients.parameter import Parameter

Doubles = NDArray[np.float64]

NEGLIGIBLE = 1e-6
"""Share of the largest eigenvalue below which one may be rounding of single precision, and does not count."""


@dataclass(frozen=True)
class Side:
    """Eigenvalues (n,), ascending, and orthonormal eigenvectors (n, n) in columns; None: unit vectors, unordered."""

    values: Doubles
    vectors: Doubles | None

    @classmethod
    def of(cls, matrix: Doubles) -> "Side":
        """Return those of a symmetric matrix (n, n) without negative eigenvalues, or of a diagonal (n,)."""
        if matrix.ndim == 1:
            return cls(matrix, None)
        values, vectors = eigh(matrix, driver="evd")
        return cls(np.maximum(values, 0), vectors)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes + (0 if self.vectors is None else self.vectors.nbytes)

    def mean(self) -> float:
        """Return the mean of the eigenvalues that are not negligible."""
        return mean_eigenvalue(self.values)

    def into(self, vectors: Doubles) -> Doubles:
        """Return the coordinates (…, n) of vectors (…, n) along the eigenvectors."""
        return vectors if self.vectors is None else vectors @ self.vectors

    def back(self, coordinates: Doubles) -> Doubles:
        """Return the vectors (…, n) that have these coordinates."""
        return coordinates if self.vectors is None else coordinates @ self.vectors.T

    def columns(self, chosen: NDArray[np.intp]) -> NDArray[np.float32] | None:
        """Return some eigenvectors (n, k) in single precision; None where they are unit vectors."""
        return None if self.vectors is None else np.ascontiguousarray(self.vectors[:, chosen], np.float32)


@dataclass(frozen=True)
class Block:
    """The block of one parameter.

    Parameters
    ----------
    parameter
        Its own layout is that of rows given to `power`.
    rows, columns
        The two sides. A parameter of few entries is one column, and its block the exact matrix.
    scale
        The eigenvalue of a pair is the product of its sides', times this.
    measured
        Eigenvalues (R, C) in the place of products: EKFAC's.
    """

    parameter: Parameter
    rows: Side
    columns: Side
    scale: float
    measured: Doubles | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Entries of both sides, (R, C)."""
        return len(self.rows.values), len(self.columns.values)

    @property
    def values(self) -> Doubles:
        """The eigenvalues (R, C)."""
        if self.measured is not None:
            return self.measured
        found: Doubles = np.outer(self.rows.values * self.scale, self.columns.values)
        return found

    @cached_property
    def mean(self) -> float:
        """The mean of the eigenvalues that are not negligible."""
        if self.measured is not None:
            return mean_eigenvalue(self.measured)
        return self.rows.mean() * self.columns.mean() * self.scale

    @cached_property
    def rank(self) -> int:
        """How many eigenvalues are not negligible."""
        if self.measured is not None:
            return count_eigenvalues(self.measured)
        return count_eigenvalues(self.rows.values) * count_eigenvalues(self.columns.values)

    def halves(self, damping: float) -> tuple[Doubles, Doubles]:
        """Return ρ + √d π √s' (R,) and κ + √d / π (C,), whose products are factored-damped eigenvalues.

        The factored Tikhonov damping of Martens & Grosse (2015, https://arxiv.org/abs/1503.05671, 6.3): the scale goes
        to the rows, and π is the root of the ratio of both sides' mean eigenvalues, so that neither is damped more.
        """
        rows, columns = self.rows.values * self.scale, self.columns.values
        above, below = mean_eigenvalue(rows), mean_eigenvalue(columns)
        ratio = np.sqrt(above / below) if above > 0 and below > 0 else 1.0
        return rows + np.sqrt(damping) * ratio, columns + np.sqrt(damping) / ratio

    def into(self, gradients: Doubles) -> Doubles:
        """Return the coordinates (b, R, C) of gradients (b, size)."""
        matrices = gradients.reshape(len(gradients), *self.shape)
        inside = self.columns.into(matrices)
        found: Doubles = self.rows.into(inside.transpose(0, 2, 1)).transpose(0, 2, 1)
        return found

    def back(self, coordinates: Doubles) -> Doubles:
        """Return the gradients (b, size) that have these coordinates (b, R, C)."""
        outside = self.rows.back(coordinates.transpose(0, 2, 1)).transpose(0, 2, 1)
        return self.columns.back(outside).reshape(len(coordinates), -1)


def count_eigenvalues(values: Doubles) -> int:
    """Return how many of some eigenvalues are not negligible."""
    return int((values > NEGLIGIBLE * values.max(initial=0.0)).sum())


def mean_eigenvalue(values: Doubles) -> float:
    """Return the mean of the eigenvalues that are not negligible, 0 if there is none."""
    kept = values[values > NEGLIGIBLE * values.max(initial=0.0)]
    return float(kept.mean()) if kept.size else 0.0


def power(values: Doubles, exponent: float) -> Doubles:
    """Return values ** exponent, with 0 for 0 (the pseudo-inverse)."""
    return np.power(values, exponent, out=np.zeros_like(values), where=values > 0)
