"""Losses that a model takes of its whole batch, taken of each sample.

Hugging Face's models return a mean loss over the batch when labels are among their inputs. Its gradient is not made of
the samples' own: texts of several lengths weigh differently in it. Within `Apart` a loss function that reduces a batch
to a number returns one number a sample, (b,) in place of (), as the model would of each sample alone.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from gradindex.data.names import Tree

_LOSSES = {
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
}
_BY_CLASS = {F.cross_entropy, F.nll_loss}  # whose weights are those of classes, not of places in the batch


class Apart(TorchFunctionMode):
    """Takes the losses of `samples` samples apart, whose rows follow each other in what a loss function is given."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._samples = samples

    def __torch_function__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Call `func`, for each sample if it is a loss that reduces over the batch."""
        kwargs = kwargs or {}
        if func not in _LOSSES or kwargs.get("reduction", "mean") not in ("mean", "sum"):
            return func(*args, **kwargs)
        named = dict(zip(("input", "target", "weight"), args, strict=False)) | kwargs
        scores, target, weight = named.pop("input"), named.pop("target"), named.get("weight")
        rows = self._samples
        folds = all(isinstance(one, Tensor) and one.dim() and len(one) % rows == 0 for one in (scores, target))
        if not folds or len(args) > 3 or (weight is not None and func not in _BY_CLASS):
            return func(*args, **kwargs)

        def one(scores: Tensor, target: Tensor) -> Tensor:
            return func(scores, target, **named)

        return vmap(one)(scores.unflatten(0, (rows, -1)), target.unflatten(0, (rows, -1)))
