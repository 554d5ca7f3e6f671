"""Copies of a torch module with layers initialised again."""

import copy

import torch
from torch import nn


def initialised_again(model: nn.Module, seed: int, top: int | None) -> nn.Module:
    """Return a copy of a model whose last `top` layers with parameters (None: all) are initialised again by a seed."""
    found = copy.deepcopy(model)
    owners = [(n, m) for n, m in found.named_modules() if next(m.parameters(recurse=False), None) is not None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in owners if top is None else owners[-top:]:
            # MultiheadAttention's own is private.
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset is None:
                raise ValueError(
                    f"Layer {name!r} ({type(module).__name__}) has parameters but no reset_parameters(). "
                    "Give it one, or give the experiment a function fresh(classes, seed)."
                )
            reset()
    return found
