"""How a store keeps the numbers of a row: float16, or 8 bits of a unit-norm row.

A row of 8 bits is integers c from -127 to 127, the row times 127 over its largest entry; it stands for c/‖c‖, so that
no scale is kept: the row has unit norm, and its length is the store's exact norm.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = 127


class RowType(StrEnum):
    """How the numbers of a store's rows are kept."""

    HALF = "float16"
    BYTE = "int8"

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of a number."""
        return np.dtype(self.value)


def encode(rows: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return rows (n, dim) in 8 bits; zero rows stay zero."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    scale = np.divide(_LARGEST, largest, out=np.zeros_like(largest), where=largest > 0)
    found: NDArray[np.int8] = np.rint(rows * scale).astype(np.int8)
    return found


def finish(rows: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Scale rows (n, dim) that were cast from what is kept, in place, so that those of 8 bits have unit norm."""
    if kind == RowType.BYTE:
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        np.divide(rows, lengths, out=rows, where=lengths > 0)
    return rows
