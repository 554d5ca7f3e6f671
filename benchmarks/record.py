"""What a result file says beside its figures: versions, machine, threads, date and command."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("gradindex", "torch", "tensorflow-cpu", "numpy", "faiss-cpu", "numba", "scikit-learn", "cleanlab")


def about() -> dict[str, Any]:
    """Return the circumstances of this run. Machines are described by their cores, never by a name."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    given = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ}
    script = Path(sys.argv[0]).resolve()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", f"{script.parent.name}/{script.name}", *map(_without_folder, sys.argv[1:])]),
        "environment": given,
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine()},
        "versions": versions,
    }


def _without_folder(word: str) -> str:
    """Return an argument as it would be typed in the repository: other folders are no part of a result."""
    if not word.startswith("/"):
        return word
    root = Path(__file__).resolve().parents[1]
    return str(Path(word).relative_to(root)) if Path(word).is_relative_to(root) else Path(word).name


def write(path: Path, results: Any) -> None:
    """Write figures and `about` as JSON; numbers that JSON lacks (NaN, infinity) are refused."""
    text = json.dumps({"about": about(), "results": results}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add `--out FILE`, which older commands call `--json`."""
    parser.add_argument("--out", "--json", type=Path, metavar="FILE", help="write figures, versions and date as JSON")
