"""Keras: what embedding costs, in plain training steps, and in their peak memory at the same batch.

Run `python benchmarks/gradients_keras.py [--case cnn]`, or let `benchmarks/gradients.py` take `CASES` from here.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))

import gradients  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from gradindex.gradients import loop  # noqa: E402
from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402
from gradindex.sketch import CountSketch  # noqa: E402

L = keras.layers
_SIZES = (32, 64, 128, 256, 512)
SIZES = {"plain": _SIZES, "plain XLA": _SIZES, "engine": _SIZES, "vmap": (8, 16, 32), "loop": (4,)}


def cnn() -> Any:
    """Return the CNN of the docs, 412,778 parameters."""
    layers = [L.Input((28, 28, 1))]
    for filters in (64, 32):
        layers += [L.Conv2D(filters, 2, padding="same", activation="relu"), L.MaxPooling2D(2), L.Dropout(0.3)]
    return keras.Sequential([*layers, L.Flatten(), L.Dense(256, "relu"), L.Dropout(0.5), L.Dense(10)])


def mlp() -> Any:
    """Return a perceptron 784-1024-1024-10."""
    return keras.Sequential([L.Input((784,)), L.Dense(1024, "relu"), L.Dense(1024, "relu"), L.Dense(10)])


def resnet() -> Any:
    """Return four stages of two blocks on 32×32, 16 to 128 channels, with BatchNorm."""
    inputs = L.Input((32, 32, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, padding="same", use_bias=False)(inputs)))
    for stage, filters in enumerate((16, 32, 64, 128)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            shortcut = x
            if stride > 1:
                shortcut = L.BatchNormalization()(L.Conv2D(filters, 1, stride, use_bias=False)(x))
            y = L.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
            y = L.ReLU()(L.BatchNormalization()(y))
            y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y))
            x = L.ReLU()(y + shortcut)
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


CASES: dict[str, Callable[[], Any]] = {"keras cnn": cnn, "keras mlp": mlp, "keras resnet": resnet}


def contenders(model: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Return the ways, each a function of one batch; the plain step also compiled by XLA, the faster one counts."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        return tape.gradient(value, model.trainable_variables)

    plain = tf.function(step, autograph=False, reduce_retracing=True)
    compiled = tf.function(step, autograph=False, jit_compile=True)
    engine = TensorFlowEngine(model, loss)
    projector = CountSketch(1024).bind(engine.parameters, seed=0)
    return {
        "plain": lambda x, y: plain(tf.constant(x), tf.constant(y)),
        "plain XLA": lambda x, y: compiled(tf.constant(x), tf.constant(y)),
        "engine": lambda x, y: engine.embed(x, y, projector),
        "vmap": lambda x, y: projector(engine.parameters, engine.batched_gradients(x, y).gradients),
        "loop": lambda x, y: projector(engine.parameters, loop.gradients(engine, x, y).gradients),
    }


def peaks(name: str) -> dict[str, int | None]:
    """Return by how many bytes a step on the largest batch raises its process's peak, each in one of its own."""
    short = name.removeprefix("keras ")
    return {way: gradients.memory_elsewhere("keras", short, way, THREADS) for way in ("plain", "engine")}


def measure(name: str, repeats: int, only: list[str] | None = None) -> dict[str, Any]:
    """Return samples a second of each contender at its own best batch size, interleaved, the median of repeats."""
    model = CASES[name]()
    ways = {key: way for key, way in contenders(model).items() if only is None or key in only}
    random = np.random.default_rng(0)
    x = random.normal(size=(_SIZES[-1], *model.input_shape[1:])).astype(np.float32)
    y = random.integers(0, 10, _SIZES[-1])
    runs = [(key, size) for key in ways for size in SIZES[key]]
    rates: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    for repeat in range(-1, repeats):  # the first is not counted: it traces and compiles
        for key, size in runs:
            count = size * max(1, min(256, SIZES[key][-1]) // size)
            begin = time.perf_counter()
            for at in range(0, count, size):
                ways[key](x[at : at + size], y[at : at + size])
            if repeat >= 0:
                rates[key, size].append(count / (time.perf_counter() - begin))
    medians = {run: statistics.median(values) for run, values in rates.items()}
    grown = peaks(name)
    best = {key: max((rate, size) for (k, size), rate in medians.items() if k == key) for key in ways}
    best = gradients.faster_plain(best, lambda found: found[0])
    return {
        "case": name,
        "parameters": model.count_params(),
        "samples_per_second": {key: round(rate, 1) for key, (rate, _) in best.items()},
        "batch_size": {key: size for key, (_, size) in best.items()},
        "engine/plain": round(best["engine"][0] / best["plain"][0], 3) if "plain" in best else None,
        "engine/loop": round(best["engine"][0] / best["loop"][0], 1) if "loop" in best else None,
        "peak_bytes": grown,
        "memory/plain": round(grown["engine"] / grown["plain"], 3) if all(grown.values()) else None,
        "all": {f"{key} {size}": round(rate, 1) for (key, size), rate in medians.items()},
    }


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--only", nargs="*", help="contenders")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    found = []
    for name in options.case or CASES:
        found.append(measure(name, options.repeats, options.only))
        print(json.dumps(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
