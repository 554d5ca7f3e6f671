"""Find labels that were planted wrong: what `gradindex review` ranks beside its parts and cleanlab.

    python benchmarks/review.py --part tune --out benchmarks/results/review_weights.json
    python benchmarks/review.py --part judge --out benchmarks/results/review.json

`tune` fits the weights of `gradindex.review.combine` to segment, Fashion-MNIST and short texts; `judge` measures the
score on digits, Vehicle and MNIST, with other seeds. cleanlab takes probabilities of the same network, trained anew
for each of five folds. It is no dependency: install it with `pip install --no-deps cleanlab termcolor tqdm pandas`.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import review_data
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import average_precision_score
from torch import nn

import gradindex
from gradindex.review import combine, planting
from gradindex.review.evidence import Evidence

KINDS = ("symmetric", "class", "instance")
TUNED, JUDGED = ("segment", "fashion", "texts"), ("digits", "vehicle", "mnist")
SHARES = (0.03, 0.1, 0.2)
FIRST_TUNED, FIRST_JUDGED = 100, 200  # seeds of tuning and judging have nothing in common
WEIGHTED = {"hidden and inputs": (), "hidden": ("inputs",), "inputs": ("hidden",)}


def evidence_of(one: review_data.Set, labels: np.ndarray, seed: int) -> Evidence:
    """Train a network on these labels and return what a review sees."""
    model = review_data.fit(one.x, labels, one, seed)
    with tempfile.TemporaryDirectory() as folder:
        job = gradindex.Job(model, nn.CrossEntropyLoss(), (one.x, labels))
        found = Evidence(gradindex.build(job, f"{folder}/index", progress=False))
        _ = found.signs  # while the index is there
        return found


def without(signs: dict[str, np.ndarray], spaces: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: values for name, values in signs.items() if not name.startswith(spaces or ("-",))}


def fit_weights(runs: list[tuple[dict[str, np.ndarray], np.ndarray]], spaces: tuple[str, ...] = ()) -> dict[str, float]:
    """Fit a logistic regression of ranks with weights of at least 0, every run weighing the same; they sum to 1."""
    names = list(without(runs[0][0], spaces))
    x = np.concatenate([np.stack([combine.rank_logits(signs[name]) for name in names], axis=1) for signs, _ in runs])
    y = np.concatenate([wrong for _, wrong in runs]).astype(float)
    weight = np.concatenate([np.full(len(wrong), 1 / len(wrong) / len(runs)) for _, wrong in runs])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        odds = parameters[0] + x @ parameters[1:]
        slope = weight * (expit(odds) - y)
        return float(weight @ (np.logaddexp(0, odds) - y * odds)), np.concatenate([[slope.sum()], x.T @ slope])

    bounds = [(None, None)] + [(0, None)] * len(names)
    found = minimize(loss, np.zeros(1 + len(names)), jac=True, method="L-BFGS-B", bounds=bounds).x[1:]
    return {name: round(float(value), 3) for name, value in zip(names, found / found.sum(), strict=True)}


def planted(
    sets: tuple[str, ...], shares: tuple[float, ...], seeds: range
) -> Iterator[tuple[str, review_data.Set, str, float, int, np.ndarray, np.ndarray]]:
    for name in sets:
        one = review_data.load(name)
        for kind, share, seed in itertools.product(KINDS, shares, seeds):
            yield name, one, kind, share, seed, *review_data.plant(one, kind, share, seed)


def measure(scores: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Return average precision, and the share of wrong labels among as many as there are."""
    first = np.argsort(-scores, kind="stable")[: wrong.sum()]
    return {"average_precision": float(average_precision_score(wrong, scores)), "first": float(wrong[first].mean())}


def expected(evidence: Evidence, scores: np.ndarray, wrong: np.ndarray) -> dict[str, dict[str, float]]:
    """Return expected and true precision at half, once and twice the number of wrong labels."""
    order = np.argsort(-scores, kind="stable")
    estimate = planting.estimate(evidence, order)
    found = {}
    for name, factor in (("half", 0.5), ("once", 1), ("twice", 2)):
        depth = round(factor * wrong.sum())
        found[name] = {
            "expected": float(estimate.precision[depth - 1]),
            "true": float(wrong[order[:depth]].mean()),
        }
    return found


