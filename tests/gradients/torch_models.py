"""Torch modules that use their parameters in the ways the table of `test_torch_layers` covers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

TOKENS = 11


class First(nn.Module):
    """The first output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class SelfAttention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.weights = options.get("need_weights", False)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.weights)[0]


class CrossAttention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(8, 6)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6, **options)

    def forward(self, x):
        memory = torch.tanh(self.before(x[:, 1:]))
        return self.attention(x, memory, memory)[0]


class TimeFirst(nn.Module):
    """Attention that wants (time, batch, …), fed by a layer that sees the same."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        x = self.before(x.transpose(0, 1))
        return self.attention(x, x, x)[0].transpose(0, 1)


class HuggingFaceConv1D(nn.Module):
    """As transformers.pytorch_utils.Conv1D computes: the weight is (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        size = (*x.size()[:-1], 3)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Tied(nn.Module):
    """A language model whose embedding is also its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 6, padding_idx=2)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, TOKENS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.norm(self.embedding(x)))


class Twice(nn.Module):
    """A layer called twice, a class token and a positional embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(4, 6))
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.scale * self.layer(torch.relu(self.layer(x)))


class Functional(nn.Module):
    """A weight used without a module, and once through a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return nn.functional.linear(x, self.weight) @ self.weight


class Frames(nn.Module):
    """Time folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        b, t = x.shape[:2]
        return self.linear(self.norm(self.conv(x.flatten(0, 1))).flatten(1)).view(b, t, -1)


class Viewed(nn.Module):
    """Its images are flattened by a view that knows channels first only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(16, 4, 3), nn.Linear(36, 3)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).view(len(x), -1))


class Repeated(nn.Module):
    """One layer three times."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x))) + self.layer(x.flip(-1))


class ManyFrames(nn.Module):
    """Time folded into the batch, with many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 3, 2)

    def forward(self, x):
        return self.conv(x.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, x.shape[:2])


class Both(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


class OwnForward(nn.Linear):
    """A subclass that does something else with its weight."""

    def forward(self, x):
        return super().forward(x) * self.weight.sum()


class Einsum(nn.Linear):
    """A weight in a function without a rule."""

    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.weight) + self.bias


class Positions(nn.Module):
    """Positions looked up once for all samples, as in Hugging Face's models."""

    def __init__(self, add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(TOKENS, 4), nn.Embedding(9, 4, **options)
        self.head = nn.Linear(4, 3)
        self.add = add

    def forward(self, x):
        return self.head(self.add(self.tokens(x), self.positions(torch.arange(x.shape[1]))))


class Relative(nn.Module):
    """T5's relative positions: looked up by pairs of places, and added within attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.bias = nn.Embedding(TOKENS, 8), nn.Embedding(11, 2)

    def forward(self, x):
        places = torch.arange(x.shape[1])
        bias = self.bias(places[:, None] - places + 5).permute(2, 0, 1)[None]
        heads = self.tokens(x).unflatten(2, (2, 4)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=bias)


class Window(nn.Module):
    """Parts and functions of parameters, shared by all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 9, 6))
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.down, self.up = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))
        self.temperature = nn.Parameter(torch.randn(()))

    def forward(self, x):
        x = torch.cat([self.token.repeat(len(x), 1, 1), x], 1)
        x = x + self.position[:, : x.shape[1]]
        return nn.functional.linear(x, self.down @ self.up) * self.temperature.exp()


class Masked(nn.Module):
    """A shared parameter where a condition on the sample holds, and where it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.missing = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(1, 3))

    def forward(self, x):
        return torch.where(x > 0, self.mask, x) * torch.where(x > 1, 2.0, self.missing)


class Bags(nn.Module):
    """Bags that follow each other, two a sample, one of them empty."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(TOKENS, 4, **options)

    def forward(self, x):
        b, t = x.shape
        starts = torch.arange(b)[:, None] * t + torch.tensor([0, 4, t])
        ends = [b * t] * self.bag.include_last_offset
        return self.bag(x.flatten(), torch.cat([starts.flatten(), torch.tensor(ends, dtype=torch.long)])).view(b, -1)


class WeightedBag(nn.Module):
    """A bag with learned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Embedding(TOKENS, 1)
        self.bag = nn.EmbeddingBag(TOKENS, 4, mode="sum")

    def forward(self, x):
        return self.bag(x, per_sample_weights=self.weights(x)[:, :, 0])


def trained(norm: nn.Module) -> nn.Module:
    """Give a normalisation other statistics and weights than it is born with."""
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        if value.is_floating_point():
            with torch.no_grad():
                value.copy_(torch.rand_like(value) + (0.5 if "var" in name else 0.1))
    return norm
