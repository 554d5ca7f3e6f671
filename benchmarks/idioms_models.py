"""The models of `idioms.py`, of random weights: Hugging Face's language models, adapters, a UNet, an LSTM, a table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Idiom:
    """A model, its loss and samples: `data(n)` returns (x, y)."""

    name: str
    model: nn.Module
    loss: Callable[[Any, Any], torch.Tensor]
    data: Callable[[int], tuple[Any, torch.Tensor]]

    def call(self, x: Any) -> Any:
        """Return the model's output."""
        return self.model(**x) if isinstance(x, dict) else self.model(x)


def language_model(kind: str, quick: bool, **options: Any) -> nn.Module:
    """Return a causal language model of Hugging Face's, as its class makes it."""
    import transformers

    width, layers = (16, 1) if quick else (128, 4)
    sizes = {
        "vocab_size": 50 if quick else 2000, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gemma3":
        config = transformers.Gemma3TextConfig(**sizes, head_dim=width // 4, sliding_window=16, **options)
        return transformers.Gemma3ForCausalLM(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **options))


def next_token(out: Any, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), y[:, 1:].flatten())


def texts(quick: bool, labels: bool = False) -> Callable[[int], tuple[Any, torch.Tensor]]:
    def data(n: int) -> tuple[Any, torch.Tensor]:
        ids = torch.randint(1, 50 if quick else 2000, (n, 8 if quick else 48))
        x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return ({**x, "labels": ids} if labels else x), ids

    return data


def causal(kind: str, quick: bool) -> Idiom:
    return Idiom(kind, language_model(kind, quick), next_token, texts(quick))


def own_loss(quick: bool) -> Idiom:
    return Idiom("llama, out.loss", language_model("llama", quick), lambda out, y: out.loss, texts(quick, labels=True))


class Lora(nn.Module):
    """A frozen linear layer and a product of two narrow float32 ones, added as peft does."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        return out + (2 * self.up(self.down(x.to(self.down.weight.dtype)))).to(out.dtype)


def lora(name: str, quick: bool, dtype: torch.dtype = torch.float32, input_gradients: bool = False) -> Idiom:
    model = language_model("llama", quick).to(dtype).requires_grad_(False)
    for layer in model.model.layers:
        for side in ("q_proj", "v_proj"):
            setattr(layer.self_attn, side, Lora(getattr(layer.self_attn, side)))
    if input_gradients:
        model.enable_input_require_grads()
    return Idiom(name, model, next_token, texts(quick))


class Checkpointed(nn.Module):
    def __init__(self, width: int, layers: int, words: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, 10)
        made = [nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True) for _ in range(layers)]
        self.layers = nn.ModuleList(made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.words(x)
        for layer in self.layers:
            h = checkpoint(layer, h, use_reentrant=False)
        return self.head(h.mean(1))


class Residual(nn.Module):
    """A residual block of a diffusion model: two convolutions, the time's embedding added between them."""

    def __init__(self, before: int, after: int, times: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, before), nn.Conv2d(before, after, 3, padding=1)
        self.time, self.norm2 = nn.Linear(times, after), nn.GroupNorm(4, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.short = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.short(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.GroupNorm(4, width), nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """As diffusers' UNet2DModel: a time embedding, a way down and up with skips, and an object with `sample`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, times = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, times), nn.SiLU(), nn.Linear(times, times))
        self.into = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.less = Residual(width, width, times), nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.down2, self.attention = Residual(width, 2 * width, times), Attention(2 * width)
        self.middle = Residual(2 * width, 2 * width, times)
        self.up2, self.more = Residual(4 * width, width, times), nn.Conv2d(width, width, 3, padding=1)
        self.up1, self.out = Residual(2 * width, width, times), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        steps = torch.exp(-torch.arange(self.width // 2) / self.width)
        angles = timestep[:, None].float() * steps
        t = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.down1(self.into(sample), t)
        second = self.attention(self.down2(self.less(first), t))
        h = self.up2(torch.cat([self.middle(second, t), second], 1), t)
        h = self.more(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return SimpleNamespace(sample=self.out(F.silu(self.up1(torch.cat([h, first], 1), t))), scale=t.mean())


def unet(quick: bool) -> Idiom:
    torch.manual_seed(0)
    side = 8 if quick else 16

    def data(n: int) -> tuple[Any, torch.Tensor]:
        noise = torch.randn(n, 3, side, side)
        return {"sample": torch.randn(n, 3, side, side), "timestep": torch.randint(0, 1000, (n,))}, noise

    return Idiom("UNet", UNet(8 if quick else 32), lambda out, y: F.mse_loss(out.sample, y), data)


class Recurrent(nn.Module):
    """Returns its states, whose samples are on the second axis."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, 10)
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        out, states = self.lstm(self.words(x))
        return self.head(out[:, -1]), states


class Table(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(rows, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.table(x).mean(1))))


def of_tokens(
    name: str, make: Callable[[], nn.Module], words: int, length: int, loss: Callable[[Any, Any], torch.Tensor]
) -> Idiom:
    torch.manual_seed(0)
    data = lambda n: (torch.randint(0, words, (n, length)), torch.randint(0, 10, (n,)))  # noqa: E731
    return Idiom(name, make(), loss, data)


def checkpointed(quick: bool) -> Idiom:
    make = partial(Checkpointed, 16 if quick else 128, 1 if quick else 3, 1000)
    return of_tokens("checkpointed encoder", make, 1000, 8 if quick else 32, F.cross_entropy)


def lstm(quick: bool) -> Idiom:
    make = partial(Recurrent, 1000, 16 if quick else 128)
    return of_tokens("LSTM with states", make, 1000, 32, lambda out, y: F.cross_entropy(out[0], y))


def table(quick: bool) -> Idiom:
    rows = 2000 if quick else 200_000
    return of_tokens("embedding 200k × 64", partial(Table, rows), rows, 20, F.cross_entropy)


CASES: dict[str, Callable[[bool], Idiom]] = {
    "gemma3": partial(causal, "gemma3"),
    "llama": partial(causal, "llama"),
    "loss": own_loss,
    "lora": partial(lora, "LoRA"),
    "lora_inputs": partial(lora, "LoRA, input gradients", input_gradients=True),
    "lora_bfloat16": partial(lora, "LoRA on bfloat16", dtype=torch.bfloat16),
    "checkpointed": checkpointed,
    "unet": unet,
    "lstm": lstm,
    "table": table,
}
