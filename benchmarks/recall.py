"""Calibrated recall: what `explain(recall=…)` promises against what it holds, on queries that it was not calibrated on.

    GRADINDEX_DATA=… python benchmarks/recall.py [--cases mnist-mlp fashion-cnn digits-keras sections-transformer
        vehicle] [--queries 4000] [--rows 20000] [--repeats 1] [--out FILE]

Trains five unlike models, indexes their training samples, and draws held-out queries: half of them calibrate, the other
half are asked, with their own labels, for the wanted recall. The truth is the exact kernel over all training samples.
Reported are the mean recall of both sides with its 95 % interval (Student's over the queries), the share of queries
below, and the exact checks of a query (both sides together), beside those of ``rerank=50``. With ``--repeats`` the
split into calibration and questions is drawn again so many times, as a promise is one about both. Digits (moved by a
pixel at most) and vehicles (with noise) have more queries than rows, drawn from the same held-out rows. Exits with 1 if
an interval ends below the wanted recall less .005.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import counterfactual_data as data
import counterfactual_models as models
import numpy as np
import record

import gradindex
from gradindex import kernels
from gradindex.compute import exact
from gradindex.compute.queries import Queries, gradient_chunks
from gradindex.data.source import Batch
from gradindex.kernels import Kernel
from gradindex.search.agreement import mean
from gradindex.search.coverage import ROUNDING

K = 10
WANTED = 0.9, 0.99, 0.999
SLACK = 0.005
AT_ONCE = 64  # queries that are asked together


def trained_torch(model, loss_fn, x, y, epochs, rate=1e-3, seed=0):
    """Return a torch model after some epochs of Adam."""
    import torch

    torch.manual_seed(seed)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss_fn(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.eval()


def torch_job(make, x, y, epochs, rate=1e-3):
    """Return a job of a classifier in torch, trained on (x, y)."""
    import torch

    torch.manual_seed(0)
    loss_fn = torch.nn.CrossEntropyLoss()
    return gradindex.Job(trained_torch(make(), loss_fn, x, y, epochs, rate), loss_fn, (x, y))


def mnist_mlp(args):
    """Return an MLP on 5,000 MNIST digits; 5,000 more are queries."""
    with np.load(data.folder() / "mnist10k.npz") as arrays:
        x, y = (arrays["x"].reshape(-1, 784) / 255).astype(np.float32), arrays["y"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    train = order[: min(5000, args.rows)]
    return torch_job(lambda: models.mlp(784, 128, 64, 10), x[train], y[train], args.epochs), (
        x[order[5000:]],
        y[order[5000:]],
    )


def fashion_cnn(args):
    """Return the CNN of the docs on Fashion-MNIST; test pictures are queries."""
    import certified

    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from data import load

    images = load("fashion", args.rows)
    job = torch_job(certified.cnn, images.x_train, images.y_train, max(1, args.epochs // 2))
    return job, (images.x_test, images.y_test)


def digits_keras(args):
    """Return a CNN in Keras on 1,000 digits; the others, moved by a pixel at most, are queries."""
    import keras
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    train, rest = order[:1000], order[1000:]
    model = models.cnn_digits_keras(0)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss=loss_fn)
    model.fit(x[train], y[train], batch_size=50, epochs=2 * args.epochs, verbose=0)
    moved = [np.roll(x[rest], (down, right), (1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return gradindex.Job(model, loss_fn, (x[train], y[train])), (np.concatenate(moved), np.tile(y[rest], 9))


def sections_transformer(args):
    """Return a transformer on 5,000 short texts; 5,000 more are queries."""
    train, words, length = min(5000, args.rows), 2000, 24
    found, topics = data.sections.__wrapped__(train + 5000)
    known = data.vocabulary(found[:train], words)
    x = np.full((len(found), length), data.PAD, np.int64)
    for row, text in zip(x, found, strict=True):
        numbers = [known.get(word, 1) for word in text[:length]] or [1]
        row[: len(numbers)] = numbers
    make = lambda: models.transformer(words, length, 32, 2, 4, int(topics.max()) + 1, False)  # noqa: E731
    return torch_job(make, x[:train], topics[:train], args.epochs), (x[train:], topics[train:])


def vehicle(args):
    """Return a logistic regression on 546 vehicles; the other 300, with noise added, are queries."""
    from torch import nn

    found = data.vehicle()
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(found.x_queries), 2 * args.queries)
    x = found.x_queries[drawn] + 0.1 * rng.normal(size=(len(drawn), found.x.shape[1])).astype(np.float32)
    return torch_job(lambda: nn.Linear(found.x.shape[1], 4), found.x, found.y, 10 * args.epochs, 1e-2), (
        x.astype(np.float32),
        found.y_queries[drawn],
    )


CASES = {
    "mnist-mlp": mnist_mlp,
    "fashion-cnn": fashion_cnn,
    "digits-keras": digits_keras,
    "sections-transformer": sections_transformer,
    "vehicle": vehicle,
}


def truth(job, x, y, kernel):
    """Return kernel values (m, n) of all training samples, and the weights (m,) that rounding is measured by."""
    values, weights = np.empty((len(x), len(job.source)), np.float32), np.empty(len(x))
    for some, gradients, norms in gradient_chunks(job.engine, Queries(x, y)):
        batch = Batch(np.arange(some.start, some.stop), x[some], y[some])
        for part, dots, train in exact.scan(job.engine, job.source, batch, gradients):
            values[some, part.ids] = kernels.values(kernel, dots, norms, train)
        weights[some] = [kernels.weights(kernel, float(norm), np.array([norm]))[0] for norm in norms]
    return values, weights


def recalls(values, scores, weights):
    """Return recall (m,) of answers' scores (m, k) that are exact; values so near to the k-th count as it."""
    kth = -np.partition(-values, K - 1, axis=1)[:, K - 1]
    return (scores >= (kth - 2 * ROUNDING * weights)[:, None]).mean(axis=1)


