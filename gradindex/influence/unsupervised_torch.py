"""PyTorch: a model and its loss without labels as one module."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradindex.data.names import LossFunction, Tensor
from gradindex.data.source import Tree, leaves
from gradindex.gradients.inputs import bind_inputs

_PREFIX = "model."


class WithLoss(nn.Module):
    """A module that returns its model's output, or the losses (b, draws) of a loss of the model.

    The output stands in a dict, so that it is not taken for class scores; `reveal` gives the losses as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        takes_model: bool,
        noise: NDArray[np.float32] | None,
        reveal: bool,
    ) -> None:
        super().__init__()
        model = getattr(model, "_orig_mod", model)
        self.model = model.module if isinstance(model, nn.DataParallel) else model
        self._loss_fn, self._takes_model, self._reveal = loss_fn, takes_model, reveal
        self.register_buffer("noise", None if noise is None else self._like_weights(noise))

    def forward(self, inputs_: Tree) -> torch.Tensor:
        """Return the output or the losses of a batch."""
        if not self._takes_model:
            args, kwargs = bind_inputs(self.model.forward, inputs_)
            return {"output": self.model(*args, **kwargs)}
        count = len(leaves(inputs_)[0])
        if self.noise is None:
            found = [self._checked(self._loss_fn(self.model, inputs_), count)]
        else:
            found = [
                self._checked(self._loss_fn(self.model, inputs_, draw.expand(count, *draw.shape)), count)
                for draw in self.noise
            ]
        losses = torch.stack(found, dim=1)
        return losses if self._reveal else {"losses": losses}

    def _like_weights(self, noise: NDArray[np.float32]) -> torch.Tensor:
        weight = next(self.model.parameters())
        return torch.from_numpy(noise).to(weight.device, weight.dtype, copy=True)

    @staticmethod
    def _checked(loss: torch.Tensor, count: int) -> torch.Tensor:
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        if loss.dim() == 0 and count == 1:
            return loss[None]
        if loss.shape != (count,):
            raise ValueError(
                f"loss_fn returned a tensor of shape {tuple(loss.shape)} for {count} samples; expected one loss each, "
                f"({count},). Sum over all axes but the first."
            )
        return loss


def wrap(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    takes_model: bool,
    noise: NDArray[np.float32] | None,
    example: Tree,
    reveal: bool,
) -> nn.Module:
    """Return the module whose output the engine's loss is taken of."""
    del example
    return WithLoss(model, loss_fn, takes_model, noise, reveal)


def set_noise(model: nn.Module, noise: NDArray[np.float32]) -> None:
    """Replace the draws of a wrapped model, in place."""
    with torch.inference_mode(False), torch.no_grad():
        model.noise.copy_(torch.from_numpy(noise))


def of_model(output: Tree, _: Tree) -> torch.Tensor:
    """Return the mean of the losses over draws."""
    losses = output["losses"] if isinstance(output, dict) else output
    mean: torch.Tensor = losses.mean()
    return mean


def of_output(loss_fn: LossFunction) -> LossFunction:
    """Return the engine's loss for a user's ``loss_fn(output, x)``."""
    return lambda output, label: loss_fn(output["output"], label[0])


def names(model: nn.Module, parameters: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """Return a selection of parameters of the model as one of the wrapper."""
    del model
    if parameters is None or isinstance(parameters, str):
        return parameters
    return [name if name.startswith(_PREFIX) else _PREFIX + name for name in parameters]
