"""An LSTM's recurrence with its backward pass written out (Hochreiter & Schmidhuber 1997; gates i, f, g, o).

Autograd's graph over single steps costs three times torch's own fused layer. Here a step is eight operations forward,
into buffers made once; backward it is a compiled loop and a product, or, where there is no such loop, six operations,
since whatever does not depend on the step after is done for all steps at once.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradindex.compiled import lstm_steps
from gradindex.gradients.torch import matmul

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


class Recurrence(torch.autograd.Function):
    """(share (T, b, 4h), weights (4h, h), h0 (b, h), c0 (b, h)) → states (T, b, h), last cell (b, h)."""

    @staticmethod
    def forward(ctx: "FunctionCtx", share: Tensor, weights: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
        """Run all steps."""
        steps, b, size = len(share), share.shape[1], weights.shape[1]
        gates = torch.empty_like(share, memory_format=torch.contiguous_format)
        states = share.new_empty(steps, b, size)
        cells, squashed = torch.empty_like(states), torch.empty_like(states)
        h, c = h0, c0
        for t in range(steps):
            now = matmul.add_product(share[t], h, weights, out=gates[t])
            now[:, : 2 * size].sigmoid_()
            i, f, g, o = now.chunk(4, 1)
            g.tanh_()
            o.sigmoid_()
            c = torch.mul(f, c, out=cells[t]).addcmul_(i, g)
            h = torch.mul(o, torch.tanh(c, out=squashed[t]), out=states[t])
        ctx.save_for_backward(gates, cells, squashed, weights, c0)
        return states, cells[-1].clone()

    @staticmethod
    def backward(ctx: "FunctionCtx", states: Tensor, last: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        """Return the gradients of the shares (T, b, 4h), of h0 and of c0."""
        gates, cells, squashed, weights, c0 = ctx.saved_tensors
        compiled = gates.device.type == "cpu" and gates.dtype in (torch.float32, torch.float64)
        found, dh, dc = (_compiled if compiled else _plain)(gates, cells, squashed, weights, c0, states, last)
        return found, None, dh, dc


def _plain(
    gates: Tensor, cells: Tensor, squashed: Tensor, weights: Tensor, c0: Tensor, states: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the shares, of h0 and of c0, by torch's operations, on any device."""
    steps, b, size = squashed.shape
    by_gate = gates.view(steps, b, 4, size)
    i, f, g, o = by_gate.unbind(2)
    before = torch.cat([c0[None], cells[:-1]])
    # What each gate's δ is a multiple of: of dc for i, f and g, of dh for o.
    slopes = torch.stack([i * (1 - i) * g, f * (1 - f) * before, i * (1 - g * g), o * (1 - o) * squashed], 2)
    into_cell = o * (1 - squashed * squashed)
    found = torch.empty_like(by_gate)
    dh, dc, across = states[-1].clone(), last.clone(), weights.t()
    for t in reversed(range(steps)):
        dc.addcmul_(dh, into_cell[t])
        torch.mul(dc[:, None], slopes[t, :, :3], out=found[t, :, :3])
        torch.mul(dh, slopes[t, :, 3], out=found[t, :, 3])
        dc *= f[t]
        before_it = states[t - 1] if t else torch.zeros_like(dh)
        matmul.add_product(before_it, found[t].view(b, -1), across, out=dh)
    return found.view_as(gates), dh, dc


def _compiled(
    gates: Tensor, cells: Tensor, squashed: Tensor, weights: Tensor, c0: Tensor, states: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_plain` does, on a processor."""
    steps, b, size = squashed.shape
    found = torch.empty_like(gates)
    by_gate, out = (values.view(steps, b, 4, size).numpy() for values in (gates, found))
    before, tanh, to_state = c0.contiguous().numpy(), squashed.numpy(), states.contiguous().numpy()
    dc, dh, across = last.clone(memory_format=torch.contiguous_format), torch.zeros_like(last), weights.t()
    cell, c = dc.numpy(), cells.numpy()
    for t in reversed(range(steps)):
        lstm_steps.step_back(by_gate[t], c[t - 1] if t else before, tanh[t], to_state[t], dh.numpy(), cell, out[t])
        dh = matmul.product(found[t], across)
    return found, dh, dc
