"""What drawn models are made of: trunks, what happens between layers, hooks, and shapes of outputs."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH, CLASSES, TOKENS = 6, 4, 12
ACTIVATIONS = (nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)


class Rounded(torch.autograd.Function):
    """A straight-through estimator: steps forward, the identity backward. As most are written: unknown to vmap."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversed(torch.autograd.Function):
    """A gradient reversal that vmap knows, and forward mode does not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return -0.3 * gradient


class Middle(nn.Module):
    """A linear layer, and what a model does around it that some way of computing gradients may miss."""

    def __init__(self, kind: str, at: float) -> None:
        super().__init__()
        self.kind, self.at, self.on = kind, at, False
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("average", torch.zeros(WIDTH))

    def forward(self, h):
        h = torch.tanh(self.linear(h)) + h
        if not self.on or self.kind == "plain":
            return h + 0.3 * self.other(h)
        return getattr(self, self.kind)(h)

    def no_grad_target(self, h):
        with torch.no_grad():
            target = self.other(h)
        return h + 0.5 * self.other(0.5 * h) - 0.7 * target

    def detached(self, h):
        return h * torch.sigmoid(self.other(h)).detach() + 0.2 * self.other(h)

    def straight_through(self, h):
        return Rounded.apply(self.other(h))

    def reversal(self, h):
        return Reversed.apply(self.other(h)) + h

    def _hooked(self, h, hook):
        h = self.other(h)
        if h.requires_grad:
            h.register_hook(hook)
        return h

    def tensor_hook_clips(self, h):
        return self._hooked(h, lambda g: g.clamp(-self.at, self.at))

    def tensor_hook_normalises(self, h):
        return self._hooked(h, lambda g: g / (g.norm() + 1e-6))

    def any_branch(self, h):
        return h + self.other(h) * (3.0 if (h[..., 0] > self.at).any() else 0.2)

    def all_branch(self, h):
        return self.other(h) if (h[..., 1] < self.at).all() else h - self.other(h)

    def early_exit(self, h):
        if h.mean().item() > self.at:
            return h
        return h + torch.tanh(self.other(h))

    def repeated(self, h):
        for _ in range(1 + int(h.detach().max() > self.at)):
            h = h + 0.5 * torch.tanh(self.other(h))
        return h

    def where(self, h):
        return torch.where(h > self.at, h, self.other(h))

    def centred(self, h):
        return self.other(h) - 0.5 * h.mean(0)

    def scaled_by_batch(self, h):
        return self.other(h) / (1e-3 + h.abs().max())

    def counts(self, h):
        self.count += 1
        return self.other(h) * (1 + 0.1 * self.count)

    def moving_average(self, h):
        self.average.mul_(0.9).add_(0.1 * h.detach().reshape(-1, WIDTH).mean(0))
        return self.other(h) - self.average

    def quantised(self, h):
        scale = h.detach().abs().max() / 7
        return self.other(h + (torch.round(h / scale) * scale - h).detach())

    def in_place(self, h):
        return (self.other(h) - 0.1).mul_(0.5).add_(h)

    def checkpointed(self, h):
        return checkpoint(lambda x: torch.tanh(self.other(x)), h, use_reentrant=False) + h

    def twice(self, h):
        return self.other(torch.tanh(self.other(h)))

    def weights_as_numbers(self, h):
        return self.other(h) * (1 + float(self.other.weight.detach().abs().mean()))

    def normed_weight(self, h):
        return F.linear(h, F.normalize(self.other.weight, dim=1), self.other.bias)


SOUND = (
    "plain", "plain", "plain", "no_grad_target", "detached", "straight_through", "reversal", "tensor_hook_clips",
    "where", "in_place", "twice", "weights_as_numbers", "normed_weight", "checkpointed",
)  # fmt: skip
OF_BATCHES = (
    "tensor_hook_normalises", "any_branch", "all_branch", "early_exit", "repeated", "centred", "scaled_by_batch",
    "quantised", "counts", "moving_average",
)  # fmt: skip
STEPS = ("straight_through", "quantised", "any_branch", "all_branch", "early_exit", "repeated", "where")


class Trunk(nn.Module):
    """Layers from an input of some kind to features (b, WIDTH)."""

    def __init__(self, kind: str, activation: type[nn.Module], flags: dict[str, Any]) -> None:
        super().__init__()
        self.kind, self.flags = kind, flags
        self.body = getattr(self, f"_{kind}")(activation)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def _vectors(self, act):
        norm = (nn.Identity, nn.LayerNorm, nn.BatchNorm1d)[self.flags["norm"]]
        args = () if norm is nn.Identity else (10,)
        return nn.Sequential(nn.Linear(7, 10), norm(*args), act(), nn.Dropout(0.2), nn.Linear(10, WIDTH, bias=False))

    def _images(self, act):
        norm = (nn.Identity(), nn.GroupNorm(2, 4), nn.BatchNorm2d(4))[self.flags["norm"]]
        conv = nn.Conv2d(2, 4, 3, stride=1 + self.flags["a"], padding=1, groups=1 + self.flags["b"])
        return nn.Sequential(conv, norm, act(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, WIDTH))

    def _signals(self, act):
        conv = nn.ConvTranspose1d(2, 4, 3) if self.flags["a"] else nn.Conv1d(2, 4, 3, dilation=1 + self.flags["b"])
        return nn.Sequential(conv, act(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(8, WIDTH))

    def _texts(self, act):
        options = {name: self.flags[name] for name in ("padding_idx", "scale_grad_by_freq", "max_norm")}
        return nn.Sequential(nn.Embedding(TOKENS, WIDTH, **options), nn.Linear(WIDTH, WIDTH), act())

    def _recurrent(self, act):
        return (nn.LSTM, nn.GRU, nn.RNN)[self.flags["norm"]](5, WIDTH, batch_first=True, bidirectional=False)

    def _attention(self, act):
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 8, dropout=0.1, batch_first=True, activation="gelu", norm_first=bool(self.flags["a"])
        )
        return nn.Sequential(nn.Linear(5, WIDTH), layer)

    def forward(self, x):
        h = self.body(x)
        if self.kind == "recurrent":
            h = h[0][:, -1]
        elif h.dim() == 3:
            h = h.mean(1)
        return h * self.scale

    def example(self, samples: int) -> torch.Tensor:
        """Inputs drawn from torch's generator."""
        if self.kind == "texts":
            return torch.randint(0, TOKENS, (samples, 5))
        shape = {"vectors": (7,), "images": (2, 5, 5), "signals": (2, 6)}.get(self.kind, (4, 5))
        return torch.randn(samples, *shape)


