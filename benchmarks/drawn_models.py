"""Models drawn at random, judged beside plain training steps: how many scores marked exact are wrong.

    python benchmarks/drawn_models.py --models 10000 --out benchmarks/results/drawn_models.json

What is drawn and judged is in tests/drawn_models.py and tests/drawn_judge.py: 100 to 200 samples a model, its rows, its
scores by three kernels, certified answers, and its state. A verdict is written to `--progress` as soon as it is there,
so that a run that was stopped goes on where it stopped. Several processes may share the work (--part 1/2).
"""

import argparse
import dataclasses
import json
import logging
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradindex
from tests.drawn_judge import judge
from tests.drawn_models import draw


def done(progress: Path) -> dict[int, dict[str, Any]]:
    """Return the verdicts that are there, by seed; a line that was cut short is left out."""
    found: dict[int, dict[str, Any]] = {}
    for line in progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []:
        try:
            verdict = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[verdict["seed"]] = verdict
    return found


def run(seeds: list[int], progress: Path, samples: int | None, end: float) -> None:
    """Judge the models of some seeds until `end`, and write down each verdict."""
    with progress.open("a", encoding="utf-8") as out:
        for seed in seeds:
            if time.time() > end:
                break
            folder = Path(tempfile.mkdtemp())
            began = time.process_time()
            try:
                found = judge(draw(seed, samples), folder)
                verdict = dataclasses.asdict(found) | {"right": found.right, "unnamed": found.unnamed}
            except Exception as error:  # the generator's own mistake: counted, and no verdict on gradindex
                verdict = {"seed": seed, "not_drawn": f"{type(error).__name__}: {error}"[:300], "right": True}
            shutil.rmtree(folder)
            out.write(json.dumps(verdict | {"seconds": round(time.process_time() - began, 2)}) + "\n")
            out.flush()


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts, refusals by kind, the worst errors and the seeds of failures."""
    judged = [one for one in found if "not_drawn" not in one]
    served = [one for one in judged if not one["refused"]]
    half = [one for one in served if one["kinds"]["dtype"] == "bfloat16"]
    single = [one for one in served if one["kinds"]["dtype"] != "bfloat16"]
    return {
        "models": len(judged),
        "not_drawn": len(found) - len(judged),
        "served": len(served),
        "refused": dict(
            Counter(" ".join(one["refused"].split()[:9]) for one in judged if one["refused"]).most_common()
        ),
        "scores_marked_exact": sum(one["counted"] for one in served),
        "models_with_wrong_scores": sum(one["scores"] > one["tolerance"] for one in served),
        "proofs": sum(one["proofs"] for one in served),
        "wrong_proofs": sum(one["unproved"] for one in served),
        "worst_score": max((one["scores"] for one in single), default=0.0),
        "worst_score_half_precision": max((one["scores"] for one in half), default=0.0),
        "models_with_wrong_rows": sum(one["wrong_rows"] > 0 for one in served),
        "state_changed": sum(bool(one["changed"]) for one in judged),
        "crashed": sum(bool(one["crashed"]) for one in judged),
        "failed_seeds": [one["seed"] for one in judged if not one["right"]],
        "wrong_row_seeds": [one["seed"] for one in served if one["wrong_rows"]],
        "paths": dict(Counter(path for one in served for path in one["paths"])),
        "methods": dict(Counter(method for one in served for method in one["methods"])),
        "signals": dict(Counter(signal for one in served for signal in set(one["signals"]))),
        "drawn": {
            name: dict(Counter(str(one["kinds"].get(name, "")) for one in judged).most_common())
            for name in ("trunk", "middle", "hook", "loss", "penalty", "output", "dtype", "inputs", "selected", "tied")
        },
        "cpu_seconds": round(sum(one["seconds"] for one in found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--samples", type=int, help="of each model; by default 100 to 200")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--part", default="1/1", help="2/3: the second of three processes that share the work")
    parser.add_argument("--progress", type=Path, default=Path("drawn_models.jsonl"))
    parser.add_argument("--out", type=Path, help="write the summary of all verdicts that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("gradindex").setLevel(logging.CRITICAL)
    number, parts = map(int, options.part.split("/"))
    seeds = range(options.first, options.first + options.models)
    before = done(options.progress)
    mine = [seed for seed in seeds if seed % parts == number - 1 and seed not in before]
    run(mine, options.progress, options.samples, time.time() + 60 * options.minutes)
    found = [verdict for seed, verdict in sorted(done(options.progress).items()) if seed in seeds]
    versions = {"gradindex": gradindex.__version__, "torch": torch.__version__, "python": platform.python_version()}
    report = {"versions": versions, **summary(found)}
    print(json.dumps({name: value for name, value in report.items() if name != "drawn"}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
