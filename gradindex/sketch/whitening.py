"""Whitening of stored rows by their own second moment, so that inner products tell what removing samples would do.

With s = row · ‖g‖ the sketch of a sample's gradient g and R = mean s sᵀ over the training set, R stands for the
empirical Fisher matrix F = mean g gᵀ, and qᵀ (R + λ)⁻¹ s for the influence qᵀ (F + λ)⁻¹ g (Koh & Liang 2017, with F in
the place of the Hessian; Park et al. 2023 do so with random projections). That is the inner product of rows
w = (Λ + λ)^(−1/2) Vᵀ s, where R = V Λ Vᵀ. They are kept by descending Λ/λ, so that the first r of them are those of the
r leading directions.

Coordinates of several checkpoints, side by side, are whitened each by their own second moment, as if R had nothing but
these blocks: the inner product of whitened rows is then the sum of the checkpoints', and each counts alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WHITENED = "whitened"
"""Kind of the sketch in the header of a store of whitened rows."""
RELATIVE_DAMPING = 0.0045
"""Default damping, as a share of tr R² / tr R, the mean of the eigenvalues weighted by themselves.

Other than the plain mean, that does not depend on how many small eigenvalues are kept. On every bank measured so far it
is within .01 of the best LDS of the grid in benchmarks/counterfactual_whitened.py; it was set on these banks."""
_RANK = 1e-13  # of the largest eigenvalue: below it there is rounding alone


@dataclass(frozen=True)
class Spectrum:
    """The second moment R = V Λ Vᵀ of sketches (rows times norms over `scale`).

    Parameters
    ----------
    values
        Eigenvalues Λ, (r,) float64, all positive, descending within a block.
    vectors
        V, (d, r) float32, orthonormal.
    blocks
        To which block of coordinates, one a checkpoint, each of them belongs, (r,) int64.
    block_count
        How many blocks there are; one of zeros has no eigenvalue.
    rows
        How many rows it was taken from.
    scale
        Root of the mean squared norm: sketches are divided by it, so that no square overflows.
    largest_share
        The share of one row in the trace of R, the largest there is.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float32]
    blocks: NDArray[np.int64]
    block_count: int
    rows: int
    scale: float
    largest_share: float

    def dampings(self, given: float | None = None) -> tuple[float, ...]:
        """Return λ of each block: the number that is `given`, in units of squared gradients, else by the rule.

        Raises
        ------
        ValueError
            If the number is not finite and positive.
        """
        if given is None:
            each = [self.values[self.blocks == block] for block in range(self.block_count)]
            return tuple(
                RELATIVE_DAMPING * float((v**2).sum() / v.sum()) * self.scale**2 if len(v) else 0.0 for v in each
            )
        if not 0 < given < np.inf:
            raise ValueError(f"damping must be a positive number, got {given!r}.")
        return (float(given),) * self.block_count

    def whitener(self, dampings: tuple[float, ...], dims: int | None = None) -> "Whitener":
        """Return the map of rows to whitened ones, of at most `dims` numbers, with λ of each block."""
        added = np.array(dampings)[self.blocks] / self.scale**2
        order = np.argsort(-self.values / added, kind="stable")[:dims]
        matrix = self.vectors[:, order] / np.sqrt(self.values[order] + added[order])
        return Whitener(matrix.astype(np.float32), self.scale)


@dataclass(frozen=True)
class Whitener:
    """Maps unit-norm rows (n, d) with their norms to whitened ones; `matrix` is (d, r) float32."""

    matrix: NDArray[np.float32]
    scale: float

    @property
    def width(self) -> int:
        """Numbers of a whitened row."""
        return int(self.matrix.shape[1])

    def __call__(
        self, rows: NDArray[np.float32], norms: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return unit-norm whitened rows (n, r) float32 and their norms ‖w‖ (n,) float64; zero rows stay zero.

        Parameters
        ----------
        rows
            Unit-norm rows (n, at least d) as the store has them; further numbers are no coordinates, and left out.
        norms
            Norms of the gradients, (n,).
        """
        white = rows[:, : len(self.matrix)] @ self.matrix
        lengths = np.sqrt(np.einsum("ij,ij->i", white, white, dtype=np.float64))
        unit = np.divide(white, lengths[:, None], out=np.zeros_like(white), where=lengths[:, None] > 0)
        return unit, lengths * (np.asarray(norms, np.float64) / self.scale)


def spectrum(
    blocks: Iterable[tuple[NDArray[np.float32], NDArray[np.floating]]], sizes: Sequence[int], scale: float
) -> Spectrum:
    """Return the eigendecomposition of the second moment of rows with their norms put back.

    Parameters
    ----------
    blocks
        Unit-norm rows (b, at least the sum of `sizes`) with their norms (b,).
    sizes
        How many numbers of a row are coordinates of the gradient, from the first on, block by block.
    scale
        Root of the mean squared norm of all rows.

    Raises
    ------
    ValueError
        If there are no rows, or all are zero.
    """
    ends = np.cumsum(sizes)
    places = [slice(end - size, end) for size, end in zip(sizes, ends.tolist(), strict=True)]
    totals = [np.zeros((size, size)) for size in sizes]
    count, largest = 0, 0.0
    for rows, norms in blocks:
        sketches = rows[:, : ends[-1]] * (np.asarray(norms, np.float64) / scale)[:, None]
        for total, place in zip(totals, places, strict=True):
            total += sketches[:, place].T @ sketches[:, place]
        squares = np.einsum("ij,ij->i", sketches, sketches)
        count, largest = count + len(rows), max(largest, float(squares.max(initial=0)))
    trace = float(sum(np.trace(total) for total in totals))
    if not count or not trace > 0:
        raise ValueError(f"All {count} rows are zero: there is no second moment to whiten them by.")
    found, vectors, numbers = [], [], []
    for number, (total, place) in enumerate(zip(totals, places, strict=True)):
        values, directions = np.linalg.eigh(total / count)
        kept = np.flatnonzero(values > _RANK * values[-1])[::-1]
        whole = np.zeros((int(ends[-1]), len(kept)), np.float32)
        whole[place] = directions[:, kept]
        found.append(values[kept])
        vectors.append(whole)
        numbers.append(np.full(len(kept), number))
    return Spectrum(
        np.concatenate(found), np.hstack(vectors), np.concatenate(numbers), len(sizes), count, scale, largest / trace
    )
