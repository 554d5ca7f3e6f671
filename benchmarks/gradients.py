"""Per-sample gradients at the price of a training step: samples a second and memory, side by side.

    python benchmarks/gradients.py                      # every case; --out FILE writes JSON
    python benchmarks/gradients.py --models cnn mlp --repeats 9

Contenders: `plain` (one forward and backward pass with the weights' gradients on: a training step without the
optimiser), `plain last` (the same of a convolutional torch model in the channels-last memory format), `engine`
(CountSketch of 1,024 and exact norms), `vmap` (all gradients formed), `loop` (one sample at a time). Every contender
runs at every batch size, in turns; each gets the size at which its median is best.

For every contender alike: two threads; waiting threads sleep rather than spin (OMP_WAIT_POLICY), which on shared cores
takes them from the work; and the C library keeps the memory that is freed (MALLOC_TRIM_THRESHOLD_), since fresh pages
at every step otherwise cost as much as the step, and differ from run to run. `--allocator default` leaves it as it is.
"""

import argparse
import ctypes
import gc
import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record

Step = Callable[[Any, Any], Any]
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_ARENA_MAX": "1"}
FLOORS = {  # of engine/plain
    "cnn": 0.8, "resnet18": 0.8, "resnet": 0.8, "transformer": 0.7, "transformer768": 0.7, "mlp": 0.9, "bilstm": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model's contenders: steps on a batch (x, y). `sizes` of batches to try; `few`: the only one to try."""

    data: Callable[[int], tuple[Any, Any]]
    sizes: tuple[int, ...]
    contenders: dict[str, Step]
    few: dict[str, int]


def cases() -> dict[tuple[str, str], Callable[[], Case]]:
    """Return every case of the frameworks that are there, by (framework, model)."""
    found: dict[tuple[str, str], Callable[[], Case]] = {}
    if importlib.util.find_spec("torch"):
        found |= importlib.import_module("gradients_torch").CASES
    if importlib.util.find_spec("keras"):
        keras = importlib.import_module("gradients_keras")
        for name, build in keras.CASES.items():
            found["keras", name.removeprefix("keras ")] = partial(keras_case, keras, build)
    return found


def keras_case(module: Any, build: Callable[[], Any]) -> Case:
    """Return the case of one of `gradients_keras`'s models."""
    model, rng = build(), np.random.default_rng(0)
    shape = model.input_shape[1:]
    return Case(
        data=lambda n: (rng.standard_normal((n, *shape)).astype(np.float32), rng.integers(0, 10, n)),
        sizes=module.SIZES["engine"],
        contenders=module.contenders(model),
        few={name: module.SIZES[name][-1] for name in ("vmap", "loop")},
    )


def seconds(step: Step, x: Any, y: Any) -> float:
    begin = time.perf_counter()
    step(x, y)
    return (time.perf_counter() - begin) / len(y)


def speeds(case: Case, repeats: int) -> dict[str, dict[str, float]]:
    """Return samples a second and the batch size of each contender."""
    runs = [
        (name, *case.data(size))
        for name in case.contenders
        for size in ([case.few[name]] if name in case.few else case.sizes)
    ]
    times: dict[tuple[str, int], list[float]] = {(name, len(y)): [] for name, _, y in runs}
    for turn in range(-1, repeats):  # the first, in which things are compiled, does not count
        for name, x, y in runs:
            if name in case.few and turn >= 3:  # an order slower: three turns say enough
                continue
            taken = seconds(case.contenders[name], x, y)
            if turn >= 0:
                times[name, len(y)].append(taken)
    rates = {run: 1 / float(np.median(found)) for run, found in times.items()}
    return {name: best(rates, name) for name in case.contenders}


def best(rates: dict[tuple[str, int], float], name: str) -> dict[str, Any]:
    """Return the highest of a contender's rates, its batch size, and all of them."""
    own = {size: rate for (other, size), rate in rates.items() if other == name}
    size = max(own, key=own.__getitem__)
    return {"per_second": own[size], "batch": size, "by_batch": own}


def step_memory(case: Case, name: str) -> int:
    """Return by how many bytes this process grows at most during two steps on the largest batch."""
    step = case.contenders[name]
    step(*case.data(2))
    x, y = case.data(case.sizes[-1])
    before = forget_peak()
    step(x, y)
    step(x, y)  # what the first step kept counts
    return status("VmHWM") - before


def forget_peak() -> int:
    """Let the peak of this process's memory begin anew, and return what it has now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was left with the allocator would hide what is needed next
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """Return one of the sizes in bytes that the system keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def memory_elsewhere(framework: str, model: str, name: str, threads: int) -> int | None:
    """Return the median `step_memory` of three processes of their own; None where the system cannot tell."""
    command = [sys.executable, __file__, "--models", model, "--frameworks", framework, "--memory-of", name]
    command += ["--threads", str(threads), "--allocator", "keeps" if KEPT.items() <= os.environ.items() else "default"]
    done = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(3)]
    return sorted(int(one.stdout.split()[-1]) for one in done)[1] if all(one.returncode == 0 for one in done) else None


