"""Rule of multi-head attention, whose projections are seen once its own body runs in view of the capture."""

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.torch.capture import Capture, NoRule, plain, rule
from gradindex.gradients.torch.rules.norm import reduce_to
from gradindex.gradients.torch.use import Direct


def _in_view(function: Callable[..., Tree]) -> Callable[..., Any]:
    """Return the same function, except that it does not hand itself to the active mode once more."""
    seen = {**function.__globals__, "has_torch_function": lambda *_: False}
    copy = types.FunctionType(function.__code__, seen, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_attention_body = _in_view(F.multi_head_attention_forward)


@rule("*args, **kwargs", F.multi_head_attention_forward)
def attention(capture: Capture, function: Callable[..., Tree], call: dict[str, Tree]) -> Tree:
    """Run the body in view; it works on (time, batch, …), and folds that to (time × batch, …)."""
    before, capture.batch_is_minor = capture.batch_is_minor, True
    try:
        with capture:
            return _attention_body(*call["args"], **call["kwargs"])
    finally:
        capture.batch_is_minor = before


@rule("query, key, value, attn_mask=, **rest", F.scaled_dot_product_attention)
def biased_attention(capture: Capture, function: Callable[..., Tensor], call: dict[str, Tree]) -> Tensor:
    """softmax(q kᵀ + p) v with a learned p, as T5's and Swin's: ∇p is δ of p repeated for each sample."""
    query, bias = call["query"], call["attn_mask"]
    if bias not in capture.shared or any(call[name] in capture.shared for name in ("query", "key", "value")):
        raise NoRule
    repeated = plain(bias).expand(*query.shape[:-2], *bias.shape[-2:])
    repeated = capture.tap(repeated, {bias: lambda g, at: Direct(reduce_to(g, bias, at))})
    return function(query, call["key"], call["value"], attn_mask=repeated, **call["rest"])


@rule(
    "tensor, sizes, dim=",
    torch.split,
    Tensor.split,
    torch.chunk,
    Tensor.chunk,
)
def split(capture: Capture, function: Callable[..., Tree], call: dict[str, Tree]) -> Tree:
    """Parts of a weight's rows, such as the projections of queries, keys and values."""
    parameter = call["tensor"]
    if call["dim"] or not isinstance(parameter, torch.nn.Parameter):
        raise NoRule
    parts = function(plain(parameter), call["sizes"])
    begin = 0
    for part in parts:
        capture.know_part(part, parameter, begin)
        begin += len(part)
    return parts
