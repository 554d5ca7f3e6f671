"""Per-sample gradients at the price of a training step: samples a second and memory, side by side.

    python benchmarks/gradients.py                      # every case, table and JSON
    python benchmarks/gradients.py --models cnn mlp --repeats 9

Contenders, each at its own best batch size, in turns, medians: `plain` (one forward and backward pass with the
weights' gradients on: a training step without the optimiser), `engine` (CountSketch of 1,024 and exact norms),
`vmap` (all gradients formed), `loop` (one sample at a time). Two threads. Waiting threads sleep rather than
spin (OMP_WAIT_POLICY), for every contender alike: on cores that are shared, spinning takes them from the work.
"""

import argparse
import ctypes
import gc
import importlib
import importlib.util
import json
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

Step = Callable[[Any, Any], Any]


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
    best: dict[str, tuple[Step, Any, Any]] = {}
    for name, step in case.contenders.items():
        tried = []
        for size in [case.few[name]] if name in case.few else case.sizes:
            x, y = case.data(size)
            step(x, y)
            tried.append((min(seconds(step, x, y) for _ in range(2)), step, x, y))
        best[name] = min(tried, key=lambda found: found[0])[1:]
    times: dict[str, list[float]] = {name: [] for name in best}
    for turn in range(repeats):
        for name, (step, x, y) in best.items():
            if name in case.few and turn >= 3:  # an order slower: three turns say enough
                continue
            times[name].append(seconds(step, x, y))
    return {
        name: {"per_second": 1 / float(np.median(found)), "batch": len(best[name][2])} for name, found in times.items()
    }


def step_memory(case: Case, name: str) -> int:
    """Return by how many bytes this process grows at most during one step on the largest batch."""
    step = case.contenders[name]
    step(*case.data(2))
    x, y = case.data(case.sizes[-1])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the first step left with the allocator would hide this one's needs
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    step(x, y)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def memory_elsewhere(framework: str, model: str, name: str, threads: int) -> int | None:
    """Return `step_memory` measured in a process of its own; None where the system cannot tell."""
    command = [sys.executable, __file__, "--models", model, "--frameworks", framework, "--memory-of", name]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def row(framework: str, model: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured of one model."""
    found = speeds(case, options.repeats)
    result: dict[str, Any] = {"framework": framework, "model": model, "contenders": found}
    for other in ("plain", "vmap", "loop"):
        if other in found:
            result[f"engine/{other}"] = found["engine"]["per_second"] / found[other]["per_second"]
    if options.memory:
        peaks = {name: memory_elsewhere(framework, model, name, options.threads) for name in ("plain", "engine")}
        result["peak_bytes"] = peaks
        result["memory/plain"] = peaks["engine"] / peaks["plain"] if all(peaks.values()) else None
    return result


def line(result: dict[str, Any]) -> str:
    rates = {name: f"{found['per_second']:.0f} ({found['batch']})" for name, found in result["contenders"].items()}
    ratios = [result.get(key) for key in ("engine/plain", "engine/loop", "memory/plain")]
    cells = [rates.get(name, "") for name in ("plain", "engine", "vmap", "loop")]
    cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return f"| {result['framework']} {result['model']} | " + " | ".join(cells) + " |"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", help="names of models; all by default")
    parser.add_argument("--frameworks", nargs="*", help="torch, keras; all by default")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("gradients.json"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = options_from(arguments)
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
    print("| model | plain (batch) | engine | vmap | loop | engine/plain | engine/loop | memory/plain |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for (framework, model), build in chosen.items():
        results.append(row(framework, model, build(), options))
        print(line(results[-1]), flush=True)
        written = {"threads": options.threads, "repeats": options.repeats, "rows": results}
        options.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