def faster_plain(found: dict[str, Any], speed: Callable[[Any], float]) -> dict[str, Any]:
    """Return the contenders with the faster of the plain steps, compiled by XLA or not, as `plain`."""
    compiled = found.get("plain XLA")
    return {**found, "plain": compiled} if compiled and speed(compiled) > speed(found["plain"]) else found


def row(framework: str, model: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured of one model."""
    found = faster_plain(speeds(case, options.repeats), lambda one: one["per_second"])
    result: dict[str, Any] = {"framework": framework, "model": model, "contenders": found}
    for other in ("plain", "plain last", "vmap", "loop"):
        if other in found:
            result[f"engine/{other}"] = found["engine"]["per_second"] / found[other]["per_second"]
    if options.memory:
        peaks = {name: memory_elsewhere(framework, model, name, options.threads) for name in ("plain", "engine")}
        result["peak_bytes"] = peaks
        result["memory/plain"] = peaks["engine"] / peaks["plain"] if all(peaks.values()) else None
    return result


COLUMNS = ("plain", "plain last", "engine", "vmap", "loop")
RATIOS = ("engine/plain", "engine/plain last", "engine/loop", "memory/plain")
HEAD = (
    "| model | plain (batch) | plain, channels last | engine | vmap | loop "
    "| engine/plain | floor | engine/plain, channels last | engine/loop | memory/plain |\n" + "|---" * 11 + "|"
)


def line(result: dict[str, Any]) -> str:
    """Return a row of the table in Markdown; a ratio below its floor is bold."""
    rates = {name: f"{found['per_second']:.0f} ({found['batch']})" for name, found in result["contenders"].items()}
    ratios = {key: "" if result.get(key) is None else f"{result[key]:.2f}" for key in RATIOS}
    floor = FLOORS.get(result["model"])
    if floor is not None and result["engine/plain"] < floor:
        ratios["engine/plain"] = f"**{ratios['engine/plain']}**"
    cells = [rates.get(name, "") for name in COLUMNS]
    cells += [ratios["engine/plain"], "" if floor is None else str(floor), *list(ratios.values())[1:]]
    return f"| {result['framework']} {result['model']} | " + " | ".join(cells) + " |"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", help="names of models; all by default")
    parser.add_argument("--frameworks", nargs="*", help="torch, keras; all by default")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--allocator", choices=["keeps", "default"], default="keeps")
    record.add_out(parser)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = options_from(arguments)
    if options.allocator == "keeps" and not KEPT.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.modules["gradients"] = sys.modules[__name__]  # the cases import `Case` from here
    chosen = {
        key: build
        for key, build in cases().items()
        if (not options.models or key[1] in options.models) and (not options.frameworks or key[0] in options.frameworks)
    }
    if options.memory_of:
        print(step_memory(next(iter(chosen.values()))(), options.memory_of))
        return
    print(HEAD)
    results: list[dict[str, Any]] = []
    for (framework, model), build in chosen.items():
        results.append(row(framework, model, build(), options))
        print(line(results[-1]), flush=True)
        if options.out:
            about = {name: getattr(options, name) for name in ("threads", "repeats", "allocator")}
            record.write(options.out, {**about, "rows": results})


if __name__ == "__main__":
    main()
