"""What an engine has to know of a torch module, and how its inputs had better lie."""

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def eagerly() -> AbstractContextManager[Any]:
    """Within it, compiled submodules and functions run as they were written: what they call has to be seen."""
    compiling = "torch._dynamo" in sys.modules  # importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def has_inputs_first(model: nn.Module, name: str) -> bool:
    """Whether the weight is stored (in, out): transposed convolutions and Hugging Face's Conv1D."""
    kind = type(dict(model.named_modules(remove_duplicate=False))[name.rpartition(".")[0]]).__name__
    return name.endswith("weight") and (re.match(r"(Lazy)?ConvTranspose\dd$", kind) is not None or kind == "Conv1D")


def channels_last(leaf: Any) -> Any:
    """Return images (b, C, height, width) with their channels last in memory, and anything else as it is."""
    if not isinstance(leaf, torch.Tensor) or leaf.dim() != 4 or not leaf.is_floating_point():
        return leaf
    _, channels, height, width = leaf.shape
    strides = (channels * height * width, 1, width * channels, channels)  # so that one channel counts as last, too
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype, device=leaf.device).copy_(leaf)