def tune(seeds: int, sets: tuple[str, ...]) -> dict[str, Any]:
    """Fit the weights, and measure them on each set when fitted to the others."""
    runs = []
    for name, one, kind, share, seed, labels, wrong in planted(sets, SHARES, range(FIRST_TUNED, FIRST_TUNED + seeds)):
        runs.append((name, kind, share, evidence_of(one, labels, seed).signs, wrong))
        print(name, kind, share, seed, flush=True)
    left_out = []
    for name in sets if len(sets) > 1 else ():
        weights = fit_weights([(signs, wrong) for other, *_, signs, wrong in runs if other != name])
        for _, kind, share, signs, wrong in (run for run in runs if run[0] == name):
            figures = {sign: measure(values, wrong) for sign, values in signs.items()}
            figures["score"] = measure(combine.score(signs, weights), wrong)
            left_out.append({"data": name, "kind": kind, "share": share, "rankings": figures})
    fitted = {
        name: fit_weights([(signs, wrong) for *_, signs, wrong in runs], spaces) for name, spaces in WEIGHTED.items()
    }
    return {"weights": fitted, "left_out": left_out}


def judge(seeds: int, sets: tuple[str, ...]) -> list[dict[str, Any]]:
    """Measure every ranking on each kind of noise, with the seeds' mean and spread."""
    from cleanlab.rank import get_label_quality_scores

    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, one, kind, _, seed, labels, wrong in planted(
        sets, (review_data.SHARE,), range(FIRST_JUDGED, FIRST_JUDGED + seeds)
    ):
        evidence = evidence_of(one, labels, seed)
        scores = combine.score(evidence.signs)
        held_out = review_data.held_out_probabilities(one, labels, seed)
        rankings = {"score": scores, **evidence.signs}
        for method in ("self_confidence", "normalized_margin"):
            rankings[f"cleanlab, {method}"] = -get_label_quality_scores(labels, held_out, method=method)
        figures = {title: measure(ranking, wrong) for title, ranking in rankings.items()}
        found = {"rankings": figures, "expected": expected(evidence, scores, wrong)}
        cases.setdefault((name, kind), []).append(found)
        print(
            name, kind, seed, {title: round(one["average_precision"], 3) for title, one in figures.items()}, flush=True
        )
    return [summary(name, kind, runs) for (name, kind), runs in cases.items()]


def summary(name: str, kind: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the seeds, and by how much each ranking is ahead of the better of cleanlab's."""
    rankings: dict[str, dict[str, Any]] = {}
    for title in runs[0]["rankings"]:
        of_seeds = {word: [run["rankings"][title][word] for run in runs] for word in runs[0]["rankings"][title]}
        rankings[title] = {word: float(np.mean(values)) for word, values in of_seeds.items()}
        best = max(
            (other for other in runs[0]["rankings"] if other.startswith("cleanlab")),
            key=lambda other: np.mean([run["rankings"][other]["average_precision"] for run in runs]),
        )
        ahead = np.array(
            [run["rankings"][title]["average_precision"] - run["rankings"][best]["average_precision"] for run in runs]
        )
        rankings[title] |= {
            "seeds": of_seeds["average_precision"],
            "ahead_of_cleanlab": float(ahead.mean()),
            "interval": float(half_width(ahead)),
        }
    depths = {
        depth: {word: float(np.mean([run["expected"][depth][word] for run in runs])) for word in ("expected", "true")}
        for depth in runs[0]["expected"]
    }
    return {"data": name, "kind": kind, "seeds": len(runs), "cleanlab": best, "rankings": rankings, "expected": depths}


def half_width(values: np.ndarray) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t; 0 of a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=["tune", "judge"], required=True)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seeds", type=int)
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    part, sets, seeds = {"tune": (tune, TUNED, 2), "judge": (judge, JUDGED, 5)}[options.part]
    found = part(options.seeds or seeds, tuple(options.sets or sets))
    if options.out:
        record.write(Path(options.out), found)


if __name__ == "__main__":
    main()
