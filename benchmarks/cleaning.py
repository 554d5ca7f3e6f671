"""Test accuracy after the samples are removed that a review proposes, beside removing others and removing none.

    python benchmarks/cleaning.py [--sets digits vehicle ...] [--kinds symmetric ...] [--seeds 5] [--out FILE]

A third of each data set is held out with its true labels. Of the rest a tenth of the labels is changed, as in
`review.py`; a network is trained on it, indexed and reviewed, and networks are trained again without as many samples as
were changed: those with the highest score of the review, those with the highest loss, drawn ones, and the changed ones
themselves. That of `nothing` is trained on all. Each is trained from three seeds, the same for all, and their
accuracies are averaged. Differences are paired over the seeds of labels and splits; intervals are Student's of 95 %.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np
import record
import review_data
import torch
from review import KINDS, evidence_of, half_width

from gradindex.review import combine

SETS = ("digits", "vehicle", "segment", "mnist", "fashion", "texts")
FIRST = 300  # seeds that no other benchmark of reviews has
FITS = 3


def measure(name: str, kind: str, seed: int) -> dict[str, float]:
    """Return the accuracy on held-out samples after each removal."""
    one, random = review_data.load(name), np.random.default_rng(seed)
    held, kept = np.split(random.permutation(len(one.y)), [len(one.y) // 3])
    train = dataclasses.replace(one, x=one.x[kept], y=one.y[kept])
    labels, wrong = review_data.plant(train, kind, review_data.SHARE, seed)
    evidence = evidence_of(train, labels, seed)
    count, drawn = int(wrong.sum()), random.random(len(labels))
    ranked = {
        "review": combine.score(evidence.signs),
        "loss": evidence.signs["loss"],
        "drawn": drawn,
        "changed": wrong.astype(float),
    }
    left = {"nothing": np.arange(len(labels))}
    left |= {how: np.sort(np.argsort(-values, kind="stable")[count:]) for how, values in ranked.items()}
    x, y, found = torch.from_numpy(one.x[held]), one.y[held], {}
    for how, rows in left.items():
        right = []
        for fit in range(FITS):
            model = review_data.fit(train.x[rows], labels[rows], train, seed * FITS + fit)
            with torch.no_grad():
                right.append(float((model(x).argmax(1).numpy() == y).mean()))
        found[how] = float(np.mean(right))
    return found


def main() -> None:
    """Measure, and print means and differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, default=5)
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for name in options.sets:
        for kind in options.kinds:
            runs = [measure(name, kind, FIRST + seed) for seed in range(options.seeds)]
            line: dict[str, Any] = {"data": name, "kind": kind, "seeds": len(runs)}
            line |= {how: float(np.mean([run[how] for run in runs])) for how in runs[0]}
            for other in ("nothing", "drawn"):
                ahead = np.array([run["review"] - run[other] for run in runs])
                line[f"over {other}"], line[f"over {other} ±"] = float(ahead.mean()), half_width(ahead)
            results.append(line)
            print(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}, flush=True
            )
    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    main()
