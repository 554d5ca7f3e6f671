"""How a store keeps the numbers of a row: float16, or 8 or 4 bits of a unit-norm row.

A row of 8 bits is integers c from −127 to 127, one of 4 bits from −7 to 7: the row times a factor of its own. It stands
for c/‖c‖, so that no factor is kept: the row has unit norm, and its length is the store's exact norm. With 8 bits the
factor takes the largest entry to 127. With 4 bits a few large entries would leave the others nothing: it is that one of
seven whose integers, clipped, have the largest cosine with the row. Two of them share a byte, the first its lower half.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTE, _NIBBLE = 127, 7
_CLIPPED = (0.15, 0.25, 0.35, 0.45, 0.6, 0.8, 1.0)  # of the largest entry: what the largest integer stands for
_CODES = np.arange(256)
_PAIRS = np.stack([(_CODES & 15) - 8, (_CODES >> 4) - 8], axis=1).astype(np.float32)  # what a byte of two codes holds


class RowType(StrEnum):
    """How the numbers of a store's rows are kept."""

    HALF = "float16"
    BYTE = "int8"
    NIBBLE = "int4"

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of what is stored."""
        return np.dtype(np.uint8 if self is RowType.NIBBLE else self.value)

    def stored(self, dim: int) -> int:
        """Return how many of these hold a row of `dim` numbers."""
        return -(-dim // 2) if self is RowType.NIBBLE else dim

    def row_bytes(self, dim: int) -> int:
        """Return how many bytes a row of `dim` numbers takes."""
        return self.stored(dim) * self.dtype.itemsize

    def quantize(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Return unit-norm rows (n, dim) as they are kept, (n, `stored(dim)`); zero rows stay zero."""
        if self is RowType.HALF:
            return rows.astype(np.float16)
        if self is RowType.BYTE:
            return _integers(rows, _BYTE)
        return _nibbles(rows)

    def dequantize(self, kept: NDArray[Any], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write what is kept (n, `stored(dim)`) to `out` (n, dim), of unit norm where it has bits; return it."""
        if self is RowType.NIBBLE:
            out[...] = _PAIRS[kept].reshape(len(kept), -1)[:, : out.shape[1]]
        else:
            out[...] = kept
        if self is not RowType.HALF:
            lengths = np.sqrt(np.einsum("ij,ij->i", out, out))
            scales = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
            out *= scales[:, None]
        return out


BITS = {RowType.HALF: 16, RowType.BYTE: 8, RowType.NIBBLE: 4}
"""Bits of a number."""


def _integers(rows: NDArray[np.float32], most: int, share: float = 1.0) -> NDArray[np.int8]:
    """Return rows as integers of at most `most`, which a `share` of a row's largest entry becomes."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0) * np.float32(share)
    scale = np.divide(most, largest, out=np.zeros_like(largest), where=largest > 0)
    found: NDArray[np.int8] = np.clip(np.rint(rows * scale), -most, most).astype(np.int8)
    return found


def _nibbles(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    best = np.full(len(rows), -np.inf)
    found = np.zeros(rows.shape, np.int8)
    for share in _CLIPPED:
        tried = _integers(rows, _NIBBLE, share)
        wide = tried.astype(np.float32)
        inner, squares = np.einsum("ij,ij->i", wide, rows), np.einsum("ij,ij->i", wide, wide)
        cosines = np.divide(inner, np.sqrt(squares), out=np.zeros(len(rows)), where=squares > 0)
        better = cosines > best
        found[better], best[better] = tried[better], cosines[better]
    odd = rows.shape[1] % 2
    halves = np.pad((found + 8).astype(np.uint8), ((0, 0), (0, odd)), constant_values=8)
    packed: NDArray[np.uint8] = halves[:, ::2] | halves[:, 1::2] << np.uint8(4)
    return packed
