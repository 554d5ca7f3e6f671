"""TracIn as one inner product: checkpoints' sketches summed, or put side by side.

A network is trained on scikit-learn's digits by SGD, its weights kept along the way. At equal bytes a row, the sketch
that adds all checkpoints into one vector (what gradindex does) is compared with one narrow sketch a checkpoint,
weighted by √(learning rate) and put side by side: recall@10 of the exact TracIn sum, of the sketch alone and with the
first 100 checked exactly, and the correlation r of estimates with it. The learning rate is constant, or falls tenfold,
which makes the checkpoints' shares unequal. ``python benchmarks/tracin.py`` prints the table.
"""

import argparse
import dataclasses

import numpy as np
import record
import torch
from sklearn.datasets import load_digits
from torch import nn

import gradindex
from gradindex.influence import CheckpointRecorder
from gradindex.sketch import CountSketch

RATES = {"constant": lambda share: 0.3, "falling": lambda share: 0.3 * 0.1**share}


def train(x, y, rate, checkpoints, seed, epochs=30):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    recorder, every = CheckpointRecorder(), epochs // checkpoints
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate(epoch / epochs)
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        if (epoch + 1) % every == 0:
            recorder.record(model, optimizer)
    return model, recorder.checkpoints


def sketches(job, engine, batch, dim, seed, beside):
    """Return rows (n, dim): of all checkpoints at once, or of each in dim / C numbers of its own."""
    if not beside:
        return engine.embed(batch.x, batch.y, CountSketch(dim).bind(engine.parameters, seed)).sketches
    parts = []
    for place, checkpoint in enumerate(job.checkpoints):
        one = dataclasses.replace(job, checkpoints=[checkpoint]).engine
        projector = CountSketch(dim // len(job.checkpoints)).bind(one.parameters, seed + 1000 * place)
        parts.append(one.embed(batch.x, batch.y, projector).sketches)
    return np.hstack(parts)


def recall(found, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)])


def measure(job, queries, dim, seeds):
    """Return recall@10, recall@10 with 100 exact checks, and Pearson correlation: summed, then side by side."""
    engine = job.engine
    batch = job.source.take(np.arange(len(job.source)))
    gradients = engine.gradients(batch.x, batch.y).gradients.astype(np.float64)
    exact = gradients[queries] @ gradients.T
    exact[np.arange(len(queries)), queries] = -np.inf  # of itself a query knows the norm
    truth = np.argsort(-exact, axis=1)[:, :10]
    finite = np.isfinite(exact)
    found = {}
    for name, beside in (("summed", False), ("side by side", True)):
        rows = []
        for seed in range(seeds):
            sketch = sketches(job, engine, batch, dim, seed, beside).astype(np.float64)
            estimate = np.where(finite, sketch[queries] @ sketch.T, -np.inf)
            first = np.argsort(-estimate, axis=1)[:, :100]
            checked = np.take_along_axis(first, np.argsort(-np.take_along_axis(exact, first, 1), axis=1)[:, :10], 1)
            linear = np.corrcoef(estimate[finite], exact[finite])[0, 1]
            rows.append((recall(first[:, :10], truth), recall(checked, truth), linear))
        found[name] = [float(value) for value in np.mean(rows, axis=0)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="sketches averaged over")
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    queries = np.random.default_rng(0).choice(len(x), 200, replace=False)
    results = []
    print(f"{'learning rate':15}{'C':>3}{'numbers':>9}   {'summed':^28}   {'side by side':^28}")
    print(f"{'':30}" + f"{'recall@10':>10}{'of 100':>9}{'r':>9}   " * 2)
    for name, rate in RATES.items():
        for count in (3, 10):
            model, checkpoints = train(torch.from_numpy(x), torch.from_numpy(y), rate, count, seed=0)
            job = gradindex.Job(model, nn.CrossEntropyLoss(), (x, y), checkpoints=checkpoints)
            for dim in (240, 960):
                found = measure(job, queries, dim, options.seeds)
                results.append({"rate": name, "checkpoints": count, "numbers": dim, **found})
                cells = "".join(f"{a:10.3f}{b:9.3f}{c:9.3f}   " for a, b, c in found.values())
                print(f"{name:15}{count:3}{dim:9}{cells}", flush=True)
    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    main()
