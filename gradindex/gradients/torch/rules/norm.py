"""Rules of normalisations, PReLU and parameters that are added or multiplied elementwise."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.torch.capture import Capture, Layout, NoRule, plain, rule
from gradindex.gradients.torch.use import Direct, upcast

Call = dict[str, Any]


@rule("input, normalized_shape, weight=, bias=, eps=", F.layer_norm)
def layer_norm(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = w·x̂ + b over the last axes: ∇w = Σ_t δ_t x̂_t, ∇b = Σ_t δ_t."""
    return _normalised_last(capture, function, call, bias=call["bias"], eps=call["eps"] or 1e-5)


@rule("input, normalized_shape, weight=, eps=", F.rms_norm)
def rms_norm(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = w·x̂ over the last axes: ∇w = Σ_t δ_t x̂_t."""
    return _normalised_last(capture, function, call, eps=call["eps"])


def _normalised_last(capture: Capture, function: Callable[..., Tensor], call: Call, **rest: Tree) -> Tensor:
    x, shape, weight = call["input"], call["normalized_shape"], call["weight"]
    kept = len(shape)
    a = x.detach()
    output = function(x, shape, plain(weight), **{name: plain(value) for name, value in rest.items()})

    def scale(g: Tensor, at: Layout) -> Direct:
        normal = function(a, shape, None, eps=rest["eps"])
        return Direct(upcast(at.positions(g * normal, kept)).sum(1))

    def shift(g: Tensor, at: Layout) -> Direct:
        return Direct(upcast(at.positions(g, kept)).sum(1))

    return capture.tap(output, {weight: scale, rest.get("bias"): shift}, [a])


@rule("input, num_groups, weight=, bias=, eps=", F.group_norm)
def group_norm(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = w_c·x̂ + b_c in each channel c: ∇w_c = Σ δ x̂, ∇b_c = Σ δ over the channel."""

    def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return function(x, call["num_groups"], weight, bias, call["eps"] or 1e-5)

    return _by_channel(capture, normalise, call)


@rule(
    "input, running_mean, running_var, weight=, bias=, training=, momentum=, eps=",
    F.batch_norm,
)
def batch_norm(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """As `group_norm`, with the running statistics."""
    if call["training"] or call["running_mean"] is None:
        raise NoRule

    def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        mean, variance = call["running_mean"], call["running_var"]
        return function(x, mean, variance, weight, bias, False, 0.0, call["eps"] or 1e-5)

    return _by_channel(capture, normalise, call)


@rule(
    "input, running_mean=, running_var=, weight=, bias=, use_input_stats=, momentum=, eps=",
    F.instance_norm,
)
def instance_norm(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """As `group_norm`, with the statistics of each sample's channel, or the running ones."""
    mean, variance = call["running_mean"], call["running_var"]
    own = call["use_input_stats"] in (None, True)
    if own and mean is not None:
        raise NoRule  # would update the running statistics

    def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return function(x, mean, variance, weight, bias, own, 0.0, call["eps"] or 1e-5)

    return _by_channel(capture, normalise, call)


def _by_channel(capture: Capture, normalise: Callable[..., Tensor], call: Call) -> Tensor:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    if x.dim() < 2:
        raise NoRule
    a = x.detach()

    def scale(g: Tensor, at: Layout) -> Direct:
        return Direct(_channels(g * normalise(a, None, None), at))

    def shift(g: Tensor, at: Layout) -> Direct:
        return Direct(_channels(g, at))

    output = normalise(x, plain(weight), plain(bias))
    return capture.tap(output, {weight: scale, bias: shift}, [a], axis=0)


@rule("input, weight", F.prelu)
def prelu(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = x where positive, else w_c·x: ∇w_c = Σ δ min(x, 0) over the channel."""
    x, weight = call["input"], call["weight"]
    a = x.detach()
    if x.dim() < 2:
        raise NoRule

    def slope(g: Tensor, at: Layout) -> Direct:
        sums = _channels(g * a.clamp(max=0), at)
        return Direct(sums.sum(1, keepdim=True) if weight.numel() == 1 else sums)

    return capture.tap(function(x, plain(weight)), {weight: slope}, [a], axis=0)


def _channels(values: Tensor, at: Layout) -> Tensor:
    """Return sums (b, C) over everything but samples and channels (the second axis)."""
    values = upcast(values)
    sums = values.flatten(2).sum(2) if values.dim() > 2 else values
    return at.samples_first(sums).sum(1) if at.folded > 1 else sums


@rule("input, other", torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_)
def add(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = x + p, broadcast: ∇p = Σ δ over the axes that p lacks."""
    x, p = _operands(capture, call)
    return capture.tap(function(x, plain(p)), {p: lambda g, at: Direct(reduce_to(g, p, at))})


@rule("input, other", torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def multiply(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = x·p, broadcast: ∇p = Σ δ·x over the axes that p lacks."""
    x, p = _operands(capture, call)
    a = x.detach()
    return capture.tap(function(x, plain(p)), {p: lambda g, at: Direct(reduce_to(g * a.conj(), p, at))}, [a])


@rule("input, *sizes", Tensor.expand, Tensor.expand_as)
def expand(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = p, repeated for each sample: ∇p = Σ δ over what was repeated."""
    p = call["input"]
    return capture.tap(function(plain(p), *call["sizes"]), {p: lambda g, at: Direct(reduce_to(g, p, at))})


@rule("input, *sizes", Tensor.repeat)
def repeat(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """As `expand`, where only axes of length 1 are repeated."""
    p, sizes = call["input"], call["sizes"]
    sizes = sizes[0] if isinstance(sizes[0], tuple | list) else sizes
    if any(length > 1 and times > 1 for length, times in zip(p.shape[::-1], sizes[::-1], strict=False)):
        raise NoRule
    return capture.tap(function(plain(p), *sizes), {p: lambda g, at: Direct(reduce_to(g, p, at))})


@rule("condition, input, other", torch.where)
def where(capture: Capture, function: Callable[..., Tensor], call: Call) -> Tensor:
    """Rule of y = p where the condition holds, else x (or the other way round): ∇p = Σ δ over where it does."""
    condition, p, x = call["condition"], call["input"], call["other"]
    kept, lost = (p, x) if isinstance(p, Tensor) and p in capture.shared else (x, p)
    if condition.dtype != torch.bool or (isinstance(lost, Tensor) and lost in capture.shared):
        raise NoRule
    used = condition if kept is p else ~condition
    output = function(condition, plain(p), plain(x))
    return capture.tap(output, {kept: lambda g, at: Direct(reduce_to(g * used, kept, at))}, [condition])


def _operands(capture: Capture, call: Call) -> tuple[Tensor, Tensor]:
    """Return the tensor and the parameter of a commutative operation."""
    x, p = call["input"], call["other"]
    if x in capture.shared:
        x, p = p, x
    if not isinstance(x, Tensor) or x in capture.shared:
        raise NoRule
    return x, p


def reduce_to(values: Tensor, p: Tensor, at: Layout) -> Tensor:
    """Return `values`, shaped like the output, summed to (b, *p.shape)."""
    lacking = values.dim() - p.dim()
    axes = [
        axis for axis in range(values.dim()) if axis != at.axis and (axis < lacking or p.shape[axis - lacking] == 1)
    ]
    sums = upcast(values).sum(axes, keepdim=True) if axes else upcast(values)
    first = at.samples_first(sums)
    return (first.sum(1) if at.folded > 1 else first).reshape(len(first), -1)
