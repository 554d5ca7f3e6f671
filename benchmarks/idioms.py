"""Models as they come from their libraries: rows a second beside a training step and the one-sample loop.

    python benchmarks/idioms.py                      # every model, table and JSON
    python benchmarks/idioms.py --models gemma3 lstm --repeats 9

Contenders, in turns in one process: `plain` (one forward and backward pass of a batch with the gradients of the
trainable weights: a training step without the optimiser), `loop` (the same, one sample at a time) and `engine`
(CountSketch of 1,024 and exact norms); each has the batch size at which its median is best. And, of an index of the
model, the time of eight queries asked together over that of the same asked one by one. Threads and the C library's
memory are as in `gradients.py`.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gradients import KEPT, Case, speeds

FLOOR = 0.7  # of engine/plain
HEAD = (
    "| model | parameters | paths | plain (batch) | loop | engine (batch) | engine/plain | engine/loop "
    "| 8 queries, together/apart |\n" + "|---" * 9 + "|"
)


def rows_of(case: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured of one model."""
    import torch

    from gradindex.gradients.torch import TorchEngine
    from gradindex.sketch import CountSketch

    torch.set_num_threads(options.threads)
    model, loss = case.model.eval(), case.loss
    engine = TorchEngine(model, loss)
    projector = CountSketch(1024).bind(engine.parameters, 0)

    def plain(x: Any, y: Any) -> None:
        model.zero_grad()
        loss(case.call(x), y).sum().backward()

    def loop(x: Any, y: Any) -> None:
        for i in range(len(y)):
            plain(_rows(x, slice(i, i + 1)), y[i : i + 1])

    contenders = {"plain": plain, "engine": lambda x, y: engine.embed(x, y, projector), "loop": loop}
    sizes = (2,) if options.quick else (8, 32)
    found = speeds(Case(case.data, sizes, contenders, {"loop": sizes[0]}), options.repeats)
    model.zero_grad()
    result = {"model": case.name, "parameters": engine.size, "paths": sorted(set(engine.paths.values()))}
    result |= {"contenders": found, "floor": FLOOR}
    for other in ("plain", "loop"):
        result[f"engine/{other}"] = found["engine"]["per_second"] / found[other]["per_second"]
    return result | {"together/apart": together(case, options)}


def together(case: Any, options: argparse.Namespace) -> float:
    """Return the time of eight queries together over that of eight one by one; medians of turns."""
    import gradindex

    x, y = case.data(16 if options.quick else 160)
    with tempfile.TemporaryDirectory() as folder:
        job = gradindex.Job(case.model, case.loss, (x, y))
        index = gradindex.build(job, f"{folder}/index", progress=False)
        ways: list[Callable[[], Any]] = [
            lambda: index.explain(ids=range(8), k=5),
            lambda: [index.explain(ids=[query], k=5) for query in range(8)],
        ]
        times: list[list[float]] = [[], []]
        for turn in range(-1, min(3, options.repeats)):
            for taken, way in zip(times, ways, strict=True):
                begin = time.perf_counter()
                way()
                if turn >= 0:
                    taken.append(time.perf_counter() - begin)
    return float(np.median(times[0]) / np.median(times[1]))


def _rows(tree: Any, rows: slice) -> Any:
    return {key: value[rows] for key, value in tree.items()} if isinstance(tree, dict) else tree[rows]


def line(result: dict[str, Any]) -> str:
    """Return a row of the table in Markdown; a ratio below its floor is bold."""
    rates = {name: f"{one['per_second']:.0f} ({one['batch']})" for name, one in result["contenders"].items()}
    ratio = f"{result['engine/plain']:.2f}"
    cells = [result["model"], f"{result['parameters']:,}", ", ".join(result["paths"])]
    cells += [
        rates["plain"],
        rates["loop"],
        rates["engine"],
        ratio if result["engine/plain"] >= FLOOR else f"**{ratio}**",
    ]
    return "| " + " | ".join([*cells, f"{result['engine/loop']:.2f}", f"{result['together/apart']:.2f}"]) + " |"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", help="names of models; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small models, once: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "idioms.json")
    options = parser.parse_args(arguments)
    options.repeats = 1 if options.quick else options.repeats
    return options


def main(arguments: list[str] | None = None) -> None:
    options = options_from(arguments)
    if not KEPT.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("gradindex").setLevel(logging.ERROR)  # an LSTM has no forward mode, which every query would say
    from idioms_models import CASES

    print(HEAD)
    results: list[dict[str, Any]] = []
    for name in options.models or CASES:
        results.append(rows_of(CASES[name](options.quick), options))
        print(line(results[-1]), flush=True)
        about = {name: getattr(options, name) for name in ("threads", "repeats", "quick")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**about, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
