"""What the clever parts gain: a build with each of them, and with plain numba, BLAS or nothing in its place.

    python benchmarks/clever.py [--cases torch/cnn keras/cnn] [--repeats 7] [--out FILE]

Each case is a process of its own with a framework, a model and a number of threads; in it, what a build does for each
sample (embed it, round and normalise its row, write the shard) with everything, and with one part taken out
(`clever_parts.py`), take turns. The factor of a part is the median, over the turns, of the time without it over the
time with it. With one thread times are the processor's, so that what else runs on the machine counts for little; with
two, the clock's. `rows off` is the largest difference of two stored numbers (of rows of unit norm, float16), or 0 where
they are the same.

`load` is how many processes wanted a core during the last minute: where that is more than there are, threads gain less
by the clock than they otherwise do. `busiest` has the same factor of the processor's time of the busiest thread, which
is what the clock would say if each thread had a core of its own and none waited. TensorFlow's own threads, which work
while Python's wait, count as if they shared their work evenly.

`reading` and `memory` are of a store of random rows, where it does not matter which model made them. `reading` opens
it anew and scans it, timed by the processor's time of the thread that scans (what a scan takes where the other thread
has a core of its own); does so by the clock after its files were dropped from the system's cache; and writes it.
`memory` is the most by which a process of its own grows, without the calls that let go of mapped pages over with them.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import record

ROWS = {  # samples of a build
    "torch/cnn": 512, "torch/mlp": 2048, "keras/cnn": 1024, "torch/transformer": 128, "keras/mlp": 2048,
    "keras/resnet": 256, "torch/resnet18": 32,
}  # fmt: skip
DIM = 1024
STORED = 200_000  # rows of the store that is read
INDEX, NEIGHBOURS = "IVF256,SQ8", 10
MAPPED = ("index", "scan", "scan by norms")  # what memory is measured of


def job_of(case: str, rows: int) -> Any:
    """Return a job of the model, with random samples."""
    import numpy as np

    from gradindex import Job

    framework, name = case.split("/")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows)
    if framework == "keras":
        import gradients_keras
        import keras

        keras.utils.set_random_seed(0)
        model = getattr(gradients_keras, name)()
        x = rng.standard_normal((rows, *model.input_shape[1:]), np.float32)
        return Job(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), (x, y))
    import gradients_torch
    import torch

    torch.manual_seed(0)
    if name == "transformer":
        words = rng.integers(0, gradients_torch.WORDS, (rows, 64))
        return Job(gradients_torch.Encoder(128, 2, 64, 4).eval(), torch.nn.CrossEntropyLoss(), (words, y))
    shape = {"cnn": (1, 28, 28), "mlp": (784,), "resnet18": (3, 32, 32)}[name]
    x = rng.standard_normal((rows, *shape), np.float32)
    return Job(getattr(gradients_torch, name)().eval(), torch.nn.CrossEntropyLoss(), (x, y))


def builds(case: str, threads: int, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Return what was measured of builds with everything and with each part taken out, in turns."""
    import numpy as np
    from clever_parts import DIMS, PARTS
    from store import header

    from gradindex.compute.blocks import embed_rows, embedding_batch_size
    from gradindex.lifecycle.embed_shards import make_rows
    from gradindex.runtime import threads as runtime_threads
    from gradindex.sketch import CountSketch
    from gradindex.store import Store

    framework = case.split("/")[0]
    runtime_threads.fix("torch" if framework == "torch" else "tensorflow", threads)
    parts = {name: one for name, one in PARTS.items() if threads in one.threads and framework in one.backends}
    dims = {name: DIMS.get(name, DIM) for name in parts}
    runs = [*((None, dim) for dim in sorted(set(dims.values()))), *dims.items()]
    jobs = {run: job_of(case, rows) for run in runs}
    size = min(rows, embedding_batch_size(jobs[runs[0]]))
    times: dict[Any, list[tuple[float, float]]] = {run: [] for run in runs}
    stored: dict[Any, Any] = {}
    for turn in range(-1, repeats):  # the first, in which things are compiled, does not count
        for name, dim in runs:
            with contextlib.ExitStack() as stack:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                if name:
                    stack.enter_context(parts[name].out(framework))
                job, store = jobs[name, dim], Store.create(Path(folder) / "store", header(rows, dim))
                projector = CountSketch(dim).bind(job.engine.parameters, 0)
                began, clock, here = time.process_time(), time.perf_counter(), thread_times()
                made = make_rows(embed_rows(job, projector, size, 0, rows), rows, dim, {})
                store.write(0, made)
                taken, clock = time.process_time() - began, time.perf_counter() - clock
                others = taken if framework == "keras" else 0.0
                if turn >= 0:
                    times[name, dim].append((taken if threads == 1 else clock, busiest(here, others, threads)))
                stored[name, dim] = made.sketches.astype(np.float32)
    found = []
    for name, dim in dims.items():
        (with_it, busy), (without, other) = (zip(*times[key, dim], strict=True) for key in (None, name))
        one = {"part": name, "case": case, "threads": threads, **spread(with_it, without)}
        one |= {"per_second": rows / median(with_it), "per_second_without": rows / median(without)}
        if threads > 1:
            one["busiest"] = spread(busy, other)
        found.append({**one, "rows_off": float(np.abs(stored[name, dim] - stored[None, dim]).max())})
    return found


