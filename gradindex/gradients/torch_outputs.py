"""A model's output, whatever holds its tensors: a tuple, a dict, or an object such as Hugging Face's."""

import copy
from collections.abc import Callable
from typing import Any

import torch


def map_tensors(function: Callable[[torch.Tensor], Any], output: Any) -> Any:
    """Return a copy of `output` with every tensor in it replaced by what `function` makes of it, in order."""
    if isinstance(output, torch.Tensor):
        return function(output)
    if isinstance(output, tuple):
        parts = [map_tensors(function, part) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    if isinstance(output, list):
        return [map_tensors(function, part) for part in output]
    if isinstance(output, dict):
        found = copy.copy(output)
        for key, part in output.items():
            found[key] = map_tensors(function, part)  # Hugging Face's dicts set the attribute as well
        return found
    if hasattr(output, "__dict__") and not isinstance(output, type):
        found = copy.copy(output)
        for name, part in vars(output).items():
            object.__setattr__(found, name, map_tensors(function, part))
        return found
    return output
