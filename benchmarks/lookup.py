"""Lookups against the exact kernel: recall, proofs and latency on real gradients, and peers on the same ones.

    GRADINDEX_DATA=… python benchmarks/lookup.py [--rows 60000] [--queries 500] [--folder FOLDER] [--out FILE]
        [--million FOLDER/rows-100000 FOLDER/rows-1000000]
        [--peers alibi=VENV captum=VENV trak=VENV] [--parts index proofs residual latency rows answers]

Trains the CNN of the docs (412,778 parameters) on Fashion-MNIST, embeds the training pictures, and computes the exact
inner products of test pictures' gradients with all training gradients by factors, blockwise. With ``--folder`` all of
that is kept there for the next run. Timings alternate between the contenders, a round at a time.

``--million`` takes indexes that ``million.py --keep FOLDER`` left: search alone against ``IndexFlatIP`` on the same
rows, whole explanations by ``recall=`` and by default, memory. ``--peers`` takes the virtual environments described in
peers/README.md; a peer that does not run is skipped with a message. Exits with 1 if recall is below its floor.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import certified
import faiss
import numpy as np
import record
import torch
from torch import nn

import gradindex
from gradindex import kernels
from gradindex.ann.searcher import as_vectors
from gradindex.compute import exact
from gradindex.compute.held_queries import HeldQueries
from gradindex.data.source import Batch
from gradindex.kernels import Kernel
from gradindex.search import cascade

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from data import load

K = 10
FLOOR = 0.99
ROWS = [
    *(("float16", 1024, "float16"), ("int8", 1024, "int8"), ("int4", 1024, "int4")),
    *(("int8 of 2,048", 2048, "int8"), ("int4 of 4,096", 4096, "int4")),
]
RESCORED = 40  # times that candidates are scored anew
SCANNED = 2048  # samples that the rate of an exact scan is measured on
PEERS = Path(__file__).parent / "peers"


def prepare(args, folder):
    """Return pictures, job, index and exact inner products, from `folder` where they are there."""
    images = load("fashion", args.rows)
    model, weights = certified.cnn(), folder / "cnn.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        model.eval()
    else:
        model = certified.trained(certified.cnn, images, args.epochs, args.seed)
        torch.save(model.state_dict(), weights)
    job = gradindex.Job(model, nn.CrossEntropyLoss(), (images.x_train, images.y_train))
    rows = len(images.x_train)
    path = folder / f"cnn-{rows}"
    if not (path / "index" / "index.json").exists():
        gradindex.build(job, path, index="Flat")
    index = gradindex.load(path, job)
    factory = gradindex.choose_index(rows, index.store.header.dim, memory=300 * rows)
    if index.searcher.factory != factory:
        gradindex.index_store(index.store, factory)
        index = gradindex.load(path, job)
    if index.curve is None:
        index.tune(k=K)
    return images, job, index, truth(args, folder, job, images)


def truth(args, folder, job, images):
    """Return inner products (m, n) and norms of queries and training samples."""
    path = folder / f"truth-{len(images.x_train)}-{args.queries}.npz"
    if not path.exists():
        x, y = images.x_test[: args.queries], images.y_test[: args.queries]
        gradients = job.engine.gradients(x, y).gradients
        dots, norms = np.empty((len(x), len(images.x_train)), np.float32), np.empty(len(images.x_train))
        for batch, found, train in exact.scan(job.engine, job.source, Batch(np.arange(len(x)), x, y), gradients):
            dots[:, batch.ids], norms[batch.ids] = found, train
        np.savez(path, dots=dots, norms=norms, queries=exact.norms(gradients))
    with np.load(path) as saved:
        return saved["dots"], saved["norms"], saved["queries"]


def best(values, k=K):
    """Return the ids of the k highest values of each line."""
    part = np.argpartition(-values, k - 1, axis=1)[:, :k]
    return np.take_along_axis(part, np.argsort(-np.take_along_axis(values, part, 1), axis=1, kind="stable"), 1)


def recall(values, ids):
    """Return the share of each line's highest values that `ids` reach; ties count, missing ids do not."""
    k = ids.shape[1]
    kth = -np.sort(-values, axis=1)[:, k - 1 : k]
    found = np.where(ids >= 0, np.take_along_axis(values, np.maximum(ids, 0), 1), -np.inf)
    return float((found >= kth - 2e-6 * np.abs(values).max(axis=1, keepdims=True)).mean())


