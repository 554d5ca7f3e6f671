"""Measuring a job's costs on this machine, for `gradindex.lifecycle.plan`."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gradindex.ann import costs
from gradindex.ann import plan as index_plan
from gradindex.ann.choice import FLAT_ROWS
from gradindex.ann.searcher import as_vectors
from gradindex.compute import exact
from gradindex.compute.blocks import Block, embed_rows
from gradindex.defaults import MEASURED_SECONDS, SEED
from gradindex.gradients.projector import Projector
from gradindex.job import Job
from gradindex.lifecycle.plan import Rates
from gradindex.sketch import CountSketch, Sketch
from gradindex.store import Store

_LEAST = 64  # rows embedded at the very least


def measure(job: Job, *, sketch: Sketch | None = None, seconds: float = MEASURED_SECONDS, seed: int = SEED) -> Rates:
    """Embed some of a job's rows for about `seconds`, store and search them, and return what each step took.

    Parameters
    ----------
    job
        What is to be built.
    sketch
        The projection; ``CountSketch(1024)`` by default. Landmarks are not supported.
    seconds
        Four fifths of it are spent on embedding.
    seed
        Of the projection, and of queries.

    Raises
    ------
    ValueError
        If `seconds` is not positive, or the sketch is one of landmarks.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds!r}.")
    if (sketch or CountSketch()).to_json()["kind"] == "landmark":
        raise ValueError("A plan is for sketches without landmarks, such as CountSketch.")
    from gradindex.lifecycle.header import header as make_header
    from gradindex.lifecycle.options import BuildOptions

    began = time.perf_counter()
    header = make_header(job, BuildOptions(sketch=sketch or CountSketch(), seed=seed))
    projector: Projector = (sketch or CountSketch()).bind(job.engine.parameters, seed)
    start = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        embed, publish, store, base, most = _embedding(job, projector, header, 0.8 * seconds, Path(folder))
        rows = store.gather(np.arange(len(store)))
        width = index_plan.choose(10 * FLAT_ROWS, header.dim, index_plan.foldable(header))[1]
        return Rates(
            embed=embed,
            publish=publish,
            start=start,
            **_indexing(store, width, seed),
            **costs.flat(rows, Path(folder)),
            **_queries(job, store, projector, seed),
            row_bytes=store.bytes / len(store),
            number_bytes=header.row_bytes / header.dim,
            base_bytes=base,
            embed_bytes=most,
            dim=header.dim,
            width=width,
        )


def _embedding(
    job: Job, projector: Projector, header: Any, seconds: float, folder: Path
) -> tuple[float, float, Store, float, float]:
    """Embed and publish rows; return seconds a row of both, the store, bytes of the process, and of embedding."""
    from dataclasses import replace

    from gradindex.data.columns import as_columns
    from gradindex.lifecycle.embed_shards import make_rows

    size = header.batch_size
    list(embed_rows(job, projector, size, 0, min(size, header.rows)))  # compiles, allocates
    _reset_peak()
    before, began = _status("VmRSS"), time.perf_counter()
    blocks: list[Block] = []
    count, limit = 0, max(1, costs.LARGE // (4 * header.dim))
    spent = 0.0
    while spent < seconds or count < _LEAST:  # over again if the dataset is short
        for block in embed_rows(job, projector, size):
            if len(blocks) * size < limit:
                blocks.append(block)
            count += len(block.ids)
            spent = time.perf_counter() - began
            if spent >= seconds and count >= _LEAST:
                break
    most = _status("VmHWM") - before
    kept: list[Block] = []
    seen = 0
    for block in blocks:  # ids once
        if block.ids[0] == seen:
            kept.append(block)
            seen += len(block.ids)
    every = as_columns(job.columns, header.rows)
    times = []
    for name in ("0", "1", "2"):  # the first one loads libraries, and disks are not always as fast
        store = Store.create(folder / name, replace(header, rows=seen, shard_rows=seen))
        began = time.perf_counter()
        store.write(0, make_rows(kept, seen, header, {name: values[:seen] for name, values in every.items()}))
        times.append(time.perf_counter() - began)
    publish = float(np.median(times)) / seen
    held = sum(block.sketches.nbytes for block in blocks)
    return spent / count, publish, Store.open(store.path), before, max(0.0, most - held)


def _indexing(store: Store, width: int, seed: int) -> dict[str, float]:
    """Return the costs of inverted lists over a store's rows, folded to `width` numbers."""
    times = []
    for fresh in (Store.open(store.path) for _ in range(3)):  # whose rows' checksums were not compared yet
        began = time.perf_counter()
        vectors = np.concatenate([as_vectors(rows, width) for _, rows in fresh.blocks()])
        times.append(time.perf_counter() - began)
    fold = float(np.median(times)) / len(store)
    return {"fold": fold, **costs.inverted_lists(vectors, seed)}


def _queries(job: Job, store: Store, projector: Projector, seed: int) -> dict[str, float]:
    """Return the costs of a query's gradient and sketch, of a stored row, and of an exact evaluation."""
    rng = np.random.default_rng(seed)
    batch = job.source.take(np.arange(1, dtype=np.int64))
    gradients = job.engine.gradients(batch.x, batch.y).gradients
    candidates = rng.choice(len(job.source), min(200, len(job.source)), replace=False)[None]

    def query() -> None:
        found = job.engine.gradients(batch.x, batch.y).gradients
        projector.finish(projector(job.engine.parameters, found), exact.norms(found))

    chosen = rng.choice(len(store), min(100, len(store)), replace=False)
    return {
        "query": costs.seconds(query),
        "fetch": costs.seconds(lambda: store.gather(chosen)) / len(chosen),
        "check": costs.seconds(lambda: exact.candidate_dots(job.engine, job.source, None, gradients, candidates))
        / candidates.size,
    }


def _reset_peak() -> None:
    """Forget the largest resident size so far; where the system does not allow it, the peak is an upper bound."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(name: str) -> float:
    """Return VmRSS or VmHWM of this process in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0.0)
