"""Fast ways of torch's products and patches, against the plain ones, by value."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gradindex.gradients.torch import matmul
from gradindex.gradients.torch.capture import Layout
from gradindex.gradients.torch.rules import conv_channels_last
from gradindex.gradients.torch.rules.conv import Patches
from gradindex.gradients.torch.use import Workspace


@pytest.fixture(params=["oneDNN", "torch"])
def library(request, monkeypatch):
    """Take oneDNN for every product however small, or never."""
    if request.param == "oneDNN":
        if matmul._ONEDNN is None:
            pytest.skip("torch without oneDNN")
        for name in ("_WORTH_A_CALL", "_WORTH_MANY_CALLS"):
            monkeypatch.setattr(matmul, name, 0)
    else:
        monkeypatch.setattr(matmul, "_ONEDNN", None)


@pytest.mark.parametrize("turned", [False, True])
def test_batched(library, turned):
    torch.manual_seed(0)
    left, right = torch.randn(3, 5, 7), torch.randn(3, 7, 4)
    if turned:
        left, right = left.transpose(1, 2).contiguous().transpose(1, 2), right.transpose(1, 2).contiguous().mT
    out = torch.empty(3, 5, 4)
    found = matmul.batched(left, right, out)
    assert found.data_ptr() == out.data_ptr()
    torch.testing.assert_close(found, torch.einsum("bmk,bkn->bmn", left, right))
    assert matmul.batched(left[:0], right[:0], out[:0]).shape == (0, 5, 4)


@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 7), (3, 2, 2, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(library, shape, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(7, 4).t()
    offset = torch.randn(4) if bias else None
    expected, found = F.linear(x, weight, offset), matmul.linear(x, weight, offset)
    torch.testing.assert_close(found, expected)
    delta = torch.randn_like(expected)
    (want,), (got,) = (torch.autograd.grad(y, x, delta) for y in (expected, found))
    torch.testing.assert_close(got, want)


def test_matrices_with_gaps_are_copied_first(library):
    wide, spread = torch.randn(5, 3, 7), torch.ones(5, 1, 1).expand(5, 4, 7)
    for x in (wide[:, 1], wide.movedim(1, 0)[1], wide[::2, 0], spread[:, 0]):
        assert matmul._dense(x).is_contiguous() or matmul._dense(x).t().is_contiguous()
        weight = torch.randn(9, 8)[::2, :7]
        torch.testing.assert_close(matmul.linear(x, weight, None), F.linear(x, weight))
    left, right = torch.randn(6, 3, 5).movedim(1, 0), torch.randn(4, 3, 5).permute(1, 2, 0)
    torch.testing.assert_close(matmul.batched(left, right, torch.empty(3, 6, 4)), left @ right)


def test_linear_may_be_changed_in_place(library):
    x = torch.randn(2, 3, 7, requires_grad=True)
    weight = torch.randn(4, 7)
    found = matmul.linear(x, weight, None).relu_()
    (got,) = torch.autograd.grad(found.sum(), x)
    (want,) = torch.autograd.grad(F.linear(x, weight).relu().sum(), x)
    torch.testing.assert_close(got, want)


def test_add_product(library):
    base, x, weight, out = torch.randn(5, 4), torch.randn(5, 7), torch.randn(7, 4).t(), torch.empty(5, 4)
    torch.testing.assert_close(matmul.add_product(base, x, weight, out), base + x @ weight.t())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    st.integers(1, 17),
    *[st.tuples(st.integers(1, 3), st.integers(1, 3)) for _ in range(3)],
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_patches_with_channels_last(counts: Any, channels: int, kernel: Any, stride: Any, dilation: Any, padding: Any):
    images, folded = counts
    sizes = [d * (k - 1) + 2 for d, k in zip(dilation, kernel, strict=True)]
    conv = nn.Conv2d(channels, 3, kernel, stride, padding, dilation)
    large = torch.randn(images, channels, *sizes)
    small = torch.randn_like(conv(large))
    last = [values.contiguous(memory_format=torch.channels_last) for values in (large, small)]
    pads = [(p, p) for p in padding]
    args = torch.Size(kernel), list(stride), pads, list(dilation)
    slow = Patches(large, small, *args, 1, Layout(0, folded))
    fast = conv_channels_last.LastPatches(*last, *args, folded)
    fast.share(Workspace())
    for block in (slice(0, images // folded), slice(0, 1)):
        want = slow.form(block).clone()
        torch.testing.assert_close(fast.form(block), want)
        rows, columns = fast.factors(block)
        in_order = columns.unflatten(2, (conv.weight[0, 0].numel(), channels)).transpose(2, 3).flatten(2)
        torch.testing.assert_close(torch.einsum("btr,btc->brc", rows, in_order).flatten(1), want)
        first = fast.form_inner_first(block).unflatten(1, (3, -1, channels)).transpose(2, 3).flatten(1)
        torch.testing.assert_close(first, want)


def test_which_patches_are_cut_in_runs():
    image = torch.randn(2, 16, 5, 5)
    last, size = image.contiguous(memory_format=torch.channels_last), torch.Size((3, 3))
    assert conv_channels_last.suits(last, last, size, 1)
    assert not conv_channels_last.suits(image, last, size, 1)
    assert not conv_channels_last.suits(last, last, size, 2)
    few = last[:, :3].contiguous(memory_format=torch.channels_last)
    assert conv_channels_last.suits(few, last, size, 1)  # compiled blocks, whatever the runs
    assert not conv_channels_last.suits(few.double(), last.double(), size, 1)
    assert not conv_channels_last.suits(few, last, torch.Size((300, 5)), 1)
    one = last[:, :1].contiguous(memory_format=torch.channels_last)
    assert not conv_channels_last.suits(one, last, size, 1)


@pytest.mark.parametrize("channels", [(3, 64), (16, 16), (64, 64), (65, 128)])
def test_small_kernels_are_formed_without_patches(channels, monkeypatch):
    large, small = (
        torch.randn(5, count, size, size).contiguous(memory_format=torch.channels_last)
        for count, size in zip(channels, (9, 5), strict=True)
    )
    args = torch.Size((3, 3)), [2, 2], [(1, 1), (1, 1)], [1, 1]
    use = conv_channels_last.LastPatches(large, small, *args, 1)
    with monkeypatch.context() as patch:
        patch.setattr(conv_channels_last.LastPatches, "factors", lambda *_: pytest.fail("cuts patches"))
        if channels == (65, 128):  # too large a kernel
            with pytest.raises(pytest.fail.Exception, match="cuts patches"):
                use.form(slice(0, 5))
        else:
            found = use.form(slice(1, 5)).clone()
            want = Patches(large, small, *args, 1, Layout(0, 1)).form(slice(1, 5))
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
            assert use.form_bytes() == 4 * 9 * channels[0] * channels[1]
