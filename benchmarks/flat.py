"""Flat search for several queries at once: FAISS's own against NumPy's product over the same vectors.

    OMP_NUM_THREADS=2 python benchmarks/flat.py [--rows 10000 100000] [--dim 1024]

Milliseconds a query, the median of repeats, in turns. FAISS also with OpenBLAS kept to one thread, with which its own
threads otherwise compete.
"""

import argparse
import statistics
import time
from functools import partial

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from gradindex.index import flat


def one_thread(search):
    """Run a search with OpenBLAS kept to one thread."""
    with threadpool_limits(1, user_api="blas"):
        search()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 256])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    print(f"{'rows':>8}{'queries':>9}{'FAISS':>9}{'one BLAS thread':>17}{'NumPy':>9}{'FAISS/NumPy':>13}")
    for rows in options.rows:
        vectors = random.normal(size=(rows, options.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(options.dim)
        index.add(vectors)
        for count in options.queries:
            queries = vectors[:count].copy()
            ways = {
                "FAISS": partial(index.search, queries, options.k),
                "one": partial(one_thread, partial(index.search, queries, options.k)),
                "NumPy": partial(flat.search, index, queries, options.k),
            }
            seconds = {name: [] for name in ways}
            for _ in range(options.repeats):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way()
                    seconds[name].append(time.perf_counter() - began)
            each = {name: 1e3 * statistics.median(some) / count for name, some in seconds.items()}
            print(
                f"{rows:8}{count:9}{each['FAISS']:9.2f}{each['one']:17.2f}{each['NumPy']:9.2f}"
                f"{min(each['FAISS'], each['one']) / each['NumPy']:13.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
