"""Compiled sums of outer products, by value against plain loops in double precision."""

import numpy as np
import pytest

from gradindex.compiled import filters, ghost_norms, outer_products
from gradindex.compiled.geometry import geometry


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def naive(large, small, at):
    """Σ over positions, one tap, position, sample and group at a time."""
    images = large.reshape(len(large), *at.large, at.channels).astype(float)
    deltas = small.reshape(len(small), *at.small, small.shape[-1]).astype(float)
    outputs, groups = deltas.shape[-1], at.groups
    out = np.zeros((len(large), *at.kernel, at.channels // groups, outputs))
    for tap in np.ndindex(*at.kernel):
        for place in np.ndindex(*at.small):
            where = [p * s + t * d - b for p, s, t, d, b in zip(place, at.stride, tap, at.dilation, at.before)]  # noqa: B905
            if all(0 <= w < size for w, size in zip(where, at.large, strict=True)):
                for n in range(len(large)):
                    x = images[n][tuple(where)].reshape(groups, -1)
                    d = deltas[n][tuple(place)].reshape(groups, -1)
                    out[n][tap] += np.einsum("gc,go->cgo", x, d).reshape(-1, outputs)
    return out.reshape(len(large), -1 if len(large) else at.length // groups, outputs)


# Space, channels, outputs, kernel, stride, dilation, padding, groups.
CONVOLUTIONS = {
    "wide": ((7, 6), 5, 33, (3, 2), (1, 1), (1, 1), "SAME", 1),
    "one vector": ((5, 9), 9, 16, (3, 3), (1, 1), (1, 1), "SAME", 1),
    "fewer than a vector": ((5, 9), 26, 3, (3, 1), (2, 1), (1, 1), "VALID", 1),
    "short rows": ((6, 7), 1, 50, (2, 2), (1, 1), (1, 1), "SAME", 1),
    "short rows, several channels": ((6, 7), 2, 8, (2, 3), (2, 2), (1, 2), "SAME", 1),
    "strides beyond the kernel": ((9, 8), 24, 17, (1, 2), (3, 4), (1, 1), "VALID", 1),
    "dilated": ((9, 8), 9, 32, (3, 2), (1, 1), (2, 3), "SAME", 1),
    "groups": ((6, 5), 18, 51, (2, 3), (1, 2), (1, 1), "SAME", 3),
    "line": ((11,), 4, 24, (4,), (2,), (1,), "SAME", 1),
    "cube": ((4, 5, 6), 9, 20, (3, 2, 2), (1, 2, 1), (1, 1, 2), "SAME", 1),
    "cropped": ((10, 10), 9, 8, (2, 2), (3, 3), (1, 1), [(0, 0), (1, 0)], 1),
}


def convolution(name, samples=3):
    space, channels, outputs, kernel, stride, dilation, padding, groups = CONVOLUTIONS[name]
    axes = list(zip(space, kernel, stride, dilation, strict=True))
    if padding == "SAME":
        small = [-(-n // s) for n, _, s, _ in axes]
    else:
        small = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in axes]
    large, deltas = normal(samples, *space, channels), normal(samples, *small, outputs)
    options = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    return large, deltas, geometry(large.shape, deltas.shape, **options)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("samples", [3, 0])
def test_filters(name, samples):
    large, small, at = convolution(name, samples)
    out = np.full((samples, at.length // at.groups, small.shape[-1]), np.nan, np.float32)
    filters.form(large, small, out, at)
    want = naive(large, small, at)
    assert np.abs(out - want).max(initial=0) <= 1e-6 * np.abs(want).max(initial=0)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if CONVOLUTIONS[name][-1] == 1])
@pytest.mark.parametrize("scale", [1, 1e-25])
def test_ghost_norms_of_convolutions(name, scale):
    large, small, at = convolution(name)
    small[1] *= np.float32(scale)
    want = np.square(naive(large, small, at)).sum((1, 2))
    np.testing.assert_allclose(ghost_norms.of_convolution(large, small, at), want, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 0), (30, 40, 7), (24, 16, 3), (7, 100, 9)])
def test_outer_sums_and_their_ghost_norms(shape):
    height, width, positions = shape
    rows, columns = normal(3, positions, height), normal(3, positions, width)
    out = np.full((3, height, width), np.nan, np.float32)
    outer_products.outer(rows, columns, out)
    want = np.einsum("ntr,ntc->nrc", rows.astype(float), columns.astype(float))
    assert np.abs(out - want).max() <= 1e-6 * np.abs(want).max()
    np.testing.assert_allclose(ghost_norms.squared(rows, columns), np.square(want).sum((1, 2)), rtol=1e-5)


def test_what_is_not_a_number_stays_so():
    rows, columns = normal(2, 3, 4), normal(2, 3, 5)
    rows[1, 2, 1] = np.nan
    found = ghost_norms.squared(rows, columns)
    assert np.isfinite(found[0])
    assert np.isnan(found[1])
