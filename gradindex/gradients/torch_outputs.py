"""A model's output, whatever holds its tensors (a tuple, a dict, an object such as Hugging Face's), and its labels."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.func import jvp

from gradindex.gradients.base import Floats, log

LABEL_FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "as given": lambda output, y: y,
    "like output": lambda output, y: y.reshape(output.shape).to(output.dtype),
    "squeezed": lambda output, y: y.squeeze(-1),
}
"""In the order they are tried: the label as given; shaped and typed like the output (BCE, MSE); (b, 1) as (b,)."""


def label_form(loss_fn: Callable[[Any, Any], Any], output: Any, target: Any) -> str:
    """Return the first form of the labels that the loss takes without an error, or else without a warning."""
    if not (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
        return "as given"
    for action in ("error", "ignore"):
        for form, shape in LABEL_FORMS.items():
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter(action, UserWarning)  # type: ignore[arg-type]
                try:
                    probe = output.detach().clone().requires_grad_()
                    torch.autograd.grad(loss_fn(probe, shape(probe, target)).sum(), probe)
                except Exception as error:
                    log.debug("labels %s: %s", form, error)
                    continue
            return form
    return "as given"  # the loss itself will say what is wrong


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


def along(
    outputs_of: Callable[[Any], Any], losses_of: Callable[[Any], torch.Tensor], weights: Any, tangents: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the derivatives (b,) float64 of a batch's losses along a change of the weights, and the losses (b,).

    Forward mode as far as the outputs, then the product with the losses' derivatives there, which gradients are made
    of, too. Where those are mostly rounding, forward mode through the loss would round otherwise: the cosine of a
    sample's gradient with itself was 1.1.
    """
    shape: list[Any] = []
    kinds: list[bool] = []

    def smooth(weights: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        found: list[torch.Tensor] = []
        shape.append(outputs_of(weights))
        map_tensors(found.append, shape[0])
        kinds.extend(_is_smooth(part) for part in found)
        return [part for part in found if _is_smooth(part)], [part for part in found if not _is_smooth(part)]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own, at first use
        values, changes, others = jvp(smooth, (weights,), (tangents,), has_aux=True)
    with torch.enable_grad():
        values = [value.detach().requires_grad_() for value in values]
        rest, left = iter(values), iter(others)
        parts = iter([next(rest if kind else left) for kind in kinds])
        losses = losses_of(map_tensors(lambda _: next(parts), shape[0]))
        found = torch.autograd.grad(losses.sum(), values, allow_unused=True, materialize_grads=True)
    products = [(one.conj() * change).real for one, change in zip(found, changes, strict=True)]
    dots = [product[..., None].flatten(1).sum(1, dtype=torch.float64) for product in products]  # outputs may be (b,)
    return torch.stack(dots).sum(0), losses.detach()


def _is_smooth(part: torch.Tensor) -> bool:
    return bool(part.dtype.is_floating_point or part.dtype.is_complex)


def main_tensor(output: Any) -> torch.Tensor | None:
    """Return an output that is a tensor, or the `logits` of one that has them, detached; else None."""
    output = getattr(output, "logits", output)
    return output.detach() if isinstance(output, torch.Tensor) else None


def as_array(output: Any) -> Floats | None:
    """Return the main tensor of an output as an array, None if there is none."""
    tensor = main_tensor(output)
    return None if tensor is None else to_numpy(tensor)


def to_numpy(tensor: torch.Tensor) -> Floats:
    """Return a tensor as an array, half precision as single."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: Floats = tensor.numpy()
    return array
