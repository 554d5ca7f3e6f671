"""The store against plain NumPy files of the same bytes: writing, scanning cold and warm, random rows.

    python benchmarks/store.py [--rows 200000] [--dim 1024] [--repeats 5] [--folder DIR] [--out FILE]

Contenders take turns in one process; medians. `np.save` writes the same float16 rows, flushed to disk as the store's
files are (and, apart, not flushed); `np.load(mmap_mode="r")` reads them, cast to float32 by blocks as the store does.
Cold means that the kernel was asked to drop the files from its cache (posix_fadvise). The first reading of an open
store compares checksums, later ones do not; both are shown, each contender's file opened anew for the first. One thread
reads; while the store writes, others hash.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import record

from gradindex.store import Header, Store
from gradindex.store.shard import Rows

_BLOCK, _RANDOM = 16384, 2000


def header(rows: int, dim: int) -> Header:
    """Return the header of a store of arrays."""
    return Header(
        rows=rows,
        shard_rows=max(1, (128 << 20) // (2 * dim)),
        dim=dim,
        sketch={"kind": "arrays", "dim": dim},
        seed=0,
        batch_size=1,
        task="none",
        backend="none",
        parameters=[],
        state=[],
        versions={},
    )


def write_store(path: Path, rows: Any) -> None:
    """Publish all shards."""
    store = Store.create(path, header(*rows.shape))
    for number in range(store.header.shards):
        here = slice(*store.header.span(number))
        ids = np.arange(here.start, here.stop)
        store.write(number, Rows(rows[here], np.ones(len(ids), np.float32), ids, {}))


def write_plain(path: Path, rows: Any, flush: bool) -> None:
    """Save the same rows with NumPy."""
    with path.open("wb") as file:
        np.save(file, rows)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def scan_store(store: Store) -> float:
    """Read all rows as float32."""
    return sum(float(rows[0, 0]) for _, rows in store.blocks(_BLOCK))


def scan_plain(rows: Any) -> float:
    """Read all rows as float32."""
    return sum(float(rows[i : i + _BLOCK].astype(np.float32)[0, 0]) for i in range(0, len(rows), _BLOCK))


def drop(path: Path) -> None:
    """Ask the kernel to forget the contents of a file, or of all files in a folder."""
    for file in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return seconds of every kind of access, by turns."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((options.rows, options.dim), np.float32).astype(np.float16)
    found: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], Any]) -> None:
        found.setdefault(name, []).append(seconds(work))

    where, plain = folder / "store", folder / "rows.npy"
    for _ in range(options.repeats):
        shutil.rmtree(where, ignore_errors=True)
        plain.unlink(missing_ok=True)
        note("write store", lambda: write_store(where, rows))
        note("write plain", lambda: write_plain(plain, rows, True))
        plain.unlink()
        note("write plain, not flushed", lambda: write_plain(plain, rows, False))
        chosen = rng.choice(options.rows, min(_RANDOM, options.rows), replace=False)
        for kind in ("cold", "first warm", "warm"):
            for name, read_store, read_plain in (
                ("scan", scan_store, scan_plain),
                ("random rows", lambda s, c=chosen: s.gather(c), lambda m, c=chosen: m[c].astype(np.float32)),
            ):
                if kind != "warm":  # opened anew: pages are mapped when they are first touched
                    store, mapped = Store.open(where), np.load(plain, mmap_mode="r")
                else:
                    read_store(store), read_plain(mapped)
                if kind == "cold":
                    drop(where)
                    drop(plain)
                for _ in range(5 if kind == "warm" else 1):
                    note(f"{kind} {name} store", lambda read=read_store, store=store: read(store))
                    note(f"{kind} {name} plain", lambda read=read_plain, mapped=mapped: read(mapped))
    return found


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; the system's folder for temporary files otherwise")
    record.add_out(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options)
    middle = {name: statistics.median(times) for name, times in found.items()}
    megabytes = options.rows * options.dim * 2 / 1e6
    print("| | store | plain | store / plain (medians) |\n|---|---|---|---|")
    for name in (
        "write",
        *(f"{kind} {what}" for kind in ("cold", "first warm", "warm") for what in ("scan", "random rows")),
    ):
        store, plain = middle[f"{name} store"], middle[f"{name} plain"]
        rate = (lambda s: f"{1e3 * s:.1f} ms") if "random" in name else (lambda s: f"{megabytes / s:.0f} MB/s")
        print(f"| {name} | {rate(store)} | {rate(plain)} | {plain / store:.2f} |")
    print(f"\nnp.save, not flushed: {megabytes / middle['write plain, not flushed']:.0f} MB/s")
    if options.out:
        record.write(options.out, {"rows": options.rows, "dim": options.dim, "medians": middle, "seconds": found})


if __name__ == "__main__":
    main()
