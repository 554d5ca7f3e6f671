"""Per-sample gradients by ``vmap(grad)``: the model is called with each sample alone, as far as it can tell."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap

from gradindex.data.source import Tree, map_leaves
from gradindex.gradients.torch.outputs import main_tensor


def gradients(
    call: Callable[[dict[str, Tensor], Tree], Tree],
    loss_of: Callable[[Tree, Tree], Tensor],
    weights: dict[str, Tensor],
    inputs: Tree,
    targets: Tree,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return gradients (b, ·) by `weights`, losses (b,), and the main output (b, …) if a sample's is (1, …).

    Parameters
    ----------
    call
        Returns the model's output, given weights and a batch of one.
    loss_of
        Returns the loss, a scalar, of an output and the label of a batch of one.
    weights
        By what to differentiate.
    inputs, targets
        b samples.
    """

    def sample_loss(weights: dict[str, Tensor], one: Tree, target: Tree) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = call(weights, map_leaves(lambda leaf: leaf[None], one))
        target = None if target is None else map_leaves(lambda leaf: leaf[None], target)
        loss, main = loss_of(output, target), main_tensor(output)
        whole = main is None or not main.dim() or len(main) != 1
        return loss, (loss.detach(),) if whole else (loss.detach(), main)  # vmap refuses None

    per_sample = vmap(grad(sample_loss, has_aux=True), in_dims=(None, 0, None if targets is None else 0))
    found, (losses, *outputs) = per_sample(weights, inputs, targets)
    rows = torch.cat([found[name].flatten(1) if found[name].dim() > 1 else found[name][:, None] for name in weights], 1)
    return rows, losses, outputs[0][:, 0] if outputs else None
