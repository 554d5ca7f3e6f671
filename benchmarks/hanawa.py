"""The tables of Hanawa et al. (2021) beside ours: ``python benchmarks/hanawa.py --cases vehicle-logreg …``.

Our choices where the study says nothing: features of the tables as they are in the files (``--scaling raw``), MNIST
divided by 255; batches and epochs in CASES; MLP with two hidden layers of 24 and ReLU; torch's initialisation, He's
for the CNN; its learning rate falls from 1e-3 to 0 over the second half of the training; the model of the last epoch.
mnist-cnn-100 is trained as the study's published code has it. Models are trained in float32; gradients are computed in
float64, with ``--single`` in float32, and matrices in float64.
"""

import argparse
import hashlib
import json
import os
import time
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import gradindex
from gradindex import relevance
from gradindex.evaluation import Experiment, Result, evaluate
from gradindex.evaluation.criteria import merge_classes

RESULTS = Path(__file__).parent / "results"
PAPER = json.loads((RESULTS / "hanawa_paper.json").read_text(encoding="utf-8"))
DATA = Path(os.environ.get("GRADINDEX_DATA", "."))
FEATURES = [name for name in relevance.METRICS if name.split("-")[-1] in ("x", "last", "all")]
GRADIENTS = [name for name in relevance.METRICS if name not in FEATURES]


def table(name, scaling):
    rows = [line.replace(" ", "").strip().split(",") for line in (DATA / f"{name}.dat").read_text().splitlines()]
    rows = [row for row in rows if len(row) > 2 and not row[0].startswith("@")]
    x = np.array([row[:-1] for row in rows], np.float32)
    _, y = np.unique([row[-1] for row in rows], return_inverse=True)
    if scaling == "raw":
        return x, y
    centre, scale = (x.mean(axis=0), x.std(axis=0)) if scaling == "standard" else (x.min(axis=0), np.ptp(x, axis=0))
    return (x - centre) / np.where(scale > 0, scale, 1), y


def mnist():
    with np.load(DATA / "mnist10k.npz") as saved:
        return saved["x"][:, None].astype(np.float32) / 255, saved["y"].astype(np.int64)


@dataclass(frozen=True)
class Case:
    """What is trained: data, model, epochs, batch, training samples.

    With `kept` samples set apart the weights of the best accuracy on them are kept, else those of the last epoch;
    `falling` is a learning rate that falls to 0 over the second half.
    """

    data: str
    kind: str
    epochs: int
    batch: int
    train: int
    init: str = "torch"
    falling: bool = False
    kept: int = 0


CASES = {
    "vehicle-mlp": Case("vehicle", "mlp", 1000, 64, 423),
    "vehicle-logreg": Case("vehicle", "logreg", 3000, 64, 423),
    "segment-mlp": Case("segment", "mlp", 400, 64, 1155),
    "segment-logreg": Case("segment", "logreg", 1000, 64, 1155),
    "mnist-cnn": Case("mnist", "cnn", 24, 16, 5500, "he", falling=True),
    "mnist-cnn-100": Case("mnist", "cnn", 100, 128, 5500, "lecun", kept=2000),
    "mnist-logreg": Case("mnist", "logreg", 60, 128, 5500),
}


def make(kind, shape, classes, seed, init="torch"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "logreg":
            return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
        if kind == "mlp":
            return nn.Sequential(
                *(nn.Linear(shape[0], 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, classes))
            )
        layers, channels = [], shape[0]
        for _ in range(3):
            layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = 16
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear) and init != "torch":
                nn.init.kaiming_normal_(layer.weight, nonlinearity={"he": "relu", "lecun": "linear"}[init])
                nn.init.zeros_(layer.bias)
        return model


def fit(x, y, classes, seed, *, case, kept=None, models=None):
    """Return a trained model; one of the same data and settings is read from the folder `models`, or put there."""
    model = make(case.kind, x.shape[1:], classes, seed, case.init)
    if kept is not None and classes == 2:
        kept = kept[0], merge_classes(kept[1], seed)[0]
    if models is not None:
        key = hashlib.sha256(x.tobytes() + y.tobytes() + repr((astuple(case), classes, seed)).encode())
        saved = models / f"{case.kind}_{seed}_{classes}_{key.hexdigest()[:16]}.npz"
        if not saved.is_file():
            train(model, x, y, seed, case, kept)
            np.savez(saved, **{name: value.numpy() for name, value in model.state_dict().items()})
        with np.load(saved) as state:
            model.load_state_dict({name: torch.as_tensor(state[name]) for name in state.files})
    else:
        train(model, x, y, seed, case, kept)
    return model.eval()


