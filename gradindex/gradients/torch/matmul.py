"""Matrix products by whichever of torch's own libraries is the faster one.

torch multiplies matrices of float32 by MKL, and convolves by oneDNN, which compiles its loops for the processor at
hand. MKL does so for its maker's processors only: on others (measured: AMD Zen 5) oneDNN's product is more than
twice as fast. On a processor where both are alike, so are the times.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

# Multiply-adds from which a call pays: of one product, and where it takes the place of one call for many.
_WORTH_A_CALL, _WORTH_MANY_CALLS = 1 << 21, 1 << 24


def _find_onednn() -> Callable[..., Tensor] | None:
    """Return oneDNN's x Wᵀ + b, or None. What `torch.compile` calls on CPUs; it has no gradient of its own."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _find_onednn()


def _suits(tensor: Tensor, multiply_adds: int, enough: int) -> bool:
    return (
        _ONEDNN is not None
        and multiply_adds >= enough
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    assert _ONEDNN is not None
    return _ONEDNN(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Return a matrix without gaps between its rows or columns: with them oneDNN is hundreds of times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def batched(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Write the products of `left` (b, m, k) and `right` (b, k, n) to `out` (b, m, n), and return it."""
    if not _suits(left, out[0].numel() * left.shape[2] if len(out) else 0, _WORTH_MANY_CALLS):
        return torch.bmm(left, right, out=out)
    for product, a, b in zip(out, left, right, strict=True):
        product.copy_(_onednn(a, b.t()))
    return out


def add_product(base: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Write base + x Wᵀ of x (b, n) and `weight` (m, n) to `out` (b, m), and return it; nothing is differentiated."""
    if not _suits(x, x.numel() * len(weight), _WORTH_A_CALL):
        return torch.addmm(base, x, weight.t(), out=out)
    return torch.add(base, _onednn(x, weight), out=out)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ (b, m) of x (b, n) and `weight` (m, n); nothing is differentiated."""
    return _onednn(x, weight) if _suits(x, x.numel() * len(weight), _WORTH_A_CALL) else x @ weight.t()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b of x (…, n), `weight` (m, n) and `bias` (m,); only `x` is differentiated."""
    if not (
        x.dim() > 1
        and weight.dim() == 2
        and _suits(x, x.numel() * len(weight), _WORTH_A_CALL)
        and weight.dtype == x.dtype
    ):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: "FunctionCtx", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b."""
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: "FunctionCtx", gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return δ W."""
        (weight,) = ctx.saved_tensors
        return _product(gradient, weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = _onednn(x.reshape(-1, x.shape[-1]), weight, bias)
    # Not a view: a view made out of autograd's sight could not be changed in place by an activation.
    return torch.ops.aten._unsafe_view(flat, [*x.shape[:-1], len(weight)])
