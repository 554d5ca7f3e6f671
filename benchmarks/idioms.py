"""Models as they come from their libraries: rows a second beside a training step and the one-sample loop.

    python benchmarks/idioms.py                      # every model, table and JSON
    python benchmarks/idioms.py --models gemma3 lstm --repeats 9

Contenders, in turns in one process: `plain` (one forward and backward pass of a batch with the gradients of the
trainable weights: a training step without the optimiser), `loop` (the same, one sample at a time) and `engine`
(CountSketch of 1,024 and exact norms); each has the batch size at which its median is best. And, of an index of the
model, the time of eight queries asked together over that of the same asked one by one. One thread, and the processor's
time rather than the clock's, so that what else runs on the machine counts for little; the C library keeps its memory,
as in `gradients.py`.
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
from gradients import KEPT, best

FLOOR = 0.7  # of engine/plain
HEAD = (
    "| model | parameters | paths | plain (batch) | loop | engine (batch) | engine/plain | engine/loop "
    "| 8 queries, together/apart |\n" + "|---" * 9 + "|"
)


def rows_of(case: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured of one model."""
    import torch

    from gradindex.gradients.torch.engine import TorchEngine
    from gradindex.sketch import CountSketch

    torch.set_num_threads(1)
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
    sizes = (2,) if options.quick else (8, 32, 128)
    runs = [(name, *case.data(size)) for name in contenders for size in (sizes[:1] if name == "loop" else sizes)]
    times = in_turns([lambda name=name, x=x, y=y: contenders[name](x, y) for name, x, y in runs], options.repeats)
    rates = {(name, len(y)): len(y) / taken for (name, _, y), taken in zip(runs, times, strict=True)}
    found = {name: best(rates, name) for name in contenders}
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
        at_once, in_turn = in_turns(ways, min(3, options.repeats))
    return at_once / in_turn


def in_turns(works: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the median seconds of processor time of each work, done in turns; the first turn does not count."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(-1, repeats):
        for taken, work in zip(times, works, strict=True):
            begin = time.process_time()
            work()
            if turn >= 0:
                taken.append(time.process_time() - begin)
    return [float(np.median(taken)) for taken in times]


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
        os.environ[name] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("gradindex").setLevel(logging.ERROR)  # an LSTM has no forward mode, which every query would say
    from idioms_models import CASES

    print(HEAD)
    results: list[dict[str, Any]] = []
    for name in options.models or CASES:
        results.append(rows_of(CASES[name](options.quick), options))
        print(line(results[-1]), flush=True)
        about = {name: getattr(options, name) for name in ("repeats", "quick")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**about, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