def train(model, x, y, seed, case, kept=None):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    steps = case.epochs * -(-len(x) // case.batch)
    if case.kind == "cnn":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, 2 - 2 * s / steps) if case.falling else 1)
    best = -1.0
    for _ in range(case.epochs):
        for rows in torch.randperm(len(x), generator=order).split(case.batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            rate.step()
        if kept is not None and (found := accuracy(model, *kept)) > best:
            best, state = found, {name: value.clone() for name, value in model.state_dict().items()}
    if kept is not None:
        model.load_state_dict(state)
    model.to(memory_format=torch.contiguous_format)


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(torch.as_tensor(x)).argmax(dim=1) == torch.as_tensor(y)).double().mean().item()


def experiment(name, epochs=None, scaling="raw", models=None, single=False, loss=nn.functional.cross_entropy):
    """Return the experiment of a case; its models are double precision, or `single`, as they were trained."""
    case = CASES[name] if epochs is None else replace(CASES[name], epochs=epochs)
    x, y = mnist() if case.data == "mnist" else table(case.data, scaling)
    rest = len(x) - case.kept
    kept = (x[rest:], y[rest:]) if case.kept else None
    dtype = torch.float32 if single else torch.float64
    return Experiment(
        lambda *samples: fit(*samples, case=case, kept=kept, models=models).to(dtype),
        loss,
        (x[:rest], y[:rest]),
        train_size=case.train,
        queries=500,
        fresh=lambda classes, seed: make(case.kind, x.shape[1:], classes, seed, case.init).eval().to(dtype),
    )


BEHIND = ("dot-x", "dot-last", "dot-all", "GD", "IF", "FK")


def paper(case):
    """Return the study's tables for a case, test to metric to (mean, deviation)."""
    return PAPER["cases"][case.removesuffix("-100")]


def rows_of(case, test):
    """Return the study's rows of a test; of randomization, which it has once, for both of our forms."""
    return paper(case).get(test.removesuffix(" (fixed)"), {})


def names(case):
    return [n for n in relevance.METRICS if not (case.endswith("logreg") and n.split("-")[-1] in ("last", "all"))]


def compare(case, result, label=""):
    print(f"\n{case}{label}: accuracy {np.mean(result['accuracy'].get('class', [np.nan])):.3f}")
    for test, rows in result["summary"].items():
        print(f"  {test:18}{'ours':>14}{'paper':>14}  meet (± 2 std)")
        for name, ours in rows.items():
            theirs = rows_of(case, test).get(name)
            cell, meet = "–", ""
            if theirs:
                cell = f"{theirs[0]:.2f} ± {theirs[1]:.2f}"
                meet = "yes" if meets(ours, theirs) else "no"
            print(f"  {name:18}{ours['mean']:>7.2f} ± {ours['std']:.2f}{cell:>14}  {meet}")
    print_orders(case, result["summary"])


def print_orders(case, summary):
    theirs = {test: {n: {"mean": row[0]} for n, row in rows.items()} for test, rows in paper(case).items()}
    for whose, lines in (("ours", order(summary)), ("the paper's", order(theirs))):
        for line in lines:
            print(f"  order, {whose}: {line}")


def order(summary):
    """Return, test by test, what is ahead of GC, and what should be far behind it and is not, in words.

    Expected: GC first (to .005) in the class and subclass tests, dot metrics, GD, IF and FK at least .1 behind.
    """
    lines = []
    for test in ("class", "subclass"):
        rows = {name: row["mean"] for name, row in summary.get(test, {}).items()}
        if "GC" not in rows or len(rows) < 2:
            continue
        ahead = [f"{name} {mean:.2f}" for name, mean in rows.items() if mean > rows["GC"] + 0.005]
        near = [f"{n} {mean:.2f}" for n, mean in rows.items() if n in BEHIND and mean > rows["GC"] - 0.1]
        first = f"GC {rows['GC']:.2f} is first" if not ahead else f"ahead of GC {rows['GC']:.2f}: {', '.join(ahead)}"
        rest = f"less than .1 behind: {', '.join(near)}" if near else "dot metrics, GD, IF, FK far behind where run"
        lines.append(f"{test}: {first}; {rest}")
    return lines


def meets(ours, theirs):
    return abs(ours["mean"] - theirs[0]) <= 2 * (ours["std"] + theirs[1]) + 0.005  # tables have two digits


