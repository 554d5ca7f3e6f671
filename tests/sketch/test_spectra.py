"""Sketches in lanes of vectors, by value against one number at a time in double precision."""

import numpy as np
import pytest

from gradindex.compiled.emit import LANES
from gradindex.gradients.parameter import Parameter
from gradindex.sketch import CountSketch, tensor_sketch


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def naive(projector, parameter, matrices):
    """Put every entry of (n, R, C) into its bucket."""
    t, out = projector.tables[parameter.name], np.zeros((len(matrices), projector.dim))
    buckets = (t.row_buckets[:, None].astype(int) + t.column_buckets) % projector.dim
    signs = t.row_signs[:, None] * t.column_signs
    for row, matrix in zip(out, matrices, strict=True):
        np.add.at(row, buckets, signs * matrix)
    return out


# Samples, positions, rows, columns, size of the sketch.
CASES = [(1, 2, 7, 5, 16), (5, 2, 7, 3, 16), (16, 1, 30, 40, 32), (19, 3, 33, 16, 128), (33, 2, 50, 17, 1024),
         (16, 0, 6, 5, 64), (0, 2, 6, 5, 64), (40, 2, 5, 1, 2048), (17, 2, 9, 20, 96)]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_factors_and_formed_gradients_have_the_sketch_of_the_definition(case):
    samples, positions, height, width, dim = case
    parameter = Parameter(name="w", position=3, shape=(height, width), dtype="float32")
    projector = CountSketch(dim).bind([parameter], seed=5)
    rows, columns = normal(samples, positions, height), normal(samples, positions, width)
    rows[: samples // 2] *= np.float32(1e-7)  # one side much smaller than the other
    rows[:1, :1] = 0
    formed = np.einsum("ntr,ntc->nrc", rows.astype(float), columns.astype(float))
    want = naive(projector, parameter, formed)
    scale = np.linalg.norm(formed, axis=(1, 2))[:, None]
    out = np.ones((samples, dim), np.float32)
    projector.add_factors(out, parameter, rows, columns)
    assert (np.abs(out - 1 - want) <= 1e-6 * scale + 1e-6).all()
    out = np.zeros((samples, dim), np.float32)
    projector.add_factors(out, parameter, rows, columns)
    assert (np.abs(out - want) <= 3e-6 * scale).all()
    out = np.zeros((samples, dim), np.float32)
    squares = projector.add_measured(out, parameter, formed.reshape(samples, height * width).astype(np.float32))
    assert (np.abs(out - want) <= 1e-6 * scale).all()
    np.testing.assert_allclose(squares, scale[:, 0] ** 2, rtol=1e-6)


@pytest.mark.parametrize("dim", [16, 32, 512, 1024, 8192])
def test_transforms_are_the_discrete_fourier_transform_out_of_order(dim):
    memory = normal(2, dim, LANES)
    begin = memory[0] + 1j * memory[1]
    real, imaginary = memory[0].ctypes.data, memory[1].ctypes.data
    turns = tensor_sketch.twiddles(dim)
    tensor_sketch._forward(real, imaginary, dim, turns.ctypes.data)
    found, want = memory[0] + 1j * memory[1], np.fft.fft(begin.astype(complex), axis=0)
    for lane in range(0, LANES, 5):
        for part in (np.real, np.imag):
            np.testing.assert_allclose(
                np.sort(part(found[:, lane])), np.sort(part(want[:, lane])), atol=1e-4 * dim**0.5
            )
    tensor_sketch._backward(real, imaginary, dim, turns.ctypes.data)
    np.testing.assert_allclose((memory[0] + 1j * memory[1]) / dim, begin, atol=1e-5)


def test_what_is_not_a_number_stays_so():
    parameter = Parameter(name="w", position=0, shape=(20, 30), dtype="float32")
    rows, columns = normal(LANES, 1, 20), normal(LANES, 1, 30)
    rows[3, 0, 7] = np.nan
    out = np.zeros((LANES, 64), np.float32)
    CountSketch(64).bind([parameter], seed=0).add_factors(out, parameter, rows, columns)
    assert np.isnan(out[3]).any()
    assert np.isfinite(np.delete(out, 3, 0)).all()