TRUNKS = ("vectors", "vectors", "images", "signals", "texts", "texts", "recurrent", "attention")


class Pair(NamedTuple):
    """An output with a second part."""

    logits: torch.Tensor
    hidden: torch.Tensor


class Network(nn.Module):
    """A trunk, what happens in the middle, and a head whose output has some structure."""

    def __init__(self, trunk: Trunk, middle: Middle, outputs: int, structure: str, tied: bool) -> None:
        super().__init__()
        self.trunk, self.middle, self.structure, self.tied = trunk, middle, structure, tied
        self.head = nn.Linear(WIDTH, outputs, bias=not tied)
        if tied:
            self.head.weight = trunk.body[0].weight

    def forward(self, x, gain=None):
        h = self.middle(self.trunk(x))
        out = self.head(h)
        if gain is not None:
            out = out * gain[:, None]
        return STRUCTURES[self.structure](out, h)


STRUCTURES = {
    "tensor": lambda out, h: out,
    "tuple": lambda out, h: (out, h),
    "dict": lambda out, h: {"logits": out, "hidden": h},
    "named": Pair,
    "object": lambda out, h: SimpleNamespace(logits=out, states=h[None], nothing=None),
    "scalar": lambda out, h: {"logits": out, "aux": 0.1 * h.square().mean()},
}


def logits(output):
    """Return the tensor of an output that most losses read."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Pair) or not isinstance(output, tuple | dict):
        return output.logits
    return output["logits"] if isinstance(output, dict) else output[0]


def hidden(output):
    """Return another part of an output that has one, else None."""
    if isinstance(output, torch.Tensor | SimpleNamespace):
        return None
    if isinstance(output, dict):
        return output.get("hidden", output.get("aux"))
    return output[1]


def clip(at):
    return lambda g: g.clamp(-at, at)


def unit(g):
    return g / (g.norm() + 1e-6)


def _attach_modules(module, change):
    module.register_full_backward_hook(
        lambda m, grad_in, grad_out: tuple(g if g is None else change(g) for g in grad_in)
    )


def _attach_before(module, change):
    module.register_full_backward_pre_hook(lambda m, grad_out: tuple(g if g is None else change(g) for g in grad_out))


def _after_accumulation(parameter, change):
    def hook(p):
        p.grad = change(p.grad)

    parameter.register_post_accumulate_grad_hook(hook)


def attach(kind: str, model: Network, at: float) -> None:
    """Register the hooks of a kind on a model."""
    middle, weight = model.middle, model.middle.linear.weight
    if kind == "parameter clips":
        weight.register_hook(clip(at))
    elif kind == "parameter masked":
        mask = (torch.arange(len(model.head.weight)) % 2).to(model.head.weight)[:, None]
        model.head.weight.register_hook(lambda g: g * mask)
    elif kind == "parameter normalised":
        weight.register_hook(unit)
    elif kind == "after accumulation":
        _after_accumulation(weight, lambda g: 0.5 * g)
    elif kind == "module scales":
        _attach_modules(middle.linear, lambda g: 0.3 * g)
    elif kind == "module clips":
        _attach_modules(middle.other, clip(at))
    elif kind == "module clips before":
        _attach_before(model.trunk, clip(at))
    elif kind == "module normalises the batch":
        _attach_before(model.trunk, unit)
    elif kind == "forward":
        middle.linear.register_forward_hook(lambda m, args, out: 1.5 * out)
    elif kind == "forward before":
        middle.other.register_forward_pre_hook(lambda m, args: (args[0] - 0.1,))


HOOKS = (
    "none", "none", "none", "none", "none", "none", "none", "parameter clips", "parameter masked",
    "parameter normalised", "after accumulation", "module scales", "module clips", "module clips before",
    "module normalises the batch", "forward", "forward before",
)  # fmt: skip
