"""Seconds until the command line's first answer, beside the import of the framework alone.

    python benchmarks/command_line.py [--backends torch tensorflow] [--repeats 7] [--out FILE]

The demo's model and index of scikit-learn's digits are made once. Then, in turns, each a process of its own: the
framework is imported (`import`), and one digit is explained (`explain`), which opens the index, checks that model and
data are those of the build, and evaluates the candidates of both sides exactly. Medians; `cpu` is the processor's time
of the process, which counts what else the machine does for little.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record

IMPORTS = {"torch": "import torch", "tensorflow": "import tensorflow"}


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds, and the processor's seconds, that a command takes."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    took, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return took, cpu


def measure(backend: str, repeats: int) -> dict[str, Any]:
    """Return the medians of both commands."""
    with tempfile.TemporaryDirectory() as folder:
        demo = f"{folder}/demo"
        environment = os.environ | {"GRADINDEX_DEMO": demo, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        gradindex = [sys.executable, "-m", "gradindex"]
        measured([*gradindex, "demo", "--backend", backend, "--out", demo], environment)
        job = f"gradindex.demo:{backend}_job"
        commands = {
            "import": [sys.executable, "-c", IMPORTS[backend]],
            "explain": [*gradindex, "explain", f"{demo}/index", job, "--ids", "3", "-k", "5"],
        }
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                runs[name].append(measured(command, environment))
    found: dict[str, Any] = {"backend": backend}
    for name, times in runs.items():
        wall, cpu = np.median(np.array(times), axis=0).tolist()
        found[name] = {"seconds": wall, "cpu": cpu}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=list(IMPORTS), choices=IMPORTS)
    parser.add_argument("--repeats", type=int, default=7)
    record.add_out(parser)
    options = parser.parse_args()
    results = []
    for backend in options.backends:
        results.append(measure(backend, options.repeats))
        print(results[-1], flush=True)
    if options.out:
        record.write(Path(options.out), results)


if __name__ == "__main__":
    main()
