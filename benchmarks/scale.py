"""Many machines: what Ray adds to a shard, two workers, plans against real builds, a billion rows simulated.

    GRADINDEX_DATA=… python benchmarks/scale.py [--parts overhead plan simulate] [--shards 16] [--out FILE]

overhead: the CNN of `million.py` on Fashion-MNIST, shards of about a second, one thread a worker: the embedded build's
seconds a shard against one Ray worker's and two workers'. Only embedding is compared, over the last three quarters of
the shards, so that starting processes does not count; their number is even, so that two workers end together. What two
embedded builds side by side lose, which share nothing but the machine, is measured as well. plan:
`gradindex.lifecycle.measure` for `--seconds`, then real builds of `--rows` and `--large-rows` rows and single queries.
simulate: the measured seconds a shard, 10⁹ rows on 1,024 workers that fail at random and come back after two minutes; a
shard that was being embedded is done again.
"""

import argparse
import dataclasses
import heapq
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import record

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).parent))

_BACK_SECONDS = 120.0


def job(rows: int) -> Any:
    """Return the CNN, briefly trained, over augmented Fashion-MNIST."""
    import data as images
    import million
    import torch

    import gradindex

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    pictures = images.load("fashion")
    dataset = million.Augmented(pictures.x_train, pictures.y_train, rows, 0)
    model = million.network()
    million.train(model, torch.optim.Adam(model.parameters(), 1e-3), dataset, np.arange(min(rows, 2000)))
    return gradindex.Job(model, torch.nn.CrossEntropyLoss(), dataset)


def shard_seconds(path: Path) -> float:
    """Return seconds a shard from the times at which manifests were published, the first quarter left out.

    An even number of shards is counted if there is an even number: whole rounds of two workers.
    """
    times = sorted(one.stat().st_mtime_ns * 1e-9 for one in (path / "shards").glob("*.json"))
    first = len(times) // 4 | 1
    return (times[-1] - times[first]) / (len(times) - 1 - first)


def _build_when_all_are_ready(path: Path, rows: int, shard: int, ready: Any) -> None:
    import gradindex

    work = job(rows)
    ready.wait()
    gradindex.build(work, path, shard_rows=shard, batch_size=64)


