"""Layers of random shapes, strides, groups and paddings, factored, against the plain loop, by value."""

import warnings
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradindex.gradients.parameter import Parameter
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import CountSketch
from tests.gradients.test_torch_layers import assert_as_the_loop, loss
from tests.gradients.torch_models import First

few = settings(deadline=None, max_examples=60, derandomize=True)
batches = st.sampled_from([0, 1, 2, 5])
small = st.integers(1, 5)


def assert_factored(layer: nn.Module, x: np.ndarray) -> None:
    """In float64, so that a result that differs is wrong rather than rounded."""
    engine = TorchEngine(layer.double(), loss)
    y = np.zeros(len(x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel", UserWarning)
        if len(x) == 0:
            assert engine.gradients(x, y).gradients.shape == (0, engine.size)
            return
        assert_as_the_loop(engine, x, y)
    assert set(engine.paths.values()) == {"factored"}, engine.paths


def values(b: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(b).standard_normal((b, *shape))


@few
@given(batches, small, small, st.lists(small, max_size=2), st.booleans())
def test_linear(b, inputs, outputs, positions, bias):
    assert_factored(nn.Linear(inputs, outputs, bias), values(b, *positions, inputs))


@st.composite
def convolutions(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a convolution, transposed or not, and the shape of a sample that it takes."""
    n, groups, transposed = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    channels = groups * draw(st.integers(1, 2))
    each = [st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)]
    kernel, stride, dilation = (tuple(draw(kind) for _ in range(n)) for kind in each)
    padding = tuple(draw(st.integers(0, size - 1)) for size in kernel)
    size = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True)]
    options = {
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d) if transposed else ()
    kind = (kinds or (nn.Conv1d, nn.Conv2d, nn.Conv3d))[n - 1]
    return kind(channels, groups * draw(st.integers(1, 2)), kernel, **options), (channels, *size)


@few
@given(batches, convolutions())
def test_convolutions(b, case):
    layer, shape = case
    assert_factored(layer, values(b, *shape))


@few
@given(batches, st.integers(2, 9), small, small, st.booleans())
def test_embedding(b, rows, width, length, padded):
    numbers = np.random.default_rng(b).integers(0, rows, (b, length))
    assert_factored(nn.Embedding(rows, width, padding_idx=rows - 1 if padded else None), numbers)


@few
@given(batches, st.sampled_from(["layer", "rms", "group", "batch", "instance"]), small, small, st.integers(2, 5))
def test_normalisations(b, kind, groups, each, length):
    channels = groups * each
    layer = {
        "layer": lambda: nn.LayerNorm((channels, length)),
        "rms": lambda: nn.RMSNorm(length),
        "group": lambda: nn.GroupNorm(groups, channels),
        "batch": lambda: nn.BatchNorm1d(channels),
        "instance": lambda: nn.InstanceNorm1d(channels, affine=True),
    }[kind]()
    assert_factored(layer, values(b, channels, length))


@settings(few, max_examples=40)
@given(
    batches,
    st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
    st.tuples(small, st.integers(2, 4), small),
    st.fixed_dictionaries({"num_layers": st.integers(1, 2), "bidirectional": st.booleans(), "bias": st.booleans()}),
)
def test_recurrent(b, kind, sizes, options):
    inputs, hidden, length = sizes
    assert_factored(First(kind(inputs, hidden, batch_first=True, **options)), values(b, length, inputs))


@settings(few, max_examples=100)
@given(batches, *[st.integers(1, 9)] * 3, st.sampled_from([2, 8, 33, 128]), st.booleans(), st.integers(0, 2**63))
def test_sketch_of_factors_is_that_of_the_formed_gradient(b, positions, rows, columns, k, touched, seed):
    """TensorSketch on the factors, scatter of what they form, and the twin on a device's tensors."""
    parameter = Parameter(name="w", position=0, shape=(rows, columns), dtype="float32")
    projector = CountSketch(k).bind([parameter], seed)
    rng = np.random.default_rng(0)
    right = rng.standard_normal((b, positions, columns)).astype(np.float32)
    numbers = rng.integers(0, rows, (b, positions))
    dense = rng.standard_normal((b, positions, rows)).astype(np.float32)
    left = np.eye(rows, dtype=np.float32)[numbers] if touched else dense
    formed = np.einsum("btr,btc->brc", left, right).reshape(b, rows * columns)
    found, expected, twin = (np.zeros((b, k), np.float32) for _ in range(3))
    projector.add(expected, parameter, formed)
    projector.add_factors(found, parameter, numbers if touched else left, right)
    on_device = torch.from_numpy(twin)
    factors = torch.from_numpy(numbers if touched else left)
    projector.on_device(torch.device("cpu")).add_factors(on_device, parameter, factors, torch.from_numpy(right))
    scale = np.linalg.norm(formed, axis=1).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(on_device.numpy(), expected, rtol=0, atol=1e-5 * scale)
