"""Certified cosine: how many exact checks a proof takes, on Fashion-MNIST gradients, and whether a bound ever fails.

Trains a network, builds an index of Landmark rows, and asks for the proved top 10 of test pictures by the exact cosine
of unprojected gradients. Then every pair (query, training picture) is evaluated exactly and compared with its bounds,
and the proved answers with those of all pairs. The embedding rate is that of a CountSketch of as many bytes, measured
on the same pictures in turns.

    GRADINDEX_DATA=… python benchmarks/certified.py [--models cnn mlp] [--rows 20000 60000] [--out FILE]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record
import torch
from torch import nn

import gradindex
from gradindex.compute import exact, landmarks
from gradindex.compute.blocks import embed_rows, embedding_batch_size
from gradindex.compute.held_queries import HeldQueries
from gradindex.data.source import Batch
from gradindex.search import bounds
from gradindex.sketch import CountSketch, Landmark

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from data import load

RATE_ROWS = 2048


def cnn():
    """Return the CNN of the docs, 412,778 parameters."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 64, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 32, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1568, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def mlp():
    """Return an MLP 784-512-256-10."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def trained(make, images, epochs, seed):
    """Return a network after some epochs of Adam on the training pictures."""
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.eval()


def rates(job, sketches):
    """Return samples embedded in a second with each sketch: the best of three turns."""
    rows, size = min(RATE_ROWS, len(job.source)), embedding_batch_size(job)
    projectors = []
    for sketch in sketches:
        projector = sketch.bind(job.engine.parameters, 0)
        landmarks.prepare(projector, job)
        projectors.append(projector)
    best = [np.inf] * len(projectors)
    for _ in range(3):
        for i, projector in enumerate(projectors):
            began = time.perf_counter()
            for _ in embed_rows(job, projector, size, 0, rows):
                pass
            best[i] = min(best[i], time.perf_counter() - began)
    return [rows / seconds for seconds in best]


def all_cosines(job, queries):
    """Return the exact cosines (m, n) of the queries with all training samples."""
    engine = job.engine
    held = HeldQueries(engine, queries)
    norms = exact.norms(engine.gradients(queries.x, queries.y).gradients)
    out = np.empty((len(queries), len(job.source)))
    for batch in job.source.blocks(embedding_batch_size(job)):
        dots, found = held.dots(batch)
        products = norms[:, None] * found.norms
        out[:, batch.ids] = np.divide(dots, products, out=np.zeros_like(dots), where=products > 0)
    return out


def violations(index, queries, cosines):
    """Return how many of all bounds (two a pair) an exact cosine breaks, and the median width between them."""
    gradients = index.job.engine.gradients(queries.x, queries.y).gradients
    upper, minus_lower = bounds.cosine_bounds(index, index.sketches(gradients, exact.norms(gradients)))
    rounding = 1e-6  # of the float32 evaluation itself
    broken = (cosines > upper + rounding).sum() + (-cosines > minus_lower + rounding).sum()
    return int(broken), float(np.median(upper + minus_lower))


def measure(name, model, images, args, folder, loss, epochs):
    rows = len(images.x_train)
    loss_fn = nn.CrossEntropyLoss()
    if loss == "double":
        loss_fn = gradindex.InDouble(loss_fn)
    job = gradindex.Job(model, loss_fn, (images.x_train, images.y_train))
    x, y = images.x_test[: args.queries], images.y_test[: args.queries]
    queries = Batch(np.arange(len(x)), x, y)
    cosines = all_cosines(job, queries)
    truth = -np.sort(-cosines, axis=1)[:, : args.k]
    results = []
    for dims in args.dims:
        sketch = Landmark(landmarks=args.landmarks, dims=dims)
        began = time.perf_counter()
        index = gradindex.build(job, folder / f"{name}-{rows}-{dims}-{loss}", sketch=sketch, index="Flat")
        built = time.perf_counter() - began
        broken, width = violations(index, queries, cosines)
        began = time.perf_counter()
        found = index.explain(x, y, k=args.k, certify=True)
        seconds = time.perf_counter() - began
        landmark_rate, countsketch_rate = rates(job, [sketch, CountSketch(2 ** round(np.log2(dims)))])
        values = np.take_along_axis(cosines, found.ordered_indices, 1)
        shares, opponents = found.checked / rows, found.opponent_checked / rows
        index.explain(x[:1], y[:1], k=args.k, certify=True)
        began = time.perf_counter()
        one = [index.explain(x[i : i + 1], y[i : i + 1], k=args.k, certify=True) for i in range(min(10, len(x)))]
        results.append(
            {
                "model": name,
                "loss": loss,
                "epochs": epochs,
                "rows": rows,
                "parameters": job.engine.size,
                "landmarks": args.landmarks,
                "dims": dims,
                "bytes": 2 * (dims + 1),
                "accuracy": float((index.job.engine.outputs(x).argmax(1) == y).mean()),
                "proved": float(found.proved.mean()),
                "proved_1_percent": float((found.proved & (shares <= 0.01)).mean()),
                "proved_5_percent": float((found.proved & (shares <= 0.05)).mean()),
                "median_checked": float(np.median(found.checked)),
                "opponents_proved_1_percent": float((found.opponent_proved & (opponents <= 0.01)).mean()),
                "opponents_median_checked": float(np.median(found.opponent_checked)),
                "wrong": int((np.abs(values - truth) > 1e-6).any(1).sum()),
                "violations": broken,
                "pairs": int(cosines.size),
                "bound_width": width,
                "seconds_a_query_together": seconds / len(x),
                "seconds_a_query_alone": (time.perf_counter() - began) / len(one),
                "build_seconds": built,
                "landmark_rate": landmark_rate,
                "countsketch_rate": countsketch_rate,
            }
        )
        show(results[-1])
    return results


def show(r):
    print(
        f"{r['model']:<4}{r['loss']:>7}{r['rows']:>7}{r['dims']:>5}{r['bytes']:>6}{r['proved_1_percent']:>8.2f}"
        f"{r['proved_5_percent']:>6.2f}{r['proved']:>6.2f}{r['median_checked']:>8.0f}"
        f"{r['opponents_proved_1_percent']:>8.2f}{r['opponents_median_checked']:>8.0f}{r['violations']:>6}{r['wrong']:>6}"
        f"{r['bound_width']:>8.4f}{r['landmark_rate']:>8.0f}{r['countsketch_rate']:>8.0f}"
        f"{1e3 * r['seconds_a_query_alone']:>9.0f}{1e3 * r['seconds_a_query_together']:>9.0f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("cnn", "mlp"), default=["cnn", "mlp"])
    parser.add_argument("--rows", nargs="+", type=int, default=[20_000, 60_000])
    parser.add_argument(
        "--losses", nargs="+", choices=("single", "double"), default=["single", "double"], help="precision of the loss"
    )
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--landmarks", type=int, default=1024)
    parser.add_argument("--dims", nargs="+", type=int, default=[256, 510])
    parser.add_argument("--epochs", nargs=2, type=int, default=[6, 8], metavar=("CNN", "MLP"))
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--data", default="fashion", choices=("fashion", "mnist"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    record.add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("proved: share of queries, with at most 1 % and 5 % of the rows checked, and at all")
    print(
        f"{'':<4}{'loss':>7}{'rows':>7}{'dims':>5}{'bytes':>6}{'<=1 %':>8}{'<=5 %':>6}{'all':>6}{'checked':>8}"
        f"{'opp 1%':>8}{'checked':>8}{'viol.':>6}{'wrong':>6}{'width':>8}{'lm /s':>8}{'cs /s':>8}"
        f"{'ms alone':>9}{'ms of m':>9}"
    )
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            make, epochs = (cnn, args.epochs[0]) if name == "cnn" else (mlp, args.epochs[1])
            model = trained(make, load(args.data), epochs, args.seed)
            for rows in args.rows:
                for loss in args.losses:
                    results += measure(name, model, load(args.data, rows), args, Path(folder), loss, epochs)
                if args.out:
                    record.write(args.out, results)


if __name__ == "__main__":
    main()
