"""When several queries had better pass their candidates together: forward mode against queries kept as factors.

    python benchmarks/together.py [--models cnn gemma3 "keras cnn"] [--repeats 7] [--out FILE]

A forward-mode pass serves one query, so that each (query, candidate) pair costs a `forward` pass of the candidate.
Queries that are kept as the factors of their layers cost a little each (`keep`), and all are compared with a candidate
in one pass of it (`pass`). So together is cheaper where pairs × forward > queries × keep + candidates × pass; `even` is
the number of pairs for a candidate where both cost the same, of 32 queries with 24 candidates each. Where a model has
an operation without forward mode, its loss is differentiated twice. Milliseconds of the processor, the least of the
repeats, which are taken in turns; one thread.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

QUERIES, CANDIDATES = 32, 24
_HELD = 8  # queries that are kept and compared in the runs


def measure(engine: Any, data: Callable[[int], tuple[Any, Any]], repeats: int) -> dict[str, Any]:
    """Return what each way costs."""
    from gradindex.compute.held_queries import HeldQueries
    from gradindex.data.source import Batch

    queries, samples = (Batch(np.arange(n), *data(n)) for n in (_HELD, CANDIDATES))
    engine.settle(samples.x, samples.y)
    direction = np.random.default_rng(0).standard_normal(engine.size).astype(np.float32)
    held = HeldQueries(engine, queries, together=True)
    try:
        engine.directional(samples.x, samples.y, direction)
        forward = engine.directional
    except NotImplementedError:  # an operation without forward mode
        forward = engine.directional_twice
    ways = {
        "forward": (lambda: forward(samples.x, samples.y, direction), CANDIDATES),
        "keep": (lambda: HeldQueries(engine, queries, together=True), _HELD),
        "pass": (lambda: held.dots(samples), CANDIDATES),
    }
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats + 1):
        for name, (way, count) in ways.items():
            began = time.process_time()
            way()
            least[name] = min(least[name], (time.process_time() - began) * 1e3 / count)
    even = least["forward"] * CANDIDATES - least["keep"]
    even = least["pass"] * CANDIDATES / even if even > 0 else float("inf")
    return {"parameters": engine.size, **least, "even": even, "slim": held.slim}


def torch_engine(name: str) -> tuple[Any, Callable[[int], tuple[Any, Any]]]:
    """Return an engine of a model of `gradients.py` or `idioms.py`, and its data."""
    import gradients_torch
    import idioms_models
    import torch
    from torch import nn

    from gradindex.gradients.torch.engine import TorchEngine

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name in idioms_models.CASES:
        case = idioms_models.CASES[name](False)
        return TorchEngine(case.model.eval(), case.loss), case.data
    random = np.random.default_rng(0)

    def images(*shape: int) -> Callable[[int], tuple[Any, Any]]:
        return lambda n: (gradients_torch._images(n, *shape), random.integers(0, 10, n))

    def words(tokens: int) -> Callable[[int], tuple[Any, Any]]:
        return lambda n: (gradients_torch._words(n, tokens), random.integers(0, 10, n))

    nets = {
        "cnn": (gradients_torch.cnn, images(1, 28, 28)),
        "mlp": (gradients_torch.mlp, images(784)),
        "resnet18": (gradients_torch.resnet18, images(3, 32, 32)),
        "resnet50": (gradients_torch.resnet50, images(3, 64, 64)),
        "transformer": (lambda: gradients_torch.Encoder(128, 4, 64, 4), words(64)),
        "bilstm": (gradients_torch.BiLSTM, words(64)),
    }
    build, data = nets[name]
    return TorchEngine(build().eval(), nn.CrossEntropyLoss()), data


def keras_engine(name: str) -> tuple[Any, Callable[[int], tuple[Any, Any]]]:
    """Return an engine of a Keras model of `gradients.py`, and its data."""
    import gradients_keras
    import keras

    from gradindex.gradients.tensorflow.engine import TensorFlowEngine

    keras.utils.set_random_seed(0)
    model, random = gradients_keras.CASES[name](), np.random.default_rng(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def data(n: int) -> tuple[Any, Any]:
        return random.normal(size=(n, *model.input_shape[1:])).astype(np.float32), random.integers(0, 10, n)

    return TensorFlowEngine(model, loss), data


NAMES = ("cnn", "mlp", "resnet18", "resnet50", "transformer", "bilstm", "gemma3", "lora", "unet", "lstm", "table")
NAMES += ("keras cnn", "keras mlp", "keras resnet")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--repeats", type=int, default=7)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import record

    record.add_out(parser)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    results = []
    print("| model | parameters | forward | keep | pass | pass/forward | even |\n" + "|---" * 7 + "|")
    for name in options.models:
        engine, data = (keras_engine if name.startswith("keras") else torch_engine)(name)
        found = {"model": name, **measure(engine, data, options.repeats)}
        results.append(found)
        forward, keep, once = (found[key] for key in ("forward", "keep", "pass"))
        print(
            f"| {name} | {found['parameters']:,} | {forward:.2f} | {keep:.2f} | {once:.2f} | {once / forward:.2f} "
            f"| {found['even']:.2f} |",
            flush=True,
        )
    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    main()
