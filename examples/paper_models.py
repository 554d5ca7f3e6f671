"""The models of Hanawa et al. (2021), appendix B.1, in PyTorch, and words as their inputs."""

import re
from collections import Counter

import numpy as np
import torch
from torch import nn

EMBEDDING = HIDDEN = 16


def split_words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return re.findall(r"[a-z0-9+]+", text.lower())


def vocabulary(texts: list[str], most: int) -> dict[str, int]:
    """Return the words that most texts have, with their numbers from 0 on."""
    frequent = Counter(word for text in texts for word in dict.fromkeys(split_words(text))).most_common(most)
    return {word: number for number, (word, _) in enumerate(frequent)}


def bags(texts: list[str], words: dict[str, int]) -> np.ndarray:
    """Return how often each word occurs in each text (n, words), float32."""
    counts = np.zeros((len(texts), len(words)), np.float32)
    for row, text in enumerate(texts):
        for word in split_words(text):
            if word in words:
                counts[row, words[word]] += 1
    return counts


def numbers(texts: list[str], words: dict[str, int], longest: int) -> np.ndarray:
    """Return the words' numbers (n, longest) int64: 2 and above; 1 an unknown word, 0 behind the last one."""
    found = np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        ids = [words[word] + 2 if word in words else 1 for word in split_words(text)][:longest] or [1]
        found[row, : len(ids)] = ids
    return found


class BiLSTM(nn.Module):
    """Embeddings of 16, two layers of an LSTM of 16 in both directions, a linear layer on the last states.

    Texts are filled up with zeros, which have an embedding of zero. The last state forwards is the one at the last
    word; backwards it is at the first, after the zeros and the words.
    """

    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 2, EMBEDDING, padding_idx=0)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * HIDDEN, classes)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of the words' numbers (n, longest)."""
        states, _ = self.lstm(self.embedding(words))
        places = torch.arange(words.shape[1], device=words.device)
        last = (places == (words > 0).sum(dim=1, keepdim=True) - 1).to(states.dtype)
        forwards = (states[:, :, :HIDDEN] * last[:, :, None]).sum(dim=1)
        return self.out(torch.cat([forwards, states[:, 0, HIDDEN:]], dim=1))


def cnn(channels: int, classes: int) -> nn.Sequential:
    """Return six convolutions of 16 channels, pooled after every second one, and a linear layer on their means."""
    layers: list[nn.Module] = []
    for inputs in (channels, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


def logistic_regression(features: int, classes: int) -> nn.Sequential:
    """Return a linear layer on all numbers of a sample."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


# Expansion, channels, blocks and the first one's stride, of table 2 of Sandler et al. (2018).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: widen, convolve channel by channel, narrow; with a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers = [*_convolution(inputs, wide, 1)] if expansion > 1 else []
        layers += [*_convolution(wide, wide, 3, stride, groups=wide)]
        layers += [nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output (n, outputs, h, w)."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


def mobilenet_v2(classes: int) -> nn.Sequential:
    """Return MobileNetV2 for images of 32×32: the first convolution and the first stages keep the size."""
    layers, channels = [*_convolution(3, 32, 3)], 32
    for expansion, outputs, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, outputs, expansion, stride if block == 0 else 1))
            channels = outputs
    layers += [*_convolution(channels, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(1280, classes))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU6()
