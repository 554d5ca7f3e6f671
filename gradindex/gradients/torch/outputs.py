"""A model's output, whatever holds its tensors (a tuple, a dict, an object such as Hugging Face's), and its labels."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import jvp

from gradindex.data.names import Leaf, LossFunction, Tree
from gradindex.gradients.parameter import Floats
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from gradindex.gradients.torch.engine import TorchEngine

LABEL_FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "as given": lambda output, y: y,
    "like output": lambda output, y: y.reshape(output.shape).to(output.dtype),
    "squeezed": lambda output, y: y.squeeze(-1),
}
"""In the order they are tried: the label as given; shaped and typed like the output (BCE, MSE); (b, 1) as (b,)."""


def label_form(loss_fn: LossFunction, output: Tree, target: Tree) -> str:
    """Return the first form of the labels that the loss takes without an error, or else without a warning."""
    if not (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
        return "as given"
    for action in ("error", "ignore"):
        for form, shape in LABEL_FORMS.items():
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter(action, UserWarning)
                try:
                    probe = output.detach().clone().requires_grad_()
                    torch.autograd.grad(loss_fn(probe, shape(probe, target.clone())).sum(), probe)
                except Exception as error:
                    log.debug("labels %s: %s", form, error)
                    continue
            return form
    return "as given"  # the loss itself will say what is wrong


def map_tensors(function: Callable[[torch.Tensor], Leaf], output: Tree) -> Tree:
    """Return a copy of `output` with every tensor in it replaced by what `function` makes of it, in order.

    Tensors are sought in tuples, lists, dicts and attributes of objects, but not within modules.
    """
    return _map(function, output, ())


def _map(function: Callable[[torch.Tensor], Leaf], output: Tree, within: tuple[int, ...]) -> Tree:
    if isinstance(output, torch.Tensor):
        return function(output)
    if id(output) in within or isinstance(output, type | torch.nn.Module):
        return output
    inside = (*within, id(output))
    if isinstance(output, tuple):
        parts = [_map(function, part, inside) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    if isinstance(output, list):
        return [_map(function, part, inside) for part in output]
    if isinstance(output, dict):
        found = copy.copy(output)
        for key, part in output.items():
            found[key] = _map(function, part, inside)  # Hugging Face's dicts set the attribute as well
        return found
    if hasattr(output, "__dict__") and not callable(output):
        found = copy.copy(output)
        for name, part in vars(output).items():
            object.__setattr__(found, name, _map(function, part, inside))
        return found
    return output


@dataclass(frozen=True)
class Moved:
    """What the losses of a batch read of the model's outputs, and how it changes along a direction of the weights.

    `values`, tensors (b, …), and their derivatives `changes`; `kinds` says which of the tensors that are read these
    are, `others` are those without derivatives; `output` is what all of them belong to.
    """

    values: list[torch.Tensor]
    changes: list[torch.Tensor]
    kinds: list[bool]
    others: list[torch.Tensor]
    output: Tree

    def rows(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return all that the losses read, with `values` in the place of these."""
        rest, left = iter(values), iter(self.others)
        return [next(rest if kind else left) for kind in self.kinds]

    def leaves(self) -> list[torch.Tensor]:
        """Return the values as tensors by which losses can be differentiated."""
        return [value.detach().requires_grad_() for value in self.values]


def moved(rows_of: Callable[[Tree], tuple[Sequence[torch.Tensor], Tree]], weights: Tree, tangents: Tree) -> Moved:
    """Return what forward mode along `tangents` says of the outputs; `rows_of` as in `along`."""
    shape: list[Any] = []
    kinds: list[bool] = []

    def smooth(weights: Tree) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        found, output = rows_of(weights)
        shape.append(output)
        kinds.extend(is_smooth(part) for part in found)
        return [part for part in found if is_smooth(part)], [part for part in found if not is_smooth(part)]

    with forward_mode():
        values, changes, others = jvp(smooth, (weights,), (tangents,), has_aux=True)
    return Moved(values, changes, kinds, others, shape[0])


@contextmanager
def forward_mode() -> Iterator[None]:
    """Within it, torch warns of nothing that it does by itself when forward mode is first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        yield


def along(
    rows_of: Callable[[Tree], tuple[Sequence[torch.Tensor], Tree]],
    losses_of: Callable[[Sequence[torch.Tensor], Tree], torch.Tensor],
    weights: Tree,
    tangents: Tree,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the derivatives (b,) float64 of a batch's losses along a change of the weights, and the losses (b,).

    Forward mode as far as the outputs, then the product with the losses' derivatives there, which gradients are made
    of, too. Where those are mostly rounding, forward mode through the loss would round otherwise: the cosine of a
    sample's gradient with itself was 1.1.

    `rows_of` returns tensors (b, …) that the losses read, and the outputs that they belong to; `losses_of` is given
    both.
    """
    change = moved(rows_of, weights, tangents)
    with torch.enable_grad():
        values = change.leaves()
        losses = losses_of(change.rows(values), change.output)
        found = torch.autograd.grad(losses.sum(), values, allow_unused=True, materialize_grads=True)
    products = [(one.conj() * change).real for one, change in zip(found, change.changes, strict=True)]
    dots = [product[..., None].flatten(1).sum(1, dtype=torch.float64) for product in products]  # rows may be (b,)
    return torch.stack(dots).sum(0), losses.detach()


def is_smooth(part: torch.Tensor) -> bool:
    """Whether a tensor's numbers have derivatives."""
    return bool(part.dtype.is_floating_point or part.dtype.is_complex)


def main_tensor(output: Tree) -> torch.Tensor | None:
    """Return an output that is a tensor, or the `logits` of one that has them, detached; else None."""
    output = getattr(output, "logits", output)
    return output.detach() if isinstance(output, torch.Tensor) else None


def as_array(output: Tree, samples: int) -> Floats | None:
    """Return the main tensor (b, …) of an output of `samples` samples as an array, None if there is none."""
    tensor = main_tensor(output)
    return None if tensor is None or not tensor.dim() or len(tensor) != samples else to_numpy(tensor)


def loss_at_zero(engine: "TorchEngine", x: Tree, y: Tree) -> float:
    """Return the loss of a batch of ONE sample, with zeros in the place of the model's outputs."""
    with engine._inference(fused=True):
        output = map_tensors(torch.zeros_like, engine._call({}, engine._tensors(x)))
        return float(engine._losses.one(output, engine._targets(y)))


def to_numpy(tensor: torch.Tensor) -> Floats:
    """Return a tensor as an array, half precision as single."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: Floats = tensor.numpy()
    return array