def thread_times() -> dict[int, float]:
    """Return the processor's time of every thread that Python knows."""
    idents = [one.ident for one in threading.enumerate() if one.ident]
    return {ident: time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in idents}


def busiest(before: dict[int, float], others: float, threads: int) -> float:
    """Return the longest processor time of a thread since, and a thread's share of what `others` took beside those."""
    taken = [now - before.get(ident, 0) for ident, now in thread_times().items()]
    return max(taken) + max(0.0, others - sum(taken)) / threads


def spread(with_it: Sequence[float], without: Sequence[float]) -> dict[str, float]:
    """Return the median of the ratios of a part's turns, and their quartiles."""
    ratios = [b / a for a, b in zip(with_it, without, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return {"factor": median(ratios), "low": low, "high": high}


def random_store(folder: Path) -> Any:
    """Return a store of random rows of unit norm, as they come from a build."""
    import numpy as np
    from store import header

    from gradindex.sketch.unit_rows import normalise
    from gradindex.store import Store
    from gradindex.store.shard import Rows

    rng = np.random.default_rng(0)
    made = Store.create(folder, header(STORED, DIM))
    for number in range(made.header.shards):
        ids = np.arange(*made.header.span(number))
        rows = normalise(rng.standard_normal((len(ids), DIM), np.float32)).astype(np.float16)
        made.write(number, Rows(rows, np.exp(rng.standard_normal(len(ids))).astype(np.float32), ids, {}))
    return Store.open(folder)


def reading(repeats: int) -> list[dict[str, Any]]:
    """Return what was measured of a store's scans, dropped from the system's cache or not, and of writing it."""
    import numpy as np
    from clever_parts import READING
    from store import drop, scan_store, seconds, write_store

    from gradindex.store import Store

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder, other = Path(name) / "store", Path(name) / "written"
        rows = random_store(folder).kept(np.arange(STORED))

        def scan(cold: bool) -> float:
            store = Store.open(folder)  # what was not read before is compared with its checksums
            if cold:
                drop(folder)
            began = (time.perf_counter if cold else time.thread_time)()
            scan_store(store)
            return (time.perf_counter if cold else time.thread_time)() - began

        def write() -> float:
            shutil.rmtree(other, ignore_errors=True)
            return seconds(lambda: write_store(other, rows))

        work = {"first scan": lambda: scan(False), "cold scan": lambda: scan(True), "write": write}
        times: dict[tuple[str | None, str], list[float]] = {}
        for _ in range(repeats):
            for way in work:
                for part in (None, *READING):
                    with READING[part].out("") if part else contextlib.nullcontext():
                        times.setdefault((part, way), []).append(work[way]())
        for part in READING:
            for way in work:
                with_it, without = times[None, way], times[part, way]
                one = spread(with_it, without)
                one |= {"per_second": STORED / median(with_it), "per_second_without": STORED / median(without)}
                found.append({"part": part, "case": way, "threads": 2, **one})
    return found


def grown(way: str, without: bool, folder: Path) -> int:
    """Return by how many bytes this process grows at most while it reads a store's rows."""
    import numpy as np
    from clever_parts import RELEASE
    from gradients import status

    from gradindex.ann import build
    from gradindex.kernels import Kernel
    from gradindex.search import norm_scan
    from gradindex.store import Store

    store = Store.open(folder)
    queries, norms = store.gather(np.arange(2)), np.ones(2)
    work = {
        "index": lambda: build.build(store, INDEX, 0, lambda rows: None),
        "scan": lambda: [rows.sum() for _, rows in store.blocks()],
        "scan by norms": lambda: norm_scan.scan(store, queries, norms, Kernel.COS, NEIGHBOURS),
    }
    with RELEASE.out("") if without else contextlib.nullcontext():
        before = status("VmRSS")
        work[way]()
        return int(status("VmHWM") - before)


def memory(repeats: int) -> list[dict[str, Any]]:
    """Return how much more memory is taken by what reads a store and does not let go of its pages."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        random_store(folder)
        for way in MAPPED:
            peaks: dict[str, list[int]] = {"": [], "--without": []}
            for _ in range(repeats):
                for flag, taken in peaks.items():
                    given = ["--mapped", way, "--folder", str(folder), *([flag] if flag else [])]
                    taken.append(int(worker(given)))
            one = spread(peaks[""], peaks["--without"])
            one |= {"bytes": median(peaks[""]), "bytes_without": median(peaks["--without"])}
            found.append({"part": "pages let go of", "case": way, "threads": 1, **one})
    return found


def worker(arguments: list[str], threads: int = 1) -> str:
    """Return the last line that a process of its own prints."""
    given = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, **given, "OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout.splitlines()[-1]


def line(one: dict[str, Any]) -> str:
    """Return a row of the printed table."""
    off = f"{one['rows_off']:.1e}" if "rows_off" in one else ""
    busy = f"{one['busiest']['factor']:.2f}" if "busiest" in one else ""
    quartiles = f"{one['low']:.2f} to {one['high']:.2f}"
    return f"| {one['part']} | {one['case']} | {one['threads']} | {one['factor']:.2f} | {quartiles} | {busy} | {off} |"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--cases", nargs="*", default=[*ROWS, "memory", "reading"], help="framework/model, reading, memory"
    )
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, help="samples of a build")
    record.add_out(parser)
    for name in ("--case", "--mapped", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = options_from(arguments)
    if options.mapped:
        print(grown(options.mapped, options.without, Path(options.folder)))
        return
    if options.case:
        rows = options.rows or ROWS[options.case]
        print(json.dumps(builds(options.case, options.threads[0], rows, options.repeats)))
        return
    print("| part | case | threads | factor | quartiles | busiest | rows off |\n" + "|---" * 7 + "|")
    found: list[dict[str, Any]] = []
    for case in options.cases:
        if case == "reading":
            rounds = [reading(options.repeats)]
        elif case == "memory":
            rounds = [memory(max(2, options.repeats // 2))]
        else:
            given = ["--case", case, "--repeats", str(options.repeats)]
            given += ["--rows", str(options.rows)] if options.rows else []
            rounds = (json.loads(worker([*given, "--threads", str(n)], n)) for n in options.threads)
        for some in rounds:
            found += [{**one, "load": os.getloadavg()[0]} for one in some]
            print("\n".join(map(line, some)), flush=True)
            if options.out:
                about = {"repeats": options.repeats, "rows": ROWS, "stored": STORED}
                record.write(options.out, {**about, "factors": found, "best": best(found)})


def best(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return each part's largest factor, of time or memory, over the cases."""
    names = dict.fromkeys(one["part"] for one in found)
    return {name: max(one.get("busiest", one)["factor"] for one in found if one["part"] == name) for name in names}


if __name__ == "__main__":
    main()
