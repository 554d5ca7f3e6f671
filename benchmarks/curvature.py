"""Whitened rows: what they cost beside plain ones, and how much of EKFAC's own scores they keep.

    GRADINDEX_DATA=… python benchmarks/curvature.py [--models mlp cnn transformer] [--rows 2000] [--out FILE]

Models are trained first: an MLP 784-1024-1024-10 and a CNN of 412,778 parameters on Fashion-MNIST, a transformer
(`--models transformer`: width 128, 4 layers, 64 positions) on sentences of words drawn by class.

`rates`: samples a second of `engine.embed`, one thread, medians of interleaved turns. `plain` is a CountSketch of 1,024
numbers; `leading` keeps the 1,024 whitened coordinates with the largest second moment; `sketched` is a CountSketch of
1,024 numbers of the whitened gradient (of K-FAC with factored damping, two products a layer).

`errors`: scores ⟨q, (F + d)⁻¹ t⟩ of held-out queries and training samples by EKFAC of the same matrix, F of the data's
labels and d a tenth of its mean eigenvalue, against the inner products of rows: relative error of the scores, mean
cosine of a query's scores, and recall of the scores' own ten best among the rows' ten and two hundred best.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradients_torch
import numpy as np
import record
import torch
from torch import nn

from gradindex.data.dataset_types import as_source
from gradindex.gradients.curvature import Curvature, Leading, Whitened
from gradindex.gradients.projector import Projector
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.relevance.rerank import recall
from gradindex.sketch import CountSketch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from data import load

WIDTH = 1024
BATCHES = {"mlp": 256, "cnn": 64, "transformer": 32}
BLOCK = 32  # samples whose gradients are formed at once
FLOORS = {"kfac": 0.7, "ekfac": 0.4}
QUERIES, NEAR, CANDIDATES = 40, 10, 200
FORMED = 1_000_000  # parameters; to form and scale more of them for every sample takes minutes


def images(rows: int, *shape: int) -> tuple[Any, ...]:
    data = load("fashion", rows)
    x, queries = (np.asarray(part, np.float32).reshape(len(part), *shape) for part in (data.x_train, data.x_test))
    return x[:rows], np.asarray(data.y_train)[:rows], queries[:QUERIES], np.asarray(data.y_test)[:QUERIES]


def sentences(rows: int) -> tuple[Any, ...]:
    """Return sentences of 64 words out of 1,000, drawn by Zipf's law, one word in ten from a class's own fifty."""
    random = np.random.default_rng(0)
    chances = 1 / np.arange(1, gradients_torch.WORDS + 1)
    y = random.integers(0, 10, rows + QUERIES)
    x = random.choice(gradients_torch.WORDS, (len(y), 64), p=chances / chances.sum())
    own = random.permutation(gradients_torch.WORDS)[: 10 * 50].reshape(10, 50)
    x = np.where(random.random(x.shape) < 0.1, own[y[:, None], random.integers(0, 50, x.shape)], x)
    return x[:rows], y[:rows], x[rows:], y[rows:]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Any, ...]]]] = {
    "mlp": (gradients_torch.mlp, lambda rows: images(rows, 784)),
    "cnn": (gradients_torch.cnn, lambda rows: images(rows, 1, 28, 28)),
    "transformer": (lambda: gradients_torch.Encoder(128, 4, 64, 4), sentences),
}


def trained(model: nn.Module, x: Any, y: Any, epochs: int) -> TorchEngine:
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 1e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return TorchEngine(model.eval(), loss)


def rows_of(engine: TorchEngine, projector: Projector, x: Any, y: Any, size: int) -> Any:
    blocks = [slice(begin, begin + size) for begin in range(0, len(x), size)]
    return np.concatenate([engine.embed(x[some], y[some], projector).sketches for some in blocks]).astype(np.float64)


def rates(engine: TorchEngine, projectors: dict[str, Projector], x: Any, y: Any, turns: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in projectors}
    for turn in range(-1, turns):  # the first does not count
        for name, projector in projectors.items():
            begin = time.perf_counter()
            engine.embed(x, y, projector)
            if turn >= 0:
                taken[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(some) for name, some in taken.items()}
    return {
        name: {
            "per_second": len(x) / medians[name],
            "of_plain": statistics.median(p / s for p, s in zip(taken["plain"], some, strict=True)),
        }
        for name, some in taken.items()
    }


def errors(scores: Any, found: Any) -> dict[str, float]:
    ids = np.argsort(-found, axis=1, kind="stable")
    cosines = (found * scores).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(scores, axis=1)
    first = np.argsort(-scores, axis=1)[:, :NEAR]
    direct = np.mean([np.isin(one, other).mean() for one, other in zip(first, ids[:, :NEAR], strict=True)])
    return {
        "relative": float(np.linalg.norm(found - scores) / np.linalg.norm(scores)),
        "cosine": float(cosines.mean()),
        "recall_at_10": float(direct),
        "recall_at_10_of_200_reranked": recall(scores, ids[:, :CANDIDATES], NEAR),
    }


def case(name: str, rows: int, epochs: int, turns: int) -> dict[str, Any]:
    make, data = MODELS[name]
    torch.manual_seed(0)
    x, y, queries, labels = data(rows)
    engine, size = trained(make(), x, y, epochs), BATCHES[name]
    fitted, seconds = {}, {}
    for kind in ("kfac", "ekfac"):
        begin = time.perf_counter()
        fitted[kind] = Curvature.fit(engine, as_source((x, y)), kind)
        seconds[kind] = time.perf_counter() - begin
    plain = CountSketch(WIDTH).bind(engine.parameters, 0)
    projectors: dict[str, Projector] = {"plain": plain}
    projectors |= {f"{kind} leading": Leading(found, WIDTH) for kind, found in fitted.items()}
    projectors["kfac sketched"] = Whitened(fitted["kfac"].with_factored_damping(), plain)
    if engine.size <= FORMED:
        projectors["ekfac sketched"] = Whitened(fitted["ekfac"], plain)
    speeds = rates(engine, projectors, x[:size], y[:size], turns)
    ekfac, parts = fitted["ekfac"], []
    vectors = ekfac.apply(engine.gradients(queries, labels).gradients)
    for begin in range(0, rows, BLOCK):
        some = slice(begin, begin + BLOCK)
        parts.append(vectors @ engine.gradients(x[some], y[some]).gradients.T.astype(np.float64))
    scores = np.concatenate(parts, axis=1)
    kept = {}
    for width in (256, 1024, 4096):
        sketch = Whitened(ekfac, CountSketch(width).bind(engine.parameters, 0))
        for kind, projector in (("leading", Leading(ekfac, width)), ("sketched", sketch)):
            if kind == "sketched" and engine.size > FORMED:
                continue
            found = rows_of(engine, projector, queries, labels, size) @ rows_of(engine, projector, x, y, size).T
            kept[f"{kind} {width}"] = errors(scores, found)
    with torch.no_grad():
        accuracy = float((engine.outputs(queries).argmax(1) == labels).mean())
    return {
        "parameters": engine.size,
        "accuracy": accuracy,
        "damping": ekfac.damping,
        "fit_seconds": seconds,
        "rates": speeds,
        "errors": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--turns", type=int, default=9)
    record.add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in arguments.models:
        results[name] = found = case(name, arguments.rows, arguments.epochs, arguments.turns)
        print(f"{name}: {found['parameters']:,} parameters, accuracy {found['accuracy']:.2f}", flush=True)
        for kind, rate in found["rates"].items():
            floor = FLOORS.get(kind.split()[0]) if kind.endswith("leading") else None
            said = "" if floor is None else f" (floor {floor})"
            print(f"  {kind:15} {rate['per_second']:8.0f} a second, {rate['of_plain']:.2f} of plain{said}", flush=True)
        for kind, error in found["errors"].items():
            print(f"  {kind:15} " + ", ".join(f"{what} {value:.3f}" for what, value in error.items()), flush=True)
        if arguments.out:
            record.write(arguments.out, results)


if __name__ == "__main__":
    main()