def asked(index, x, y, values, weights, options):
    """Return recall of both sides (2, m), exact checks (m,) and seconds of a query of answers to queries."""
    found, checks = [[], []], []
    began = time.perf_counter()
    answers = [
        index.explain(x[i : i + AT_ONCE], y[i : i + AT_ONCE], options=options) for i in range(0, len(x), AT_ONCE)
    ]
    seconds = (time.perf_counter() - began) / len(x)
    for i, answer in enumerate(answers):
        some = slice(i * AT_ONCE, (i + 1) * AT_ONCE)
        found[0].append(recalls(values[some], answer.scores, weights[some]))
        found[1].append(recalls(-values[some], -answer.opponent_scores, weights[some]))
        checks.append(answer.checked)
    about = answers[0].meta["params"]
    return np.array([np.concatenate(one) for one in found]), np.concatenate(checks), seconds, about


def summary(found, checks, seconds, wanted):
    """Return what is reported of the recall of both sides, (2, m)."""
    value, low, high = mean(found.mean(axis=0))
    return {
        "recall": value,
        "interval": [low, high],
        "proponents": float(found[0].mean()),
        "opponents": float(found[1].mean()),
        "queries below": float((found.mean(axis=0) < wanted - 1e-9).mean()),
        "median checks": float(np.median(checks)),
        "mean checks": float(np.mean(checks)),
        "seconds": seconds,
    }


def run(name, args, folder):
    """Return what was measured of a case."""
    kernel = Kernel(args.kernel)
    job, (x, y) = CASES[name](args)
    index = gradindex.build(job, folder / name, index=args.index, overwrite=True)
    out = {"rows": len(index), "parameters": job.engine.size, "index": index.searcher.factory, "splits": []}
    for repeat in range(args.repeats):
        order = np.random.default_rng(100 + repeat).permutation(len(x))[: args.queries]
        first, rest = order[: len(order) // 2], order[len(order) // 2 :]
        began = time.perf_counter()
        calibrated = index.calibrate(x[first], y[first], k=K, kernel=args.kernel, candidates=args.candidates)
        one = {"queries": [len(first), len(rest)], "calibrating seconds": time.perf_counter() - began, "wanted": {}}
        values, weights = truth(job, x[rest], y[rest], kernel)
        for wanted in WANTED:
            try:
                calibrated.promise(wanted)
            except ValueError as error:
                one["wanted"][str(wanted)] = {"refused": str(error)}
                continue
            options = gradindex.SearchOptions(k=K, kernel=args.kernel, recall=wanted)
            found, checks, seconds, about = asked(index, x[rest], y[rest], values, weights, options)
            one["wanted"][str(wanted)] = summary(found, checks, seconds, wanted) | {"point": about["point"]}
        options = gradindex.SearchOptions(k=K, kernel=args.kernel)
        one["rerank=50"] = summary(*asked(index, x[rest], y[rest], values, weights, options)[:3], 1.0)
        out["splits"].append(one)
        show(name, one)
    return out


def show(name, one):
    """Print what was measured of one split."""
    print(f"{name}: {one['queries'][0]} queries calibrate, {one['queries'][1]} ask", flush=True)
    for wanted, found in [*one["wanted"].items(), ("rerank=50", one["rerank=50"])]:
        if "refused" in found:
            print(f"  {wanted:>9}: {found['refused']}", flush=True)
            continue
        low, high = found["interval"]
        print(
            f"  {wanted:>9}: {found['recall']:.4f} [{low:.4f}, {high:.4f}], proponents {found['proponents']:.4f}, "
            f"opponents {found['opponents']:.4f}, {found['median checks']:.0f} checks in the median, "
            f"{found['mean checks']:.1f} on average",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--queries", type=int, default=4000, help="half of them calibrate, half ask")
    parser.add_argument("--rows", type=int, default=20_000, help="training samples at most")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1, help="splits of the queries")
    parser.add_argument("--kernel", default="grad_cos", choices=[one.value for one in Kernel])
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--index", default="auto", help="FAISS's factory string")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    record.add_out(parser)
    args = parser.parse_args()
    from gradindex.runtime import threads

    results = {}
    with tempfile.TemporaryDirectory() as folder, threads.using("torch", args.threads):
        for name in args.cases:
            results[name] = run(name, args, Path(folder))
    if args.out:
        record.write(args.out, results)
    low = [
        (name, wanted, found["interval"])
        for name, result in results.items()
        for one in result["splits"]
        for wanted, found in one["wanted"].items()
        if "refused" not in found and found["interval"][0] < float(wanted) - SLACK
    ]
    if low:
        raise SystemExit(f"recall is below what was wanted: {low}")


if __name__ == "__main__":
    main()
