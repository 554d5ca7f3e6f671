"""Mixtures of experts, in the order of tokens: what each sample gives to each expert's weights can be told.

Transformers of Hugging Face multiply tokens sorted by expert, or expert by expert, so that the rows of a product belong
to no sample any more, and branch on which experts were chosen. Within `in_token_order` they call `expert_products`
instead, whose rows are those of the tokens, each as often as it has experts. Values are the same to rounding.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

_NAME = "gradindex"
_SAME = {"eager", "grouped_mm", "batched_mm"}  # ways of computing the same


def expert_products(x: Tensor, weight: Tensor, numbers: Tensor, transposed: bool = False) -> Tensor:
    """Return x_s W_eᵀ (S, out) for rows x (S, in), weights (E, out, in) and each row's expert e, `numbers` (S,).

    With `transposed`, weights are (E, in, out).
    """
    if has_torch_function((x, weight, numbers)):
        given = (x, weight, numbers)
        return handle_torch_function(expert_products, given, *given, transposed)
    order = torch.argsort(numbers, stable=True)
    counts = torch.bincount(numbers, minlength=len(weight)).tolist()
    parts = [
        rows @ (matrix if transposed else matrix.t())
        for rows, matrix in zip(x[order].split(counts), weight, strict=True)
        if len(rows)
    ]
    return torch.cat(parts)[torch.argsort(order)]


def _forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return what the experts make of tokens (N, H), each of which has chosen k of them."""
    chosen = top_k_index.shape[-1]
    numbers = top_k_index.reshape(-1)
    x = hidden_states.repeat_interleave(chosen, dim=0)
    first = "gate_up_proj" if module.has_gate else "up_proj"
    x = _linear(module, first, x, numbers)
    x = module._apply_gate(x) if module.has_gate else module.act_fn(x)
    x = _linear(module, "down_proj", x, numbers)
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    x = x * top_k_weights.reshape(-1, 1)
    return x.view(len(hidden_states), chosen, -1).sum(dim=1).to(hidden_states.dtype)


def _linear(module: nn.Module, name: str, x: Tensor, numbers: Tensor) -> Tensor:
    output = expert_products(x, getattr(module, name), numbers, bool(module.is_transposed))
    return output + F.embedding(numbers, getattr(module, f"{name}_bias")) if module.has_bias else output


@contextmanager
def in_token_order(model: nn.Module) -> Iterator[None]:
    """Within it, mixtures of experts of transformers compute in the order of tokens."""
    library = sys.modules.get("transformers.integrations.moe")
    found = [module for module in model.modules() if hasattr(module, "_is_expert_parallel")] if library else []
    configs = {
        id(module.config): module.config
        for module in found
        if not module._is_expert_parallel and getattr(module.config, "_experts_implementation", None) in _SAME
    }
    if library is None or not configs:
        yield
        return
    library.ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    before = [(config, config._experts_implementation_internal) for config in configs.values()]
    try:
        for config, _ in before:
            config._experts_implementation_internal = _NAME
        yield
    finally:
        for config, name in before:
            config._experts_implementation_internal = name