def recalls(index, images, dots, norms, queries):
    """Recall of ordinary answers, with and without exact checks, of both sides."""
    x, y = images.x_test[: len(dots)], images.y_test[: len(dots)]
    cosines = kernels.values(Kernel.COS, dots, queries, norms)
    out = {"index": index.searcher.factory, "index_bytes_per_row": index.searcher.bytes / len(index)}
    for name, options in (("checked", {}), ("unchecked", {"rerank": 0})):
        found = index.explain(x, y, k=K, **options)
        out[name] = {
            "recall@10": recall(cosines, found.ordered_indices),
            "opponents' recall@10": recall(-cosines, found.opponent_indices),
            "checks": float(found.checked.max()),
            "method": found.meta["params"]["exact_method"],
            "candidates": found.meta["params"]["candidates"],
        }
    tuned = index.curve.pick(min(0.999, max(point.recall for point in index.curve.points)))
    found = index.explain(x, y, k=K, recall=tuned.recall)
    out["tuned"] = {"point": tuned.key, "recall@10": recall(cosines, found.ordered_indices)}
    out["curve"] = index.curve.to_json()
    return out


def proofs(job, index, images, dots, norms, queries, folder, args):
    """Certified answers of all three kernels on Landmark rows of at most 1 KiB, and the store's norm-ordered scan."""
    rows, m = len(images.x_train), min(args.proofs, len(dots))
    path = folder / f"landmark-{rows}"
    sketch = gradindex.Landmark(landmarks=min(1024, rows), dims=min(510, rows))
    if not (path / "index" / "index.json").exists():
        gradindex.build(job, path, sketch=sketch, index="Flat")
    landmark = gradindex.load(path, job)
    x, y = images.x_test[:m], images.y_test[:m]
    out = {"bytes_per_row": 2 * landmark.store.header.dim}
    for kernel in Kernel:
        values = kernels.values(kernel, dots[:m], queries[:m], norms)
        found = landmark.explain(x, y, k=K, kernel=kernel.value, certify=True)
        scan = index.explain(x, y, k=K, kernel=kernel.value, rerank=0)
        out[kernel.value] = {
            "recall@10": recall(values, found.ordered_indices),
            "opponents' recall@10": recall(-values, found.opponent_indices),
            "proved": float(found.proved.mean()),
            "proved_1_percent": float((found.proved & (found.checked <= rows / 100)).mean()),
            "opponents_proved_1_percent": float(
                (found.opponent_proved & (found.opponent_checked <= rows / 100)).mean()
            ),
            "median_checked_share": float(np.median(found.checked)) / rows,
            "median_scanned_share_of_store": float(np.median(scan.scanned)) / rows,
        }
    return out


def residual(job, images, dots, norms, queries, folder):
    """Recall without exact checks of Landmark rows with a sketch of what is left out, 2 KiB each."""
    rows = len(images.x_train)
    path = folder / f"residual-{rows}"
    sketch = gradindex.Landmark(landmarks=min(1024, rows), dims=min(512, rows), residual=512)
    if not (path / "index" / "index.json").exists():
        gradindex.build(job, path, sketch=sketch, index="Flat")
    index = gradindex.load(path, job)
    cosines = kernels.values(Kernel.COS, dots, queries, norms)
    found = index.explain(images.x_test[: len(dots)], images.y_test[: len(dots)], k=K, rerank=0)
    return {
        "bytes_per_row": 2 * index.store.header.dim,
        "recall@10": recall(cosines, found.ordered_indices),
        "opponents' recall@10": recall(-cosines, found.opponent_indices),
    }


