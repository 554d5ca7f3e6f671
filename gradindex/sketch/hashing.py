"""Random bits that depend on (seed, parameter position, purpose) alone.

They come from NumPy's Philox bit stream, which is fixed by its definition (Salmon et al. 2011), so every
machine, framework and version draws the same.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_OUTPUT, _INPUT = 0, 1


def stream(seed: int, position: int, purpose: int) -> np.random.Philox:
    """Return the bit stream for one parameter and purpose (a small integer)."""
    return np.random.Philox(key=np.array([seed, (position << 16) | purpose], dtype=np.uint64))


def check_seed(seed: int) -> int:
    """Return `seed` if it is an integer in [0, 2⁶⁴).

    Raises
    ------
    ValueError
        Otherwise.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an integer in [0, 2**64), got {seed!r}.")
    return int(seed)


def side_hash(
    seed: int, position: int, outputs: bool, size: int, dim: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return buckets in [0, dim) and signs ±1, each (size,), for one side (output or input) of a weight."""
    raw = stream(seed, position, _OUTPUT if outputs else _INPUT).random_raw(size)
    return buckets_and_signs(raw, dim)


def buckets_and_signs(raw: NDArray[Any], dim: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Split 64 random bits into a bucket (low 32, modulo dim) and a sign (the highest)."""
    raw = np.asarray(raw, np.uint64)
    buckets = ((raw & np.uint64(0xFFFFFFFF)) % np.uint64(dim)).astype(np.int32)
    signs = (1.0 - 2.0 * (raw >> np.uint64(63)).astype(np.float32)).astype(np.float32)
    return buckets, signs
