"""Flat search of several queries at once: FAISS one query after the other, and by matrix products.

    OMP_NUM_THREADS=2 python benchmarks/flat.py [--rows 10000 100000] [--dim 1024] [--out FILE]

Milliseconds a query, the median of repeats, in turns: with FAISS's own threshold, and with that of gradindex.
"""

import argparse
import statistics
import time

import faiss
import numpy as np
import record

from gradindex.ann import blas


def with_products(index, queries, k):
    """Search as gradindex does."""
    with blas.for_few():
        return index.search(queries, k)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    record.add_out(parser)
    options = parser.parse_args()
    random, results = np.random.default_rng(0), []
    print(f"FAISS's own threshold: {faiss.cvar.distance_compute_blas_threshold} numbers")
    print(f"{'rows':>8}{'queries':>9}{'FAISS':>9}{'gradindex':>11}{'FAISS/gradindex':>17}")
    for rows in options.rows:
        vectors = random.normal(size=(rows, options.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(options.dim)
        index.add(vectors)
        for count in options.queries:
            queries = vectors[:count].copy()
            ways = {
                "FAISS": (index.search, queries, options.k),
                "gradindex": (with_products, index, queries, options.k),
            }
            seconds = {name: [] for name in ways}
            for _ in range(options.repeats):
                for name, (way, *arguments) in ways.items():
                    began = time.perf_counter()
                    way(*arguments)
                    seconds[name].append(time.perf_counter() - began)
            each = {name: 1e3 * statistics.median(some) / count for name, some in seconds.items()}
            results.append({"rows": rows, "queries": count, "milliseconds": each})
            print(
                f"{rows:8}{count:9}{each['FAISS']:9.2f}{each['gradindex']:11.2f}"
                f"{each['FAISS'] / each['gradindex']:17.2f}",
                flush=True,
            )

    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    main()
