"""What whitening costs: rows of a store whitened, and a query of the whitened kernels beside one of the plain cosine.

    python benchmarks/whitening.py --rows 1000000 --threads 2 --out benchmarks/results/whitening.json

Rows are made up: unit-norm rows of 1,024 numbers with the spectrum of gradients of a small network (eigenvalues that
fall as 1/j) in a store of float16. Whitening is timed by its stages, FAISS apart. Candidates
found through inverted lists are compared with a scan of all whitened rows.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import record
from threadpoolctl import threadpool_limits

import gradindex
from gradindex.ann import build as indexing
from gradindex.kernels import Kernel
from gradindex.lifecycle import whiten as whitening
from gradindex.search import norm_scan
from gradindex.store import Rows, Store
from gradindex.store.arrays import as_rows

DIM, BLOCK = 1024, 50_000


def store_of(rows: int, path: Path, seed: int = 0) -> Store:
    """Write made-up rows block by block, so that they need not fit into memory."""
    rng = np.random.default_rng(seed)
    scales = np.sqrt(1 / (1 + np.arange(DIM)))
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    centres = rng.normal(size=(200, DIM)).astype(np.float32)

    def block(count: int) -> tuple[np.ndarray, np.ndarray]:
        made = rng.normal(size=(count, DIM), scale=0.7).astype(np.float32) + centres[rng.integers(0, 200, count)]
        made = (made * scales).astype(np.float32) @ turn
        norms = np.linalg.norm(made, axis=1)
        return made / norms[:, None], norms * rng.lognormal(sigma=1.0, size=count)

    header, _ = as_rows(np.ones((rows, 1)), np.arange(rows), np.ones(rows), shard_rows=BLOCK)
    header = dataclasses.replace(header, dim=DIM, sketch={"kind": "arrays", "dim": DIM})
    store = Store.create(path, header)
    for number in range(header.shards):
        start, stop = header.span(number)
        made, norms = block(stop - start)
        ids = np.arange(start, stop, dtype=np.int64)
        store.write(number, Rows(made.astype(np.float16), norms.astype(np.float32), ids, {}))
    return Store.open(path)


def seconds(work, repeats: int) -> list[float]:
    found = []
    for turn in range(repeats):
        begin = time.perf_counter()
        work(turn)
        found.append(time.perf_counter() - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=200)
    record.add_out(parser)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(options.threads):
        store = store_of(options.rows, Path(folder) / "store")
        index = gradindex.index_store(store)
        spent = {}
        build, spectrum = indexing.build, whitening._spectrum

        def timed(name, work):
            def run(*args, **keywords):
                begin = time.perf_counter()
                result = work(*args, **keywords)
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
                return result

            return run

        whitening.indexing.build, whitening._spectrum = timed("FAISS", build), timed("second moment", spectrum)
        begin = time.perf_counter()
        white = index.whiten()
        spent["all"] = time.perf_counter() - begin
        whitening.indexing.build, whitening._spectrum = build, spectrum
        spent["rows"] = spent["all"] - spent["FAISS"] - spent["second moment"]
        rng = np.random.default_rng(1)
        own = rng.choice(options.rows, options.queries, replace=False)
        sketches, norms = store.gather(own), store.norms[own].astype(np.float64)
        rows, lengths = white.whitener(sketches, norms)
        plain, whitened, scans = [], [], []
        for line in range(options.queries):  # interleaved
            plain += seconds(lambda _, line=line: index.rows.nearest(sketches[line : line + 1], 400, None), 1)
            whitened += seconds(
                lambda _, line=line: white.rows.nearest(white.whitener(*one(sketches, norms, line))[0], 400, None), 1
            )
        few = 20
        found = white.rows.nearest(rows[:few], 400, None)[1]
        _, true, _ = norm_scan.scan(white.store, rows[:few], np.ones(few), Kernel.COS, 10)
        recall = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(found, true, strict=True)])
        scans = seconds(
            lambda turn: white.rows.scan(
                rows[turn : turn + 1], lengths[turn : turn + 1], gradindex.kernels.Kernel.DOT, 10
            ),
            few,
        )
        result = {
            "rows": options.rows,
            "threads": options.threads,
            "seconds": {name: round(value, 2) for name, value in spent.items()},
            "seconds_without_faiss": round(spent["all"] - spent["FAISS"], 2),
            "bytes_per_row": white.store.header.row_bytes + 4,
            "index": white.searcher.factory,
            "query_ms": {
                "grad_cos, FAISS": 1e3 * float(np.median(plain)),
                "white_cos, FAISS": 1e3 * float(np.median(whitened)),
                "white_dot, scan": 1e3 * float(np.median(scans)),
            },
            "white_over_plain": float(np.median(np.array(whitened) / np.array(plain))),
            "recall_of_400_candidates": float(recall),
        }
    print(result)
    if options.out:
        record.write(options.out, result)


def one(sketches: np.ndarray, norms: np.ndarray, line: int) -> tuple[np.ndarray, np.ndarray]:
    return sketches[line : line + 1], norms[line : line + 1]


if __name__ == "__main__":
    main()
