"""Texts of many lengths: packed with others of their length, against one by one, in samples a second.

    python benchmarks/texts.py [--texts 4000] [--models torch-transformer] [--out FILE]

Lengths are log-normal (median 37 tokens, at most 200). `first` is the pass that plans, or traces its graphs.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import record

from gradindex.compute.blocks import embed
from gradindex.gradients import loop
from gradindex.job import Job
from gradindex.sketch import CountSketch

WORDS, WIDTH, CLASSES, ALONE = 1000, 64, 4, 200


def torch_job(recurrent: bool, data: Any) -> Job:
    import torch
    from torch import nn

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(256, WIDTH)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.head(self.encoder(self.words(x) + self.places(torch.arange(x.shape[1]))).mean(1))

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH)
            self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
            self.head = nn.Linear(2 * WIDTH, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(self.words(x))[0].mean(1))

    torch.manual_seed(0)
    return Job(model=Recurrent() if recurrent else Reader(), loss_fn=nn.CrossEntropyLoss(), dataset=data)


def keras_job(data: Any) -> Job:
    import keras

    layers = keras.layers
    words = layers.Input((None,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH)(words)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, WIDTH // 4)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(layers.Dense(2 * WIDTH, "relu")(x)))
    model = keras.Model(words, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
    return Job(model=model, loss_fn=keras.losses.SparseCategoricalCrossentropy(from_logits=True), dataset=data)


MODELS: dict[str, Callable[[Any], Job]] = {
    "torch-transformer": lambda data: torch_job(False, data),
    "torch-bilstm": lambda data: torch_job(True, data),
    "keras-transformer": keras_job,
}


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(name: str, texts: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.6, 0.6, texts).astype(int), 3, 200)
    x, y = [rng.integers(0, WORDS, length) for length in lengths], rng.integers(0, CLASSES, texts)
    job = MODELS[name]((x, y))
    projector = CountSketch(1024).bind(job.engine.parameters, 0)
    some = rng.choice(texts, min(texts, ALONE), replace=False)

    def alone() -> None:
        projector(job.engine.parameters, loop.gradients(job.engine, [x[i] for i in some], y[some]).gradients)

    first = texts / seconds(lambda: list(embed(job)))
    packed, single = [], []
    for _ in range(3):
        packed.append(texts / seconds(lambda: list(embed(job))))
        single.append(len(some) / seconds(alone))
    rate, one = float(np.median(packed)), float(np.median(single))
    print(f"| {name} | {len(set(lengths))} | {first:.0f} | {rate:.0f} | {one:.0f} | {rate / one:.1f} |", flush=True)
    return {"model": name, "texts": texts, "first": first, "packed": rate, "one by one": one, "ratio": rate / one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    record.add_out(parser)
    options = parser.parse_args()
    print("| model | lengths | first | packed | one by one | packed / one by one |\n|---|---|---|---|---|---|")
    results = [measure(name, options.texts) for name in options.models]
    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    main()