def latency(job, index, images, args):
    """One query at a time, all included, against exact scans: forward mode and factors, extrapolated linearly."""
    times = {"explain": [], "forward mode": [], "factors": []}
    some = min(SCANNED, len(images.x_train))
    size = 128
    index.explain(images.x_test[:1], images.y_test[:1], k=K)
    for turn in range(args.repeats):
        one = slice(turn, turn + 1)
        x, y = images.x_test[one], images.y_test[one]
        for _ in range(5):
            began = time.perf_counter()
            index.explain(x, y, k=K)
            times["explain"].append(time.perf_counter() - began)
        scale = len(images.x_train) / some
        began = time.perf_counter()
        (gradient,) = job.engine.gradients(x, y).gradients
        for at in range(0, some, size):
            batch = job.source.take(np.arange(at, min(at + size, some)))
            job.engine.directional(batch.x, batch.y, gradient)
        times["forward mode"].append(scale * (time.perf_counter() - began))
        began = time.perf_counter()
        held = HeldQueries(job.engine, Batch(np.arange(1), x, y))
        for at in range(0, some, size):
            held.dots(job.source.take(np.arange(at, min(at + size, some))))
        times["factors"].append(scale * (time.perf_counter() - began))
    out = {f"{name}_seconds": float(np.median(found)) for name, found in times.items()}
    out["explain_p99_seconds"] = float(np.quantile(times["explain"], 0.99))
    out["times_faster_than_exact_scan"] = (
        min(out["forward mode_seconds"], out["factors_seconds"]) / out["explain_seconds"]
    )
    return out


def rows(job, factory, images, dots, norms, queries, folder):
    """Recall without exact checks, and bytes, of rows of 4, 8 and 16 bits; what scoring 800 candidates anew takes.

    The rows of one index after the other are read in turns.
    """
    cosines = kernels.values(Kernel.COS, dots, queries, norms)
    out, opened = {}, {}
    for name, dim, kind in ROWS:
        path = folder / f"rows-{len(norms)}-{kind}-{dim}"
        if not (path / "index" / "index.json").exists():
            gradindex.build(job, path, sketch=gradindex.CountSketch(dim), row_type=kind, index=factory)
        index = opened[name] = gradindex.load(path, job)
        found = index.explain(images.x_test[: len(dots)], images.y_test[: len(dots)], k=K, rerank=0, candidates=1600)
        out[name] = {
            "recall@10": recall(cosines, found.ordered_indices),
            "opponents' recall@10": recall(-cosines, found.opponent_indices),
            "store_bytes_per_row": index.store.bytes / len(index),
            "bytes_per_row": (index.store.bytes + index.searcher.bytes) / len(index),
        }
        for _ in index.store.blocks():  # checksums are compared when rows are first read
            pass
    rng, times = np.random.default_rng(0), {name: [] for name in opened}
    for _ in range(RESCORED):
        drawn = rng.choice(len(norms), (1, min(800, len(norms))), replace=False)
        for name, index in opened.items():
            sketch = rng.normal(size=(1, index.store.header.dim)).astype(np.float32)
            began = time.perf_counter()
            cascade.rescored(index.store, sketch, drawn)
            times[name].append(time.perf_counter() - began)
    for name, found in times.items():
        out[name]["rescoring_ms"] = 1e3 * float(np.median(found))
    return out


