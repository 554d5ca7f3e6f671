"""The torch cases of `gradients.py`: models of the usual kinds, and each contender's step on a batch of them."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gradients import Case
from torch import nn

from gradindex.gradients import loop
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.gradients.torch.model import channels_last
from gradindex.sketch import CountSketch

RNG = np.random.default_rng(0)
WORDS = 1000


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.short = nn.Identity() if before == after else short
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))) + self.short(x))


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        sizes = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        layers = [(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o)) for i, o, k, s in sizes]
        (a, b), (c, d), (e, f) = layers
        self.body = nn.Sequential(a, b, nn.ReLU(inplace=True), c, d, nn.ReLU(inplace=True), e, f)
        short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.short = nn.Identity() if before == after and stride == 1 else short
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.body(x) + self.short(x))


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.encoder(self.words(x) + self.places).mean(1))


class BiLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.lstm(self.words(x))[0].mean(1))


def cnn() -> nn.Module:
    """Alibi's MNIST network: 412,778 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 32, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )  # fmt: skip


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(before, after, stride), Residual(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(before, width, stride if block == 0 else 1))
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def _images(n: int, *shape: int) -> Any:
    return RNG.standard_normal((n, *shape)).astype(np.float32)


def _words(n: int, tokens: int) -> Any:
    return RNG.integers(0, WORDS, (n, tokens))


def _case(build: Callable[[], nn.Module], data: Callable[[int], Any], sizes: tuple[int, ...], slow: int) -> Case:
    torch.manual_seed(0)
    model, loss = build().eval(), nn.CrossEntropyLoss()
    engine = TorchEngine(model, loss)
    projector = CountSketch(1024).bind(engine.parameters, 0)

    def plain(x: Any, y: Any) -> None:
        model.zero_grad()
        loss(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()

    contenders = {
        "plain": plain,
        "engine": lambda x, y: engine.embed(x, y, projector),
        "vmap": engine.batched_gradients,
        "loop": partial(loop.gradients, engine),
    }
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)

        def plain_last(x: Any, y: Any) -> None:
            last.zero_grad()
            loss(last(channels_last(torch.from_numpy(x))), torch.from_numpy(y)).backward()

        contenders["plain last"] = plain_last
    return Case(
        data=lambda n: (data(n), RNG.integers(0, 10, n)),
        sizes=sizes,
        contenders=contenders,
        few={"vmap": max(sizes[0] // 2, 1), "loop": slow},
    )


CASES: dict[tuple[str, str], Callable[[], Case]] = {
    ("torch", "cnn"): lambda: _case(cnn, lambda n: _images(n, 1, 28, 28), (32, 64, 128), 32),
    ("torch", "mlp"): lambda: _case(mlp, lambda n: _images(n, 784), (128, 256, 512), 16),
    ("torch", "resnet18"): lambda: _case(resnet18, lambda n: _images(n, 3, 32, 32), (8, 16, 32), 4),
    ("torch", "transformer"): lambda: _case(lambda: Encoder(128, 4, 64, 4), lambda n: _words(n, 64), (16, 32, 64), 8),
    ("torch", "transformer768"): lambda: _case(lambda: Encoder(768, 2, 128, 12), lambda n: _words(n, 128), (4, 8), 2),
    ("torch", "bilstm"): lambda: _case(BiLSTM, lambda n: _words(n, 64), (32, 64, 128), 8),
    ("torch", "resnet50"): lambda: _case(resnet50, lambda n: _images(n, 3, 64, 64), (4, 8, 16), 1),
}
