"""Tensors computed from parameters alone, which every sample shares: slices, positions, parametrized weights.

A positional embedding is looked up once and broadcast over the batch, a normalised weight is computed from its
direction and length. Where such a tensor p meets the samples, a rule gives ∇p of each sample; from there to the
parameters it is the chain rule: one vector-Jacobian product of p's own small graph, batched over samples.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.torch.use import Touched, Use, Workspace

Make = Callable[..., Use]  # (δ, layout) -> Use


@dataclass(frozen=True)
class Leaf:
    """Where a shared tensor's graph begins: a parameter, some of its rows, or rows looked up in it."""

    tensor: Tensor  # kept, since the id of a dead tensor could name another
    parameter: Tensor
    finish: Callable[[Use], Use]
    """Makes a use of `parameter` of a use of `tensor`."""
    live: Tensor
    """`tensor`, needing a gradient."""


@dataclass(frozen=True)
class Derived:
    """A shared tensor as the model sees it, the same in its own graph, and where that begins."""

    tensor: Tensor
    live: Tensor
    leaves: tuple[Leaf, ...]


class Shared:
    """The tensors known to depend on parameters alone."""

    def __init__(self) -> None:
        self._leaves: dict[int, Leaf] = {}
        self._derived: dict[int, Derived] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        if type(tensor) is not Tensor and isinstance(tensor, torch.nn.Parameter):  # which is slow to ask
            return True
        return id(tensor) in self._leaves or id(tensor) in self._derived

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a parameter or rows of one, rather than computed from some."""
        return tensor in self and id(tensor) not in self._derived

    def add_rows(self, tensor: Tensor, parameter: Tensor, begin: int) -> None:
        """Remember that `tensor` is the rows of `parameter` from `begin` on."""
        self._add(tensor, parameter, lambda use: use.placed(begin, len(parameter)))

    def add_lookup(self, tensor: Tensor, parameter: Tensor, numbers: Tensor, padding: int | None) -> None:
        """Remember that `tensor` (…, C) is the rows `numbers` (…) of `parameter`; the padding's has no gradient."""
        flat = numbers.flatten()

        def finish(use: Use) -> Use:
            columns = use.form(slice(None)).unflatten(1, (len(flat), -1)).clone()
            if padding is not None:
                columns[:, flat == padding] = 0
            return Touched(flat.expand(len(columns), -1), columns, len(parameter))

        self._add(tensor, parameter, finish)

    def compute(self, function: Callable[..., Tree], args: Tree, kwargs: Tree) -> Tree:
        """Call `function`, all of whose gradient comes from known tensors, and know its results."""
        leaves = {id(leaf.tensor): leaf for tensor in tensors((args, kwargs)) for leaf in self.leaves(tensor)}
        with torch.enable_grad():
            result = function(*replace(self._live, args), **replace(self._live, kwargs))
        return replace(lambda live: self._know(live, tuple(leaves.values())), result)

    def leaves(self, tensor: Tree) -> tuple[Leaf, ...]:
        """Return where the graph of a known tensor begins; nothing for any other."""
        if id(tensor) in self._derived:
            return self._derived[id(tensor)].leaves
        if isinstance(tensor, torch.nn.Parameter) and id(tensor) not in self._leaves:
            self._add(tensor, tensor, lambda use: use)
        return (self._leaves[id(tensor)],) if id(tensor) in self._leaves else ()

    def uses(self, tensor: Tree, make: Make) -> Iterator[tuple[Tensor, Make]]:
        """Yield each parameter behind a known tensor, and how to make its use, given that of `tensor`."""
        derived = self._derived.get(id(tensor))
        for leaf in self.leaves(tensor):
            yield leaf.parameter, _chained(make, leaf, derived)

    def _add(self, tensor: Tensor, parameter: Tensor, finish: Callable[[Use], Use]) -> None:
        live = tensor.detach().requires_grad_(tensor.is_floating_point())
        self._leaves[id(tensor)] = Leaf(tensor, parameter, finish, live)

    def _live(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._derived:
            return self._derived[id(tensor)].live
        found = self.leaves(tensor)
        return found[0].live if found else tensor

    def _know(self, live: Tensor, leaves: tuple[Leaf, ...]) -> Tensor:
        tensor = live.detach()
        if live.requires_grad:
            self._derived[id(tensor)] = Derived(tensor, live, leaves)
        return tensor


class Pulled(Use):
    """A use of a shared tensor, seen from one leaf of its graph."""

    def __init__(self, use: Use, derived: Derived, leaf: Leaf) -> None:
        self._use, self._derived, self._leaf = use, derived, leaf

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, size of the leaf)."""
        live = self._derived.live
        gradients = self._use.form(block).to(live.dtype).unflatten(1, live.shape or (1,)).reshape(-1, *live.shape)
        found = _pull(live, self._leaf.live, gradients)
        return (
            gradients.new_zeros(len(gradients), self._leaf.live.numel())
            if found is None
            else found.reshape(len(found), -1)
        )

    def share(self, workspace: Workspace | None) -> None:
        """Take working memory from there."""
        self._use.share(workspace)

    def bytes_per_sample(self) -> int:
        """Return the working memory of the shared tensor's own gradient."""
        return self._use.form_bytes() + 8 * int(self._derived.live.numel())


def _pull(live: Tensor, leaf: Tensor, gradients: Tensor) -> Tensor | None:
    """Return the vector-Jacobian products (b, …) of d live / d leaf with `gradients` (b, …)."""

    def pull(rows: Tensor, batched: bool) -> Tensor | None:
        found: tuple[Tensor | None] = torch.autograd.grad(
            live, leaf, rows, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
        return found[0]

    try:
        return pull(gradients, batched=True)
    except RuntimeError:  # an operation whose backward pass vmap does not know
        found = [pull(row, batched=False) for row in gradients]
        return None if any(row is None for row in found) else torch.stack(found)


def _chained(make: Make, leaf: Leaf, derived: Derived | None) -> Make:
    if derived is None:
        return lambda g, at: leaf.finish(make(g, at))
    return lambda g, at: leaf.finish(Pulled(make(g, at), derived, leaf))


def tensors(value: Tree) -> list[Tensor]:
    """Return the tensors in nested arguments."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Tree, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for item in value:
            _gather(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _gather(item, found)


def replace(function: Callable[[Tensor], Leaf], value: Tree) -> Tree:
    """Return nested arguments with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: replace(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        items: Iterable[Any] = (replace(function, item) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
