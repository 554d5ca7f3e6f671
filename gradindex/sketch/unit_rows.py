"""Rows of sketches: scaled to unit norm, folded to fewer buckets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SQUARE = 1e-140  # a norm whose square is still far from the smallest number


def normalise(sketches: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return rows scaled to unit norm, float32; zero rows stay zero, whatever else their scale."""
    wide = np.asarray(sketches, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
    odd = ((norms < _SQUARE) | np.isinf(norms)).ravel()  # squares are no longer exact, or larger than any number
    if odd.any():
        wide = wide.copy()
        largest = np.abs(wide[odd]).max(axis=1, keepdims=True, initial=0)
        wide[odd] = np.divide(wide[odd], largest, out=np.zeros_like(wide[odd]), where=largest > 0)
        norms[odd] = np.linalg.norm(wide[odd], axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0).astype(np.float32)
    return unit


def fold(sketches: NDArray[np.generic], dim: int) -> NDArray[Any]:
    """Return the CountSketch of size `dim` from one of a multiple of that size, shape (n, dim).

    Raises
    ------
    ValueError
        If the width of `sketches` is not a multiple of `dim`.
    """
    n, width = sketches.shape
    if width % dim:
        raise ValueError(f"Cannot fold {width} buckets to {dim}: not a multiple.")
    if width == dim:
        return sketches
    folded: NDArray[Any] = sketches.reshape(n, width // dim, dim).sum(axis=1, dtype=np.float32)
    return folded
