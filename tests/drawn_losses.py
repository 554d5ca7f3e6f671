"""Losses of drawn models, with labels that fit; each takes a whole output and a batch of labels."""

from typing import Any

import torch
from torch.nn import functional as F

from tests.drawn_parts import CLASSES, hidden, logits


def _weights(n: int, like: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.5, 2.0, n).to(like)


def _focal(z, y):
    p = F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]
    return (-((1 - p.exp()) ** 2) * p).mean()


def _trimmed(z, y):
    each = F.cross_entropy(z, y, reduction="none")
    return torch.where(each > 2.5, 0.1 * each, each).mean()


def _branched(z, y):
    loss = F.cross_entropy(z, y)
    return 0.1 * loss if loss > 2.0 else loss


def _smooth_targets(z, y):
    with torch.no_grad():
        target = F.softmax(2 * z, 1)
    return F.cross_entropy(z, y) - 0.3 * (target * F.log_softmax(z, 1)).sum(1).mean()


CLASS_LOSSES: dict[str, Any] = {
    "cross entropy": F.cross_entropy,
    "cross entropy, sum": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=_weights(z.shape[1], z), reduction="sum"),
    "class weights, mean": lambda z, y: F.cross_entropy(z, y, weight=_weights(z.shape[1], z)),
    "ignored label": lambda z, y: F.cross_entropy(z, y, ignore_index=3, reduction="sum"),
    "nll": lambda z, y: F.nll_loss(F.log_softmax(z, 1), y),
    "hinge": F.multi_margin_loss,
    "focal": _focal,
    "trimmed": _trimmed,
    "branched": _branched,
    "smooth targets": _smooth_targets,
    "in double": lambda z, y: F.cross_entropy(z.double(), y),
}
NUMBER_LOSSES: dict[str, Any] = {
    "mse": F.mse_loss,
    "mse, sum": lambda z, y: F.mse_loss(z, y, reduction="sum"),
    "huber": lambda z, y: F.smooth_l1_loss(z, y, beta=0.5),
    "poisson": lambda z, y: F.poisson_nll_loss(z, y.abs()),
    "binary": lambda z, y: F.binary_cross_entropy_with_logits(z, (y > 0).to(z)),
    "gaussian": lambda z, y: F.gaussian_nll_loss(z[:, :1], y[:, :1], F.softplus(z[:, 1:2]) + 0.1),
    "cosine": lambda z, y: (1 - F.cosine_similarity(z, y)).mean(),
    "divergence": lambda z, y: F.kl_div(F.log_softmax(z, 1), F.softmax(y, 1), reduction="batchmean"),
}


class Loss:
    """A loss of the logits, a penalty, and a term of another part of the output.

    `penalty` is one of ``"none"``, ``"all"`` (on every sample) and ``"rare"`` (on samples of the last class only).
    """

    def __init__(self, base: Any, model: Any, penalty: str, decay: float, both: bool) -> None:
        self.base, self.penalty, self.decay, self.both = base, penalty, decay, both
        self.model = None if penalty == "none" else model
        self.on = False

    def __call__(self, output: Any, y: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        loss = self.base(logits(output), y)
        other = hidden(output) if self.both else None
        if other is not None:
            loss = loss + 0.1 * other.square().mean()
        if self.on and (self.penalty == "all" or (self.penalty == "rare" and (y == CLASSES - 1).any())):
            loss = loss + self.decay * sum(p.square().sum() for p in self.model.parameters())
        return loss