def answers(job, index, images, known, args):
    """One query at a time against a bare forward-mode pass over 100 candidates, in turns; recall of all queries.

    ``checked`` is the default; ``recall=…`` is calibrated, on 2,000 pictures that are not asked about.
    """
    dots, norms, queries = known
    cosines = kernels.values(Kernel.COS, dots, queries, norms)
    if index.calibration(k=K) is None:
        index.calibrate(images.x_test[-args.calibrate :], images.y_test[-args.calibrate :], k=K)
    asked = {
        "checked": {},
        "recall=0.99": {"recall": 0.99},
        "recall=0.999": {"recall": 0.999},
        "unchecked": {"rerank": 0},
    }
    out, times = {}, {name: [] for name in ("bare", *asked)}
    x, y = images.x_test[: len(dots)], images.y_test[: len(dots)]
    for name, options in asked.items():
        found = index.explain(x, y, k=K, **options)
        out[name] = {
            "recall@10": recall(cosines, found.ordered_indices),
            "opponents' recall@10": recall(-cosines, found.opponent_indices),
            "median_checks": float(np.median(found.checked)),
        }
    rng = np.random.default_rng(0)
    for i in range(min(args.asked, len(x))):
        one = slice(i, i + 1)
        (gradient,) = job.engine.gradients(x[one], y[one]).gradients
        some = [job.source.take(np.sort(part)) for part in np.split(rng.choice(len(norms), 100, replace=False), [64])]
        began = time.perf_counter()
        for batch in some:  # in passes as large as those of answers
            job.engine.directional(batch.x, batch.y, gradient)
        times["bare"].append(time.perf_counter() - began)
        for name, options in asked.items():
            began = time.perf_counter()
            index.explain(x[one], y[one], k=K, **options)
            times[name].append(time.perf_counter() - began)
    bare = np.array(times.pop("bare"))
    out["bare_ms"] = 1e3 * float(np.median(bare))
    for name, found in times.items():
        out[name]["p50_ms"], out[name]["p99_ms"] = (1e3 * float(np.quantile(found, share)) for share in (0.5, 0.99))
        out[name]["times_bare"] = float(np.median(np.array(found) / bare))
    return out


def million(path, args):
    """Search alone against a flat index of the same rows, whole explanations, memory."""
    import million as store_maker

    path = Path(path)
    pictures = load("fashion")
    began = time.perf_counter()
    rows = len(gradindex.load(path))
    opened = time.perf_counter() - began
    model = store_maker.network()
    model.load_state_dict(torch.load(path.parent / f"network-{rows}.pt", weights_only=True))
    dataset = store_maker.Augmented(pictures.x_train, pictures.y_train, rows, args.seed)
    index = gradindex.load(path, gradindex.Job(model.eval(), nn.CrossEntropyLoss(), dataset))
    if index.curve is None:
        index.tune(k=K)
    before = store_maker.resident()
    x, y = pictures.x_test[: args.queries, None], pictures.y_test[: args.queries]
    sketches = index.sketch(x, y)
    flat = faiss.IndexFlatIP(index.searcher.dim)
    for _, block in index.store.blocks():
        flat.add(as_vectors(block, index.searcher.dim))
    narrow = as_vectors(sketches, index.searcher.dim)
    _, wanted = flat.search(narrow, K)
    point = index.curve.pick(min(0.99, max(p.recall for p in index.curve.points)))
    settings = gradindex.ann.operating_point.parse(point.key)
    times = {"index": [], "flat": [], "explain": [], "default": []}
    shown = min(args.queries, 100)
    for i in range(shown):
        for name, work in (
            ("index", lambda i=i: index.searcher.search(sketches[i : i + 1], 400, point=settings)),
            ("flat", lambda i=i: flat.search(narrow[i : i + 1], K)),
            ("explain", lambda i=i: index.explain(x[i : i + 1], y[i : i + 1], k=K, recall=point.recall)),
            ("default", lambda i=i: index.explain(x[i : i + 1], y[i : i + 1], k=K)),
        ):
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    _, found = index.searcher.search(sketches, 400, point=settings)
    hits = [len(np.intersect1d(a, b)) / K for a, b in zip(wanted, found, strict=True)]
    return {
        "rows": rows,
        "index": index.searcher.factory,
        "point": point.key,
        "open_seconds": opened,
        "index_ms": 1e3 * float(np.median(times["index"])),
        "flat_ms": 1e3 * float(np.median(times["flat"])),
        "times_faster": float(np.median(times["flat"]) / np.median(times["index"])),
        "flat_top_10_among_400_candidates": float(np.mean(hits)),
        "explain_p50_ms": 1e3 * float(np.median(times["explain"])),
        "explain_p99_ms": 1e3 * float(np.quantile(times["explain"], 0.99)),
        "default_p50_ms": 1e3 * float(np.median(times["default"])),
        "default_p99_ms": 1e3 * float(np.quantile(times["default"], 0.99)),
        "resident_before_flat_bytes": before,
    }


