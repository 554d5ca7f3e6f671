"""Per-sample gradients of single layers, one small rule for each kind; importing this registers them."""

from gradindex.gradients.torch.rules import attention, conv, embedding, experts, linear, norm, recurrent

__all__ = ["attention", "conv", "embedding", "experts", "linear", "norm", "recurrent"]
