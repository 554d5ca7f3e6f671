"""Rules of matrix products."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.gradients.torch import matmul as torch_matmul
from gradindex.gradients.torch.capture import Capture, Layout, Make, NoRule, plain, rule
from gradindex.gradients.torch.use import Direct, Outer, upcast

Call = dict[str, Any]


@rule("input, weight, bias=", F.linear)
def linear(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = x Wᵀ + b: ∇W = Σ_t δ_t x_tᵀ, ∇b = Σ_t δ_t."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    if x in capture.shared or x.is_complex():
        raise NoRule
    # With a weight that needs no gradient, torch multiplies a strided input (attention's) slice by slice.
    x = x.contiguous()
    output = torch_matmul.linear(x, plain(weight), plain(bias))
    a = x.detach()
    return capture.tap(
        output,
        {weight: lambda g, at: Outer(at.positions(g), at.positions(a)), bias: bias_gradient},
        [a],
    )


@rule("bias, input, weight, beta=, alpha=", torch.addmm)
def addmm(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = b + x W, as in Hugging Face's Conv1D, whose weight is (in, out): ∇W = Σ_t x_t δ_tᵀ."""
    bias, x, weight = call["bias"], call["input"], call["weight"]
    if call["beta"] is not None or call["alpha"] is not None or x in capture.shared or x.is_complex():
        raise NoRule
    fits = x.dim() == 2 and bias.dim() == 1 and len(bias) == weight.shape[1]
    output = torch_matmul.linear(x, plain(weight).t(), plain(bias)) if fits else function(plain(bias), x, plain(weight))
    a = x.detach()
    uses: dict[Any, Make] = {weight: lambda g, at: Outer(at.positions(a), at.positions(g))}
    if bias.dim() == 1:
        uses[bias] = bias_gradient
    elif capture.names(bias):
        raise NoRule
    return capture.tap(output, uses, [a])


@rule("input, other", torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def matmul(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = x W: ∇W = Σ_t x_t δ_tᵀ."""
    x, weight = call["input"], call["other"]
    if x in capture.shared or x.is_complex() or weight.is_complex() or weight.dim() != 2 or x.dim() < 2:
        raise NoRule
    a = x.detach()
    return capture.tap(function(x, plain(weight)), {weight: lambda g, at: Outer(at.positions(a), at.positions(g))}, [a])


def bias_gradient(g: Tensor, at: Layout) -> Direct:
    """Return ∇b = Σ_t δ_t of a bias added along the last axis."""
    by_position = upcast(at.positions(g))
    return Direct(by_position[:, 0] if by_position.shape[1] == 1 else by_position.sum(1))
