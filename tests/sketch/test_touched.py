"""Gradients of embedding tables as the rows that were looked up, against the same gradients formed."""

import numpy as np
import pytest

from gradindex.sketch.touched import TouchedRows

ROWS, WIDTH, COUNT = 11, 4, 5


def touched(n, positions, seed):
    random = np.random.default_rng(seed)
    numbers = random.integers(0, ROWS, (n, positions))
    return numbers, random.standard_normal((n, positions, WIDTH)).astype(np.float32)


def formed(numbers, columns):
    out = np.zeros((len(numbers), ROWS, WIDTH))
    np.add.at(out, (np.arange(len(numbers))[:, None], numbers), columns)
    return out.reshape(len(numbers), ROWS * WIDTH)


@pytest.fixture
def kept():
    """Five samples, of two shapes and one given formed, and their gradients (5, ROWS × WIDTH)."""
    table, parts = TouchedRows(WIDTH), []
    for first, n, positions in ((0, 2, 6), (2, 2, 3)):
        some = touched(n, positions, first)
        table.add(first, *some)
        parts.append(formed(*some))
    last = formed(*touched(1, 3, 9))
    table.add_formed(4, last.astype(np.float32))
    table.sort()
    return table, np.concatenate([*parts, last])


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("at_once", [8, 1 << 20])
def test_products(kept, n, at_once, monkeypatch):
    monkeypatch.setattr("gradindex.sketch.touched._NUMBERS_AT_ONCE", at_once)
    table, gradients = kept
    numbers, columns = touched(n, 9, 100)
    true = formed(numbers, columns) @ gradients.T
    np.testing.assert_allclose(table.dots(numbers, columns, COUNT), true, atol=1e-5)
    np.testing.assert_allclose(table.formed_dots(formed(numbers, columns), COUNT), true, atol=1e-5)


def test_gram_and_scale(kept):
    table, gradients = kept
    np.testing.assert_allclose(table.gram(COUNT), gradients @ gradients.T, rtol=1e-5, atol=1e-5)
    factors = np.arange(1.0, 6.0)
    table.scale(factors)
    scaled = gradients * factors[:, None]
    np.testing.assert_allclose(table.gram(COUNT), scaled @ scaled.T, rtol=1e-5, atol=1e-4)
