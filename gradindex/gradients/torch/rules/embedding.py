"""Rules of embeddings: a sample's gradient has only the rows that it looked up."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.gradients.torch.capture import Capture, Layout, NoRule, plain, rule
from gradindex.gradients.torch.use import Touched

Call = dict[str, Any]


@rule(
    "input, weight, padding_idx=, max_norm=, norm_type=, scale_grad_by_freq=, sparse=",
    F.embedding,
)
def embedding(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """y_t = W[x_t]: only touched rows have a gradient, and the padding's row has none.

    With `scale_grad_by_freq` each is divided by how often the sample, not the batch, has looked the row up.
    """
    numbers, weight, by_count = call["input"], call["weight"], call["scale_grad_by_freq"]
    if by_count and capture.in_shared_call:
        raise NoRule
    padding = _padding(call["padding_idx"], weight)
    output = function(numbers, plain(weight), padding, call["max_norm"], call["norm_type"] or 2.0)
    if capture.in_shared_call:  # positions, looked up once for all samples
        capture.know_lookup(output, weight, numbers, padding)
        return output

    def touched(g: Tensor, at: Layout) -> Touched:
        columns, rows = at.positions(g), at.positions(numbers, 0)
        if padding is not None:
            columns = columns.masked_fill((rows == padding)[:, :, None], 0)
        if by_count:
            columns = columns / (rows[:, :, None] == rows[:, None, :]).sum(2, keepdim=True)
        return Touched(rows, columns, len(weight))

    return capture.tap(output, {weight: touched}, [numbers])


@rule(
    "input, weight, offsets=, max_norm=, norm_type=, scale_grad_by_freq=, mode=, sparse=, per_sample_weights=, "
    "include_last_offset=, padding_idx=",
    F.embedding_bag,
)
def embedding_bag(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Σ_t w_t W[x_t] over a bag, or their mean: the row of x_t has the gradient w_t δ."""
    numbers, weight, mode = call["input"], call["weight"], call["mode"] or "mean"
    if call["scale_grad_by_freq"] or mode == "max":
        raise NoRule
    given = {name: value for name, value in call.items() if value is not None}
    output = function(**{**given, "weight": plain(weight)})
    shares, bags = call["per_sample_weights"], numbers
    shares = torch.ones(numbers.shape, dtype=output.dtype, device=output.device) if shares is None else shares.detach()
    padding = _padding(call["padding_idx"], weight)
    if padding is not None:
        shares = shares.masked_fill(numbers == padding, 0)
    if numbers.dim() == 1:
        place = _places(call["offsets"], len(numbers), len(output))
        bags = numbers.new_zeros(place.shape).masked_scatter_(place, numbers)
        shares = shares.new_zeros(place.shape).masked_scatter_(place, shares)
    if mode == "mean":
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)

    def touched(g: Tensor, at: Layout) -> Touched:
        columns = at.samples_first(g[:, None, :] * shares[:, :, None].to(g.dtype))
        rows = at.samples_first(bags)
        return Touched(rows.reshape(len(rows), -1), columns.reshape(len(rows), -1, g.shape[-1]), len(weight))

    return capture.tap(output, {weight: touched}, [numbers], axis=0)


def _padding(index: int | None, weight: Tensor) -> int | None:
    return index + len(weight) if index is not None and index < 0 else index


def _places(offsets: Tensor, count: int, bags: int) -> Tensor:
    """Return which places (bags, longest) are filled when bags that follow each other are put into rows."""
    ends = torch.cat([offsets, offsets.new_tensor([count])])[1 : bags + 1]
    lengths = ends - offsets[:bags]
    return torch.arange(int(lengths.max()), device=offsets.device) < lengths[:, None]