def side_by_side(folder: Path, rows: int, shard: int) -> float:
    """Return seconds a shard of two processes that build an index each: the most that two workers could reach."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    paths = [folder / name for name in ("left", "right")]
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    builders = [context.Process(target=_build_when_all_are_ready, args=(path, rows, shard, ready)) for path in paths]
    for one in builders:
        one.start()
    for one in builders:
        one.join()
    return statistics.mean(map(shard_seconds, paths)) / 2


def overhead(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return seconds a shard: embedded, one worker, two workers, two processes; medians of interleaved repeats."""
    import ray

    import gradindex

    gradindex.build(job(4096), folder / "first", shard_rows=256, batch_size=64)
    shard = max(64, int(options.each * 256 / shard_seconds(folder / "first") / 64) * 64)
    rows = 2 * -(-options.shards // 2) * shard
    work = job(rows)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=512 << 20, log_to_driver=False)
    found: dict[str, list[float]] = {}
    contenders = {"embedded": None, "one worker": gradindex.Ray(workers=1), "two workers": gradindex.Ray(workers=2)}
    for _ in range(options.repeats):
        for name, engine in contenders.items():
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            gradindex.build(work, out, shard_rows=shard, batch_size=64, engine=engine)
            found.setdefault(name, []).append(shard_seconds(out))
        found.setdefault("two processes without Ray", []).append(side_by_side(folder, rows // 2, shard))
    ray.shutdown()
    middle = {name: statistics.median(times) for name, times in found.items()}
    return {
        "shards": rows // shard,
        "shard_rows": shard,
        "seconds a shard": middle,
        "every": found,
        "overhead": middle["one worker"] / middle["embedded"] - 1,
        "efficiency of two": middle["one worker"] / middle["two workers"] / 2,
        "efficiency of two processes without Ray": middle["embedded"] / middle["two processes without Ray"] / 2,
    }


def measured(rows: int, seconds: float) -> Any:
    """Return the rates of a job of so many rows."""
    from gradindex.lifecycle.measure import measure

    return measure(job(rows), seconds=seconds)


def built(rows: int, out: Path) -> dict[str, Any]:
    """Build an index and ask it; return what was found under the names that a prediction has."""
    import gradindex
    from gradindex.lifecycle.measure import _reset_peak, _status

    work = job(rows)
    _reset_peak()
    index = gradindex.build(work, out)
    peak, summary = _status("VmHWM"), index.summary
    queries = np.random.default_rng(0).choice(rows, 12, replace=False)
    index.explain(ids=queries[:2], k=10)
    began = time.perf_counter()
    for one in queries:
        index.explain(ids=[one], k=10)
    return {
        "index": index.searcher.factory,
        "embedding seconds": summary.embedding_seconds,
        "indexing seconds": summary.indexing_seconds,
        "store bytes": summary.store_bytes,
        "index bytes": summary.index_bytes,
        "worker bytes": peak,
        "explanations/s": len(queries) / (time.perf_counter() - began),
    }


def plan(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what was predicted and what was found, for an exact index and for one with inverted lists.

    Each in a process of its own, as they are in use: what measuring leaves in memory is no part of a build.
    """
    from gradindex.lifecycle.plan import predict

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        rates = fresh.apply(measured, (options.large_rows, options.seconds))
        result: dict[str, Any] = {"rates": dataclasses.asdict(rates)}
        for rows in (options.rows, options.large_rows):
            want, found = predict(rates, rows), fresh.apply(built, (rows, folder / str(rows)))
            planned = {
                "embedding seconds": want.embedding_seconds,
                "indexing seconds": want.training_seconds + want.adding_seconds,
                "store bytes": want.store_bytes,
                "index bytes": want.index_bytes,
                "worker bytes": want.worker_bytes,
                "explanations/s": want.queries_per_second,
            }
            result[f"{rows} rows, {found['index']}"] = {
                name: {"planned": value, "found": found[name], "off": value / found[name] - 1}
                for name, value in planned.items()
            }
    return result


def simulate(
    shards: int, workers: int, seconds: float, failures_per_hour: float, seed: int, spread: float = 0.05
) -> dict[str, float]:
    """Return the makespan of shards handed to the first free of workers that fail at random.

    Parameters
    ----------
    shards, workers
        How many.
    seconds
        Of a shard; each takes a lognormal time around it, with this `spread`.
    failures_per_hour
        Of one worker, exponentially distributed; it is back after two minutes, and its shard goes to the next free.
    seed
        Of all random times.
    """
    rng = np.random.default_rng(seed)
    free = [(0.0, number) for number in range(workers)]
    fails = rng.exponential(3600 / failures_per_hour, workers) if failures_per_hour else np.full(workers, np.inf)
    ends, lost, repeated = [], 0.0, 0
    left = shards
    while left or free[0][0] < max(ends, default=0.0):
        if not left:
            break
        now, number = heapq.heappop(free)
        took = seconds * rng.lognormal(0.0, spread)
        if fails[number] < now + took:
            lost += max(0.0, fails[number] - now)
            repeated += 1
            back = max(now, fails[number]) + _BACK_SECONDS
            fails[number] = back + rng.exponential(3600 / failures_per_hour)
            heapq.heappush(free, (back, number))
            continue
        left -= 1
        ends.append(now + took)
        heapq.heappush(free, (now + took, number))
    makespan = max(ends)
    return {
        "hours": makespan / 3600,
        "ideal hours": shards * seconds / workers / 3600,
        "shards done again": repeated,
        "work lost": lost / (shards * seconds),
    }


def simulation(options: argparse.Namespace) -> dict[str, Any]:
    """Return simulations of 10⁹ rows at several rates of failures."""
    shards = -(-options.all_rows // options.shard_rows)
    return {
        f"{rate:g} failures an hour": simulate(shards, options.workers, options.shard_seconds, rate, options.seed)
        for rate in (0, 0.01, 0.1, 1)
    }


def main() -> None:
    """Run the parts that are asked for, print them and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["overhead", "plan", "simulate"])
    parser.add_argument("--shards", type=int, default=16, help="of the overhead, rounded up to an even number")
    parser.add_argument("--each", type=float, default=1.0, help="seconds of such a shard")
    parser.add_argument("--rows", type=int, default=8000, help="of the plan that has an exact index")
    parser.add_argument("--large-rows", type=int, default=110_000, help="of the plan that has inverted lists")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, for the plan")
    parser.add_argument("--all-rows", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=1024)
    parser.add_argument("--shard-rows", type=int, default=65_536)
    parser.add_argument("--shard-seconds", type=float, help="of such a shard; by default from the overhead's")
    parser.add_argument("--seed", type=int, default=0)
    record.add_out(parser)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "overhead" in options.parts:
            found["overhead"] = overhead(options, Path(folder))
            each = found["overhead"]["seconds a shard"]["one worker"] / found["overhead"]["shard_rows"]
            options.shard_seconds = options.shard_seconds or each * options.shard_rows
        if "plan" in options.parts:
            found["plan"] = plan(options, Path(folder))
    if "simulate" in options.parts:
        options.shard_seconds = options.shard_seconds or 60.0
        found["simulate"] = simulation(options)
    print(json.dumps(found, indent=1))
    if options.out:
        record.write(options.out, found)


if __name__ == "__main__":
    main()
