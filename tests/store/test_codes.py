"""How the numbers of rows are kept: bytes by hand, unit norms, errors."""

import numpy as np
import pytest

from gradindex.store.codes import BITS, RowType


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def restored(kind, rows):
    return kind.dequantize(kind.quantize(rows), np.empty_like(rows))


@pytest.mark.parametrize("kind", RowType)
@pytest.mark.parametrize("dim", [1, 2, 7, 1024])
def test_rows_come_back_with_unit_norm(kind, dim):
    rows = unit(np.random.default_rng(dim).normal(size=(20, dim)))
    rows[3] = 0
    kept = kind.quantize(rows)
    assert kept.shape == (20, kind.stored(dim)) and kept.dtype == kind.dtype
    assert kept.nbytes == 20 * -(-dim * BITS[kind] // 8)
    got = restored(kind, rows)
    assert not got[3].any()
    got, rows = np.delete(got, 3, 0), np.delete(rows, 3, 0)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=2e-3)
    assert (np.einsum("ij,ij->i", got, rows) > {16: 0.9996, 8: 0.9999, 4: 0.98}[BITS[kind]]).all()


def test_bytes_of_four_bits():
    row = np.array([[7, -7, 3, 0, -1]], np.float32)
    assert RowType.NIBBLE.quantize(row / np.linalg.norm(row)).tolist() == [[15 | 1 << 4, 11 | 8 << 4, 7 | 8 << 4]]


def test_a_large_entry_of_four_bits_leaves_the_others_something():
    row = np.full((1, 1024), 1 / 40, np.float32)
    row[0, 0] = 0.6  # a seventh of it is .086: all others would be zero
    row = unit(row)
    assert (restored(RowType.NIBBLE, row) * row).sum() > 0.9
