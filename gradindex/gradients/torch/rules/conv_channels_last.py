"""Per-sample gradients of two-dimensional convolutions whose images have their channels last in memory.

Small kernels are formed by compiled blocks that read the images where they lie: 1.4 to 3 times as fast as cutting
patches and multiplying them (measured, 3 to 64 channels). For others, a row of the kernel is one run of numbers in
memory, so that cutting patches is copying such runs: four to twelve times as fast as with channels first (measured),
where runs are as long as a row of the image.
"""

import torch
from torch import Tensor

from gradindex.compiled import filters
from gradindex.compiled.geometry import geometry
from gradindex.gradients.torch import matmul
from gradindex.gradients.torch.use import Use, upcast

_SHORTEST_RUN = 16  # numbers; shorter ones are copied faster with the channels first
_SMALL = 1 << 16  # numbers of a kernel that stays in a core's cache; twice as many gain nothing (measured)


def suits(large: Tensor, small: Tensor, kernel: torch.Size, groups: int) -> bool:
    """Whether both images (n, C, height, width) lie with the channels last, and are formed faster that way."""
    images = large.dim() == 4 and groups == 1 and large.device.type == "cpu"
    if not (images and _is_last(large) and _is_last(small)):
        return False
    return large.shape[1] * kernel[1] >= _SHORTEST_RUN or _is_compiled(large, small, kernel)


def _is_last(image: Tensor) -> bool:
    return bool(image.shape[1] > 1 and image.is_contiguous(memory_format=torch.channels_last))


def _is_compiled(large: Tensor, small: Tensor, kernel: torch.Size) -> bool:
    size = large.shape[1] * kernel.numel() * small.shape[1]
    return bool(large.dtype == small.dtype == torch.float32 and size <= _SMALL)


class LastPatches(Use):
    """Rows: `small` (n, R, height, width). Columns: patches of `large` (n, C, …), in order (kernel, C)."""

    def __init__(
        self,
        large: Tensor,
        small: Tensor,
        kernel: torch.Size,
        stride: list[int],
        padding: list[tuple[int, int]],
        dilation: list[int],
        folded: int,
    ) -> None:
        self.large, self.small = large.permute(0, 2, 3, 1), small.permute(0, 2, 3, 1)
        self.kernel, self.stride, self.padding, self.dilation, self.folded = kernel, stride, padding, dilation, folded
        self.positions = self.small.shape[1:3].numel() * folded
        self.inner = kernel.numel()
        self._width: int = self.inner * large.shape[1]
        self.form_cost = self.positions * small.shape[1] * self._width
        self._compiled = folded == 1 and self.positions > 0 and _is_compiled(large, small, kernel)

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, R·C·kernel)."""
        formed = self.form_inner_first(block).unflatten(1, (-1, self.inner, self.large.shape[3]))
        return formed.transpose(2, 3).flatten(1)

    def form_inner_first(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, R·kernel·C)."""
        if self._compiled:
            return self._filters(block)
        rows, columns = self.factors(block)
        out = self.buffer("formed", (len(rows), rows.shape[2], self._width), rows)
        return matmul.batched(rows.transpose(1, 2), columns, out).flatten(1)

    def factors(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return rows (block, T, R) and columns (block, T, kernel·C)."""
        images = slice(block.start * self.folded, block.stop * self.folded)
        rows, columns = upcast(self.small[images]), self._patches(images)
        shape = len(rows) // self.folded, self.positions or 0
        return rows.reshape(*shape, rows.shape[3]), columns.view(*shape, self._width)

    def bytes_per_sample(self) -> int:
        """Return the size of one sample's patches."""
        return 4 * self._width * (self.positions or 0)

    def form_bytes(self) -> int:
        """Return the size of one sample's patches, or of its kernel where it is formed without them."""
        return 4 * self._width * self.small.shape[3] if self._compiled else self.bytes_per_sample()

    def _filters(self, block: slice) -> Tensor:
        large, small = self.large[block], self.small[block]
        at = geometry(
            *(large.shape, small.shape),
            kernel=tuple(self.kernel),
            stride=tuple(self.stride),
            dilation=tuple(self.dilation),
            padding=self.padding,
        )
        turned = self.buffer("turned", (len(small), self._width, small.shape[3]), small)
        filters.form(large.detach().numpy(), small.detach().numpy(), turned.numpy(), at)
        out = self.buffer("formed", (len(small), small.shape[3], self._width), small)
        return out.copy_(turned.transpose(1, 2)).flatten(1)

    def _patches(self, images: slice) -> Tensor:
        padded = self._padded(images)
        step, down, right, channel = padded.stride()
        shape = (len(padded), *self.small.shape[1:3], *self.kernel, padded.shape[3])
        places = (step, down * self.stride[0], right * self.stride[1])
        within = (down * self.dilation[0], right * self.dilation[1], channel)
        view = padded.as_strided(shape, places + within, padded.storage_offset())
        return self.buffer("patches", view.shape, padded).copy_(view)

    def _padded(self, images: slice) -> Tensor:
        """Return images (n, height, width, C) with their zeros around."""
        large = self.large[images]
        if not any(any(pair) for pair in self.padding):
            return upcast(large)
        (top, bottom), (left, right) = self.padding
        n, height, width, channels = large.shape
        padded = self.buffer("padded", (n, top + height + bottom, left + width + right, channels), large).zero_()
        padded[:, top : top + height, left : left + width].copy_(large)
        return padded