def markdown(cases, suffix):
    """Print saved results as one table a test: ours / the paper's, bold where the intervals do not meet."""
    found = {case: RESULTS / f"hanawa_{case}{suffix}.json" for case in cases}
    results = {case: json.loads(path.read_text(encoding="utf-8")) for case, path in found.items() if path.is_file()}
    tests = dict.fromkeys(test for result in results.values() for test in result["summary"] if "index" not in test)
    for test in tests:
        print(f"\n| {test}, ours / paper | {' | '.join(results)} |\n|{'---|' * (len(results) + 1)}")
        for name in relevance.METRICS:
            cells = []
            for case, result in results.items():
                ours, theirs = result["summary"].get(test, {}).get(name), rows_of(case, test).get(name)
                cell = (
                    "–"
                    if ours is None
                    else f"{ours['mean']:.2f} ± {ours['std']:.2f} / {theirs[0]:.2f} ± {theirs[1]:.2f}"
                )
                cells.append(cell if ours is None or meets(ours, theirs) else f"**{cell}**")
            if any(cell != "–" for cell in cells):
                print(f"| {name} | {' | '.join(cells)} |")
    for case, result in results.items():
        print(f"\n{case}")
        print_orders(case, result["summary"])


def seeds(meta):
    """Return the seeds of a result, also of a merged one."""
    return sorted({seed for part in meta.get("parts", [meta]) for seed in part["seeds"]})


def merge(case, paths, suffix):
    """Write results of several seeds, tests or metrics as one; each test and metric keeps its own repeats.

    Among `paths` may be what was merged before.
    """
    parts = [Result.from_json(Path(path).read_text(encoding="utf-8")) for path in paths]
    parts.sort(key=lambda part: seeds(part.meta))
    values, accuracy, seen = {}, {}, set()
    for part in parts:
        for test, rows in part.values.items():
            for name, found in rows.items():
                values.setdefault(test, {}).setdefault(name, []).extend(found)
        for labels, found in part.accuracy.items():
            for seed, one in zip(seeds(part.meta), found, strict=True):
                if (labels, seed) not in seen:
                    seen.add((labels, seed))
                    accuracy.setdefault(labels, []).append(one)
    for test, rows in values.items():
        values[test] = {name: rows[name] for name in relevance.METRICS if name in rows}
    meta = {
        "metrics": [name for name in relevance.METRICS if any(name in rows for rows in values.values())],
        "repeats": max(len(found) for rows in values.values() for found in rows.values()),
        "queries": parts[0].meta["queries"],
        "parts": [meta for part in parts for meta in part.meta.get("parts", [part.meta])],
    }
    result = Result(values, accuracy, meta)
    result.to_json(RESULTS / f"hanawa_{case}{suffix}.json")
    compare(case, result.to_dict(), suffix)


def folder(text):
    """Return the folder of that name; it is made."""
    path = Path(text)
    path.mkdir(parents=True, exist_ok=True)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["vehicle-mlp", "vehicle-logreg"])
    parser.add_argument("--tests", nargs="+", default=["class", "subclass", "randomization"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="other than the case's own")
    parser.add_argument("--metrics", nargs="+")
    parser.add_argument("--single", action="store_true", help="gradients in single precision, as models are trained")
    parser.add_argument("--loss-in-double", action="store_true", help="of a model in single precision")
    parser.add_argument("--fisher", default="true", choices=("true", "mean"))
    parser.add_argument("--scaling", default="raw", choices=("minmax", "standard", "raw"), help="of the tables")
    parser.add_argument(
        "--labels", default="own", choices=("own", "fixed", "both"), help="of the random model's queries"
    )
    parser.add_argument("--index", action="store_true", help="answer through a FAISS index as well")
    parser.add_argument("--suffix", default="", help="of the result file's name")
    parser.add_argument("--models", type=folder, help="folder where trained models are kept and found again")
    parser.add_argument("--solver", default="auto", choices=("auto", "exact", "ekfac"), help="of IF and FK")
    parser.add_argument("--samples", type=int, default=1, help="of EKFAC: labels drawn a sample")
    parser.add_argument("--merge", nargs="+", help="only join result files of one case, of other seeds or metrics")
    parser.add_argument("--markdown", action="store_true", help="only print the saved results as tables")
    arguments = parser.parse_args()
    if arguments.markdown:
        markdown(arguments.cases, arguments.suffix)
        return
    if arguments.merge:
        merge(arguments.cases[0], arguments.merge, arguments.suffix)
        return
    torch.set_num_threads(1)
    loss = nn.functional.cross_entropy
    loss = gradindex.InDouble(loss) if arguments.loss_in_double else loss
    for case in arguments.cases:
        start = time.perf_counter()
        chosen = arguments.metrics or names(case)
        result = evaluate(
            experiment(case, arguments.epochs, arguments.scaling, arguments.models, arguments.single, loss),
            chosen,
            arguments.tests,
            repeats=arguments.repeats,
            seed=arguments.seed,
            labels=arguments.labels,
            through_index=arguments.index,
            options={
                "fisher": arguments.fisher,
                "solver": arguments.solver,
                "samples": arguments.samples,
                "damping": "study",
            },
        )
        RESULTS.mkdir(exist_ok=True)
        result.to_json(RESULTS / f"hanawa_{case}{arguments.suffix}.json")
        compare(case, result.to_dict(), arguments.suffix)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