def peers(args, folder, images, dots, norms, queries):
    """Run each peer in its own environment on the same weights and pictures; what does not run is skipped."""
    out = {}
    values = kernels.values(Kernel.COS, dots, queries, norms)
    np.savez(
        folder / "peer.npz",
        x=images.x_train,
        y=images.y_train,
        queries=images.x_test[: len(dots)],
        labels=images.y_test[: len(dots)],
    )
    for name, _, venv in (peer.partition("=") for peer in args.peers):
        command = [f"{venv}/bin/python", str(PEERS / f"{name}_peer.py"), str(folder), str(args.repeats)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=1800)
            found = json.loads(done.stdout.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            print(f"{name} skipped: {error}", flush=True)
            continue
        for key in [key for key in found if key.startswith("ids")]:
            ids, how = np.array(found.pop(key)), key.removeprefix("ids")
            found[f"recall@10{how}"] = recall(values[: len(ids)], ids)
            found[f"recall@10 of grad_dot{how}"] = recall(dots[: len(ids)], ids)
        out[name] = found
        show(name, found)
    return out


def show(title, found):
    """Print a result."""
    print(title, flush=True)
    for name, value in found.items():
        if isinstance(value, dict) and name != "curve":
            print(f"  {name}: " + ", ".join(f"{key} {_text(item)}" for key, item in value.items()), flush=True)
        elif name != "curve":
            print(f"  {name}: {_text(value)}", flush=True)


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--proofs", type=int, default=100, help="queries that answers are certified for")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--folder", type=Path, help="where stores and exact values are kept for the next run")
    parser.add_argument("--parts", nargs="*", default=["index", "proofs", "residual", "latency"])
    parser.add_argument("--asked", type=int, default=100, help="queries that are asked one by one")
    parser.add_argument("--calibrate", type=int, default=2000, help="test pictures that recall= is calibrated on")
    parser.add_argument("--million", nargs="*", default=[], help="indexes left by million.py --keep")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=VENV")
    record.add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.parts or args.peers:
            images, job, index, known = prepare(args, folder)
        parts = {
            "index": lambda: recalls(index, images, *known),
            "proofs": lambda: proofs(job, index, images, *known, folder, args),
            "residual": lambda: residual(job, images, *known, folder),
            "latency": lambda: latency(job, index, images, args),
            "rows": lambda: rows(job, index.searcher.factory, images, *known, folder),
            "answers": lambda: answers(job, index, images, known, args),
        }
        for name in args.parts:
            results[name] = parts[name]()
            show(name, results[name])
        if args.peers:
            results["peers"] = peers(args, folder, images, *known)
        if args.million:
            results["million"] = []
            for path in args.million:
                results["million"].append(million(path, args))
                show("million", results["million"][-1])
    if args.out:
        record.write(args.out, results)
    if "index" in results and results["index"]["checked"]["recall@10"] < FLOOR:
        raise SystemExit(f"recall@10 {results['index']['checked']['recall@10']:.4f} is below {FLOOR}")


if __name__ == "__main__":
    main()
