"""The compiled loops of layers beside plain NumPy: also run without AVX, by tests/test_processors.py."""

import itertools

import numpy as np
import pytest

from gradindex.compiled import filters, ghost_norms, lstm_steps, patches
from gradindex.compiled.geometry import geometry

# Images' sizes and channels, outputs, kernel, stride, dilation, padding, groups.
CONVOLUTIONS = [
    ((5, 6), 3, 4, (3, 3), (1, 1), (1, 1), "SAME", 1),
    ((7, 5), 16, 9, (3, 2), (2, 1), (1, 2), "VALID", 1),
    ((4, 4), 1, 20, (3, 3), (2, 2), (1, 1), ((1, 0), (0, 1)), 1),
    ((9,), 8, 33, (5,), (1,), (2,), "SAME", 1),
    ((6, 6), 6, 4, (2, 2), (1, 1), (1, 1), "VALID", 2),
    ((3, 4, 3), 2, 5, (2, 2, 2), (1, 1, 1), (1, 1, 1), "SAME", 1),
]


def case(shape, channels, outputs, kernel, stride, dilation, padding, groups=1, samples=3):
    """Return images, δ, the geometry, and the patches (n, positions, kernel, C) cut by plain loops."""
    rng = np.random.default_rng(len(shape) + outputs)
    large = rng.standard_normal((samples, *shape, channels)).astype(np.float32)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == "SAME":
        counts = [-(-n // s) for n, s in zip(shape, stride, strict=True)]
        extra = [max((c - 1) * s + r - n, 0) for c, s, r, n in zip(counts, stride, reach, shape, strict=True)]
        pads = [(e // 2, e - e // 2) for e in extra]
    else:
        pads = [(0, 0)] * len(shape) if padding == "VALID" else list(padding)
    padded = np.pad(large, [(0, 0), *pads, (0, 0)])
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, stride, strict=True)]
    small = rng.standard_normal((samples, *counts, outputs)).astype(np.float32)
    at = geometry(large.shape, small.shape, kernel=kernel, stride=stride, dilation=dilation, padding=padding)
    cut = np.empty((samples, int(np.prod(counts)), int(np.prod(kernel)), channels), np.float32)
    for position, place in enumerate(itertools.product(*map(range, counts))):
        for tap, offset in enumerate(itertools.product(*map(range, kernel))):
            pixel = [p * s + o * d for p, s, o, d in zip(place, stride, offset, dilation, strict=True)]
            cut[:, position, tap] = padded[(slice(None), *pixel)]
    return large, small, at, cut


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_patches_and_kernels_gradients(convolution):
    groups = convolution[-1]
    large, small, _, cut = case(*convolution)
    options = dict(zip(("kernel", "stride", "dilation", "padding"), convolution[3:7], strict=True))
    at = geometry(large.shape, small.shape, **options, groups=groups)
    found = np.full((len(large), at.positions, at.length), np.nan, np.float32)
    patches.cut(large, found, at)
    np.testing.assert_array_equal(found, cut.reshape(found.shape))

    deltas = small.reshape(len(small), at.positions, groups, -1)
    grouped = cut.reshape(*cut.shape[:3], groups, -1)
    want = np.einsum("ntkgc,ntgr->nkcgr", grouped, deltas).reshape(len(large), at.length // groups, -1)
    out = np.full(want.shape, np.nan, np.float32)
    filters.form(large, small, out, at)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-4)

    if groups == 1:
        norms = ghost_norms.of_convolution(large, small, at)
        np.testing.assert_allclose(norms, (want.astype(np.float64) ** 2).sum((1, 2)), rtol=1e-5)


def test_a_kernel_for_each_channel():
    large, _, _, cut = case((5, 4), 3, 6, (3, 2), (1, 1), (1, 1), "SAME")
    small = np.random.default_rng(1).standard_normal((3, 5, 4, 6)).astype(np.float32)
    options = {"kernel": (3, 2), "stride": (1, 1), "dilation": (1, 1), "padding": "SAME"}
    at = geometry(large.shape, small.shape, **options, groups=3)
    want = np.einsum("ntkc,ntcm->nkcm", cut, small.reshape(3, 20, 3, 2))
    np.testing.assert_allclose(patches.depthwise(large, small, at), want.reshape(3, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("positions", "height", "width"), [(1, 3, 5), (7, 16, 9), (33, 5, 40), (0, 3, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_norms_from_factors(positions, height, width, scale):
    rng = np.random.default_rng(positions)
    rows, columns = (rng.standard_normal((4, positions, n)).astype(np.float32) for n in (height, width))
    rows *= np.float32(scale)
    formed = np.einsum("ntr,ntc->nrc", rows.astype(np.float64), columns)
    np.testing.assert_allclose(ghost_norms.squared(rows, columns), (formed**2).sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_lstms_step_back(dtype):
    rng = np.random.default_rng(0)
    gates = rng.random((3, 4, 21)).astype(dtype)
    before, squashed, to_state, from_next, cell = (rng.standard_normal((3, 21)).astype(dtype) for _ in range(5))
    out, carried = np.empty_like(gates), cell.copy()
    lstm_steps.step_back(gates, before, squashed, to_state, from_next, carried, out)
    i, f, g, o = gates.astype(np.float64).transpose(1, 0, 2)
    dh = to_state + from_next
    dc = cell + dh * o * (1 - squashed**2)
    want = [dc * i * (1 - i) * g, dc * f * (1 - f) * before, dc * i * (1 - g**2), dh * o * (1 - o) * squashed]
    np.testing.assert_allclose(out, np.stack(want, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carried, dc * f, rtol=1e-4, atol=1e-5)
