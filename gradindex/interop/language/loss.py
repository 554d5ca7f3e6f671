"""The losses that language models are trained by, as functions of output and labels: of a sample, and of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradindex.data.names import LossFunction, Tensor, Tree
from gradindex.data.text import IGNORED

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class TokenCrossEntropy:
    """Cross-entropy of the labelled tokens, their mean or sum.

    Where an output has more places than there are labels (the virtual tokens of prompt tuning stand in front), its
    last ones are the text's.

    Parameters
    ----------
    shift
        Whether the output at place j predicts token j + 1, as a causal model's does; else token j itself.
    reduction
        ``"mean"`` or ``"sum"`` over the tokens with a label.
    label_smoothing
        The share of the target that is spread over all tokens.
    """

    shift: bool
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0

    def __call__(self, output: Tree, y: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar, from an output with logits (b, t, V) and labels (b, t)."""
        losses, counted = self._losses(output, y)
        return losses.sum() if self.reduction == "sum" else losses.sum() / counted.sum().clamp(min=1)

    def per_token(self, output: Tree, y: Tensor) -> Tensor:
        """Return what each token gives to its sample's loss, (b, t); see `gradindex.data.text.TokenLoss`."""
        losses, counted = self._losses(output, y)
        return losses if self.reduction == "sum" else losses / counted.sum(1, keepdim=True).clamp(min=1)

    def _losses(self, output: Tree, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each token (b, t), 0 where it has no label, and which of those predicted have one."""
        import torch
        from torch.nn import functional

        logits = logits_of(output)
        ahead = logits.shape[1] - y.shape[1]
        if ahead < 0:
            raise ValueError(f"The model's output has {logits.shape[1]} places, the labels {y.shape[1]}.")
        first = int(self.shift and not ahead)  # nothing predicts the first token, unless a virtual one does
        end = logits.shape[1] - self.shift
        logits, targets = logits[:, end - (y.shape[1] - first) : end], y[:, first:]
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        losses = functional.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        ).view(targets.shape)
        return functional.pad(losses, (first, 0)), targets != IGNORED


@dataclass(frozen=True)
class RouterLoss:
    """The loss of tokens and, beside it, that of a mixture's router, which wants experts to be chosen alike.

    Tokens have no losses of their own here: the router's is one of all of them.

    Parameters
    ----------
    tokens
        The loss of the tokens.
    weight
        By how much the router's loss counts.
    experts, chosen
        How many experts there are, and how many a token chooses.
    """

    tokens: TokenCrossEntropy
    weight: float
    experts: int
    chosen: int

    @property
    def shift(self) -> bool:
        """As that of the tokens."""
        return self.tokens.shift

    @property
    def reduction(self) -> Reduction:
        """As that of the tokens."""
        return self.tokens.reduction

    def __call__(self, output: Tree, y: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar, from an output with router_logits; of a sum, the router's as often."""
        router = self.weight * self._unevenness(output["router_logits"])
        if self.reduction == "mean":
            return self.tokens(output, y) + router
        return self.tokens(output, y) + router * (y[:, int(self.shift) :] != IGNORED).sum()

    def _unevenness(self, layers: Sequence[Tensor]) -> Tensor:
        """Return E Σ_e f_e p_e of the logits (tokens, E) of all layers: how often chosen, times the mean probability.

        That of Switch Transformers, https://arxiv.org/abs/2101.03961, as transformers has it.
        """
        import torch

        probabilities = torch.cat([layer.float().softmax(-1) for layer in layers])
        chosen = probabilities.detach().topk(self.chosen, dim=-1).indices
        often = (chosen[..., None] == torch.arange(self.experts, device=chosen.device)).sum((0, 1)) / len(chosen)
        return self.experts * (often * probabilities.mean(0)).sum()


@dataclass(frozen=True)
class ClassLoss:
    """The loss of a sequence classifier, as Hugging Face's models take it.

    Parameters
    ----------
    problem
        ``"single_label_classification"`` (cross-entropy), ``"multi_label_classification"`` (binary cross-entropy of
        each) or ``"regression"`` (squared error).
    label_smoothing
        The share of the target that is spread over all classes.
    """

    problem: str
    label_smoothing: float = 0.0

    def __call__(self, output: Tree, y: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar, from logits (b, c) and labels (b,) or (b, c)."""
        from torch.nn import functional

        logits = logits_of(output)
        if self.problem == "regression":
            return functional.mse_loss(logits, y.reshape(logits.shape).to(logits.dtype))
        if self.problem == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))
        return functional.cross_entropy(logits, y, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class OwnLoss:
    """The loss that the model takes itself of the labels among its inputs.

    Parameters
    ----------
    shift
        As `TokenCrossEntropy`; only counts.
    reduction
        ``"sum"`` multiplies the model's mean by the number of labelled tokens.
    """

    shift: bool
    reduction: Reduction = "mean"

    def __call__(self, output: Tree, y: Tensor) -> Tensor:
        """Return the model's loss, a scalar."""
        loss: Tensor = output["loss"] if isinstance(output, dict) else output[0]
        if self.reduction == "mean":
            return loss
        targets = y[:, 1:] if self.shift else y
        return loss * (targets != IGNORED).sum()


@dataclass(frozen=True)
class TrainerLoss:
    """A Trainer's ``compute_loss_func``, of one sample.

    Parameters
    ----------
    function
        ``function(output, labels, num_items_in_batch=)``.
    """

    function: LossFunction

    def __call__(self, output: Tree, y: Tensor) -> Tensor:
        """Return the loss of a batch as the function takes it where nothing else is in the batch."""
        return self.function(output, y)


def logits_of(output: Tree) -> Tensor:
    """Return the logits of an output: a tensor, an object or a dict with ``logits``, or a tuple that begins so.

    Raises
    ------
    TypeError
        If there are none.
    """
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple) else found
    if not hasattr(found, "dim"):
        raise TypeError(
            f"The model's output, {type(output).__name__}, holds no logits. Expected a model with a head, such as "
            "AutoModelForCausalLM."
        )
    return found
