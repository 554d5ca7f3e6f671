"""Rules of convolutions.

The gradient of one sample's weight is a product of δ with the input's patches. Copying the patches out of a
strided view into a buffer that is REUSED for a few samples at a time costs about as much as the layer's own
weight gradient; `unfold` of a whole batch costs three times that, nearly all of it page faults.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.torch import matmul
from gradindex.gradients.torch.capture import Capture, Layout, NoRule, plain, rule
from gradindex.gradients.torch.rules import conv_channels_last
from gradindex.gradients.torch.rules.conv_channels_last import LastPatches
from gradindex.gradients.torch.use import Direct, Use, upcast

Call = dict[str, Any]
_ARGUMENTS = "input, weight, bias=, stride=, padding=, dilation=, groups="


@rule(_ARGUMENTS, F.conv1d, F.conv2d, F.conv3d)
def conv(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Cross-correlation: ∇W = Σ_t δ_t patch_tᵀ in each group, ∇b = Σ_t δ_t."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"] or 1
    n = weight.dim() - 2
    if x.dim() != n + 2 or x in capture.shared:
        raise NoRule
    stride, dilation = _each(call["stride"], n, 1), _each(call["dilation"], n, 1)
    padding = _padding(call["padding"], weight.shape[2:], dilation)
    output = function(
        x, plain(weight), plain(bias), call["stride"] or 1, call["padding"] or 0, call["dilation"] or 1, groups
    )
    a = x.detach()

    def patches(g: Tensor, at: Layout) -> Use:
        if conv_channels_last.suits(a, g, weight.shape[2:], groups):
            return LastPatches(a, g, weight.shape[2:], stride, padding, dilation, at.folded)
        return Patches(a, g, weight.shape[2:], stride, padding, dilation, groups, at)

    return capture.tap(output, {weight: patches, bias: channel_sums}, [a], axis=0)


@rule(
    "input, weight, bias=, stride=, padding=, output_padding=, groups=, dilation=",
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
def conv_transpose(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Do the adjoint of `conv`: δ and the input swap places."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"] or 1
    n = weight.dim() - 2
    if x.dim() != n + 2 or x in capture.shared:
        raise NoRule
    stride, dilation = _each(call["stride"], n, 1), _each(call["dilation"], n, 1)
    pads = [(p, p) for p in _each(call["padding"], n, 0)]
    output = function(
        x, plain(weight), plain(bias), stride, call["padding"] or 0, call["output_padding"] or 0, groups, dilation
    )
    a = x.detach()

    def patches(g: Tensor, at: Layout) -> Patches:
        return Patches(g, a, weight.shape[2:], stride, pads, dilation, groups, at)

    return capture.tap(output, {weight: patches, bias: channel_sums}, [a], axis=0)


class Patches(Use):
    """Rows: `small` (n, R, *positions). Columns: patches of `large` (n, C, *space), one a position."""

    def __init__(
        self,
        large: Tensor,
        small: Tensor,
        kernel: torch.Size,
        stride: list[int],
        padding: list[tuple[int, int]],
        dilation: list[int],
        groups: int,
        at: Layout,
    ) -> None:
        self.large, self.small = large, small
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.groups, self.folded = groups, at.folded
        places = small.shape[2:].numel() * at.folded
        width = large.shape[1] // groups * kernel.numel()
        self.positions = places if groups == 1 else None
        self.form_cost = places * small.shape[1] * width
        self._patch_size: int = large.shape[1] * kernel.numel() * places

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, R·C·kernel)."""
        images = self._images(block)
        patches = self._patches(images)
        small, width = upcast(self.small[images]), self.large.shape[1] // self.groups * self.kernel.numel()
        columns = patches.view(len(patches) * self.groups, width, -1)
        if self.groups == 1 and small.stride(1) == 1:  # channels last: few patches first is many times as fast
            rows = small.movedim(1, -1).reshape(len(patches), -1, small.shape[1])
            out = self.buffer("turned", (len(rows), width, rows.shape[2]), rows)
            formed = matmul.batched(columns, rows, out).transpose(1, 2).reshape(len(patches), -1)
        else:
            rows = small.reshape(len(columns), -1, patches.shape[-1])
            out = self.buffer("formed", (len(rows), rows.shape[1], width), rows)
            formed = matmul.batched(rows, columns.transpose(1, 2), out).view(len(patches), -1)
        return formed if self.folded == 1 else formed.unflatten(0, (-1, self.folded)).sum(1)

    def factors(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return rows (block, T, R) and columns (block, T, C·kernel)."""
        images = self._images(block)
        return self._by_sample(upcast(self.small[images]).flatten(2)), self._by_sample(self._patches(images))

    def bytes_per_sample(self) -> int:
        """Return the size of one sample's patches."""
        return 4 * self._patch_size

    def _images(self, block: slice) -> slice:
        return slice(block.start * self.folded, block.stop * self.folded)

    def _by_sample(self, values: Tensor) -> Tensor:
        """Turn (images, n, positions) into (samples, T, n)."""
        values = values.transpose(1, 2)
        return values if self.folded == 1 else values.reshape(-1, self.positions or 0, values.shape[2])

    def _patches(self, block: slice) -> Tensor:
        """Return the patches (block, C·kernel, T)."""
        large = self._padded(self.large[block])
        positions = self.small.shape[2:]
        steps = large.stride()[2:]
        view = large.as_strided(
            (*large.shape[:2], *self.kernel, *positions),
            (
                *large.stride()[:2],
                *(step * d for step, d in zip(steps, self.dilation, strict=True)),
                *(step * s for step, s in zip(steps, self.stride, strict=True)),
            ),
            large.storage_offset(),
        )
        buffer = self.buffer("patches", view.shape, large)
        return buffer.copy_(view).view(len(large), -1, positions.numel())

    def _padded(self, large: Tensor) -> Tensor:
        """Return `large` with its zeros around."""
        if not any(any(pair) for pair in self.padding):
            return upcast(large).contiguous()
        sizes = large.shape[2:]
        shape = (*large.shape[:2], *(n + sum(p) for n, p in zip(sizes, self.padding, strict=True)))
        padded = self.buffer("padded", shape, large).zero_()
        inner = padded
        for axis, (n, (before, _)) in enumerate(zip(sizes, self.padding, strict=True), 2):
            inner = inner.narrow(axis, before, n)
        inner.copy_(large)
        return padded


def channel_sums(g: Tensor, at: Layout) -> Direct:
    """Return ∇b = Σ_t δ_t of a bias added along the second axis."""
    sums = upcast(g).flatten(2).sum(2)
    return Direct(at.samples_first(sums).sum(1) if at.folded > 1 else sums)


def _each(value: Tree, n: int, default: int) -> list[int]:
    if value is None:
        return [default] * n
    return [value] * n if isinstance(value, int) else list(value) * (n if len(value) == 1 else 1)


def _padding(value: Tree, kernel: torch.Size, dilation: list[int]) -> list[tuple[int, int]]:
    """Return the zeros before and after each axis; 'same' puts the odd one after, as torch does."""
    if value == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if value == "valid":
        return [(0, 0)] * len(kernel)
    return [(p, p) for p in _each(value, len(kernel), 0)]
