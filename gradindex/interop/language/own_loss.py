"""Whether a loss is the one that the model was trained by: told by the first samples, never taken for granted."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradindex.data.names import LossFunction, Tree
from gradindex.data.source import Batch, Ids, Source, map_leaves
from gradindex.data.tensors import as_numpy
from gradindex.interop.language import models
from gradindex.interop.language.loss import ClassLoss, OwnLoss, RouterLoss, TokenCrossEntropy

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = 4  # at which losses are compared
_CLOSE, _CLOSE_HALF = 2e-5, 1e-2  # relative: a router's loss may be a thousandth of the whole


class WithLabels(Source):
    """Samples whose labels stand among the inputs, too, for a model that takes its loss itself.

    Parameters
    ----------
    source
        The samples, whose inputs are dicts.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        found = self._source.take(ids)
        return Batch(found.ids, {**found.x, "labels": found.y}, found.y)


def one(source: Source, i: int) -> tuple[Tree, Tree]:
    """Return a sample as torch tensors with a leading axis of 1."""
    import torch

    batch = source.take(np.array([i], np.int64))

    def tensor(leaf: Tree) -> Tree:
        found = torch.as_tensor(np.asarray(as_numpy(leaf[0])))[None]
        return found.long() if not found.is_floating_point() and found.dtype != torch.bool else found

    return map_leaves(tensor, batch.x), map_leaves(tensor, batch.y)


Truth = Callable[[dict[str, "object"]], float]
"""The loss of one sample as training takes it, of the model's inputs with their labels."""


def of_model(model: "nn.Module") -> Truth:
    """Return what takes the loss that the model itself gives."""

    def loss(inputs: dict[str, object]) -> float:
        output = model(**inputs)
        return float(output["loss"] if isinstance(output, dict) else output[0])

    return loss


def settle(
    model: "nn.Module", losses: Sequence[LossFunction], source: Source, truth: Truth, whose: str
) -> tuple[LossFunction, bool]:
    """Return the first of some losses that is the one which the model was trained by; else the model's own.

    Parameters
    ----------
    model
        The model.
    losses
        Losses of an output and labels, the means among them compared.
    source
        The training samples.
    truth
        What the loss of one sample is.
    whose
        What messages call it.

    Returns
    -------
    LossFunction
        The loss.
    bool
        Whether it reads what the model makes of labels among its inputs.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    from gradindex.gradients.torch.model import inference

    device = next(model.parameters()).device
    wanted: list[float] = []
    found: list[list[float]] = []
    with inference(model, device, fused=True):
        for i in range(min(_SAMPLES, len(source))):
            x, y = (map_leaves(lambda leaf: leaf.to(device), part) for part in one(source, i))
            value = truth({**x, "labels": y})
            if not np.isfinite(value):  # a sample without a token that counts
                continue
            output = model(**x)
            wanted.append(value)
            found.append([*(_value(loss, output, y) for loss in losses), of_model(model)({**x, "labels": y})])
    if not wanted:
        return losses[0], False
    errors = np.abs(np.array(found) - np.array(wanted)[:, None]) / np.maximum(np.abs(wanted), 1e-3)[:, None]
    fits = (np.nan_to_num(errors, nan=np.inf) <= closeness(model)).all(axis=0)
    for loss, same in zip(losses, fits, strict=False):
        if same:
            return loss, False
    best = losses[0]
    if fits[-1]:
        warnings.warn(
            f"{whose} loss of the first sample is {wanted[0]:.4g}, the cross-entropy of its labels {found[0][0]:.4g}: "
            "the model takes another loss, or adds to it. Rows are gradients of the model's loss; "
            "those of single tokens cannot be told.",
            UserWarning,
            stacklevel=4,
        )
        tokens = best if isinstance(best, TokenCrossEntropy) else TokenCrossEntropy(False)
        return OwnLoss(tokens.shift, tokens.reduction), True
    raise ValueError(
        f"{whose} loss of the first sample is {wanted[0]:.4g}, which is neither the cross-entropy of its labels, "
        f"{found[0][0]:.4g}, nor what the model gives itself, {found[0][-1]:.4g}. Give the loss that it was trained "
        "by: loss_fn=, a function of the model's output and the labels."
    )


def closeness(model: "nn.Module") -> float:
    """Return how far two ways to a loss may be apart, relative to it."""
    import torch

    half = any(value.dtype in (torch.bfloat16, torch.float16) for value in model.parameters())
    return _CLOSE_HALF if half else _CLOSE


def _value(loss: LossFunction, output: Tree, y: Tree) -> float:
    """Return the mean loss of a sample, NaN if the loss does not take the labels."""
    if isinstance(loss, TokenCrossEntropy):
        loss = replace(loss, reduction="mean")
    elif isinstance(loss, RouterLoss):
        loss = replace(loss, tokens=replace(loss.tokens, reduction="mean"))
    try:
        return float(loss(output, y))
    except (ValueError, RuntimeError, IndexError, TypeError):
        if not isinstance(loss, TokenCrossEntropy | ClassLoss):
            raise
        return float("nan")


def candidates(model: "nn.Module", loss: LossFunction) -> list[LossFunction]:
    """Return a loss, and the same with that of a router where the model's configuration asks for one."""
    inner = models.base(model)
    weight, experts, chosen = (
        getattr(inner, name, None) for name in ("router_aux_loss_coef", "num_experts", "num_experts_per_tok")
    )
    if not isinstance(loss, TokenCrossEntropy) or not getattr(models.config_of(model), "output_router_logits", False):
        return [loss]
    if weight is None or experts is None or chosen is None:
        return [loss]
    return [loss, RouterLoss(loss, float(weight), int(experts), int(chosen))]


def takes_labels(model: "nn.Module") -> bool:
    """Whether a model takes labels and gives a loss."""
    return "labels" in models.arguments(model)
