"""What retraining says of kernels: banks of models trained on halves of a training set, and who predicts their losses.

    python benchmarks/counterfactual.py --bank mnist-mlp [--folder banks] [--train] [--short] [--out FILE]

`--train` only trains the bank, which goes on where it was stopped. A contender is a line of `CONTENDERS`: a function of
a `Bench` that returns scores (queries, samples), or scores by damping, of which one is chosen on a half of the queries
and judged on the other. `--short` trains a few models of one epoch.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import counterfactual_whitened as ours
import numpy as np
import record
from counterfactual_banks import CASES, SEEDS, Case, Run
from counterfactual_data import tfidf

from gradindex import relevance
from gradindex.evaluation import Bank
from gradindex.evaluation.removal import Removal
from gradindex.evaluation.scoring import gradient_scores, same_class
from gradindex.kernels import Kernel, WhiteKernel

Scores = Any  # (m, n)


@dataclass(frozen=True)
class Bench:
    """A case, its bank, and what contenders share: trained models and their exact gradient kernels."""

    case: Case
    bank: Bank

    @cached_property
    def first(self) -> Run:
        """The model of all samples that single-model kernels are computed from."""
        return self.case.run(SEEDS[0])

    @cached_property
    def runs(self) -> list[Run]:
        """Three models of all samples, which differ by their seeds."""
        return [self.first, *(self.case.run(seed) for seed in SEEDS[1:])]

    @cached_property
    def job(self) -> Any:
        """The job of the first model."""
        return self.case.job(self.first)

    @cached_property
    def gradients(self) -> Mapping[Kernel, Scores]:
        """Exact kernels of the first model's gradients."""
        return gradient_scores(self.job, *self.case.data.queries, [Kernel.DOT, Kernel.COS])


@dataclass(frozen=True)
class Contender:
    """A kernel: `scores(bench)` gives (m, n), or a dict of them by damping; None where it does not apply."""

    scores: Callable[[Bench], Scores | dict[float, Scores] | None]
    bytes_per_row: Callable[[Bench], int] | None = None


def label(bench: Bench) -> Scores | None:
    y = bench.case.data.y_queries
    return same_class(bench.job, y) if y.ndim == 1 else None


def hidden(bench: Bench) -> Scores | None:
    if bench.case.name == "vehicle-logreg":  # has no hidden layer
        return None
    return relevance.metric("cos-last", bench.job).scores(*bench.case.data.queries)


def content(bench: Bench) -> Scores:
    """Return the cosine of pixels or features, or of TF-IDF rows of texts."""
    data = bench.case.data
    if bench.case.content == "words" and data.texts is not None:
        rows = tfidf([*data.texts[0], *data.texts[1]], len(data), 5000)
        return rows[len(data) :] @ rows[: len(data)].T
    return relevance.metric("cos-x", bench.job).scores(*data.queries)


def along_training(bench: Bench) -> Scores:
    """Return TracIn's sum over the recorded states, exact."""
    job = bench.case.job(bench.first, checkpoints=True)
    return gradient_scores(job, *bench.case.data.queries, [Kernel.DOT])[Kernel.DOT]


EKFAC = "EKFAC, dampings"
CONTENDERS: dict[str, Contender] = {
    "label": Contender(label, lambda bench: 1),
    "hidden cosine": Contender(hidden),
    "content cosine": Contender(content),
    "gradient dot": Contender(lambda bench: bench.gradients[Kernel.DOT]),
    "gradient cosine": Contender(lambda bench: bench.gradients[Kernel.COS]),
    "gradient dot along training": Contender(along_training),
    "whitened": Contender(ours.whitened(), lambda bench: ours.BYTES + 4),
    "whitened cosine": Contender(ours.whitened(kernel=WhiteKernel.COS), lambda bench: ours.BYTES + 4),
    "whitened, dampings": Contender(ours.whitened_by_damping),
    "whitened, CountSketch": Contender(ours.whitened("countsketch"), lambda bench: ours.BYTES + 4),
    "whitened along training": Contender(ours.whitened("along"), lambda bench: ours.BYTES_ALONG + 4),
    "whitened, three models": Contender(ours.whitened("models"), lambda bench: ours.BYTES_ALONG + 4),
    "whitened, 4 bits": Contender(ours.whitened(bits=4), lambda bench: ours.BYTES + 4),
    "whitened along training, 4 bits": Contender(ours.whitened("along", bits=4), lambda bench: ours.BYTES_ALONG + 4),
    "whitened, three models, 4 bits": Contender(ours.whitened("models", bits=4), lambda bench: ours.BYTES_ALONG + 4),
    "exact Fisher": Contender(ours.fisher),
    "exact Fisher, dampings": Contender(ours.fisher_by_damping),
    EKFAC: Contender(ours.ekfac("ekfac")),
    "K-FAC, dampings": Contender(ours.ekfac("kfac")),
}
REFERENCE = "gradient cosine"
SHARE, REMOVAL_MODELS = 0.01, 3


@dataclass(frozen=True)
class Removing:
    """Whose proponents to remove, of how many queries, and in how many processes models are trained for that."""

    kernels: list[str]
    queries: int
    workers: int


def judge(bank: Bank, by_damping: Mapping[float, Scores], seed: int = 0) -> tuple[Scores, dict[str, Any]]:
    """Return scores each half of whose queries has the damping that is best on the other half, and what was chosen.

    So no query is judged by a damping that it helped to choose. `best of all` is the LDS of the damping that is best on
    all queries, judged on the same: what choosing costs is the difference.
    """
    dampings = list(by_damping)
    some = next(iter(by_damping.values()))
    halves = np.array_split(np.random.default_rng(seed).permutation(len(some)), 2)
    judged = np.empty_like(some)
    per_query = {one: bank.lds(by_damping[one]).of_queries for one in dampings}
    chosen = []
    for one, other in (halves, halves[::-1]):
        best = max(dampings, key=lambda damping: float(per_query[damping][one].mean()))
        judged[other] = by_damping[best][other]
        chosen.append(best)
    return judged, {
        "chosen": chosen,
        "grid": {str(one): float(per_query[one].mean()) for one in dampings},
        "best of all": float(max(values.mean() for values in per_query.values())),
    }


def bank_of(case: Case, folder: Path, workers: int = 1) -> Bank:
    """Train what is missing of a case's bank, and open it."""
    data = case.data
    return Bank.build(
        case.fit,
        len(data),
        folder / case.name,
        queries=data.queries,
        loss_fn=case.loss_fn,
        dataset=(data.x, data.y),
        subsets=case.subsets,
        models=case.models,
        workers=workers,
    )


def shortened(case: Case) -> Case:
    """Return a case of the same data with a handful of models of one epoch, and rows of fewer landmarks."""
    return dataclasses.replace(case, epochs=1, subsets=6, models=2, landmarks=256)


def removed(bench: Bench, scores: Mapping[str, Scores], share: float, queries: int, workers: int) -> Removal:
    """Train without a share of the samples: the proponents of some queries by each kernel, and random ones."""
    k = max(1, round(share * len(bench.case.data)))
    return bench.bank.removal(bench.case.fit, scores, [k], queries=queries, models=REMOVAL_MODELS, workers=workers)


def reranked(white: Scores, ekfac: Scores, near: int = 10, candidates: int = 200) -> float:
    """Return what share of a query's `near` best samples by EKFAC is among its best `candidates` by other rows."""
    wanted = np.argsort(-ekfac, axis=1, kind="stable")[:, :near]
    found = np.argsort(-white, axis=1, kind="stable")[:, :candidates]
    return float(np.mean([np.isin(*pair).mean() for pair in zip(wanted, found, strict=True)]))


def measure(bench: Bench, names: list[str], removal: Removing | None = None) -> dict[str, Any]:
    """Return the comparison of the contenders that apply, with their seconds and dampings."""
    scores, bytes_per_row, about, by_default = {}, {}, {}, {}
    for name in names:
        begin = time.perf_counter()
        found = CONTENDERS[name].scores(bench)
        if found is None:
            continue
        about[name] = {"seconds": round(time.perf_counter() - begin, 2)}
        if isinstance(found, dict):
            by_default[name] = found.get(1.0)
            found, about[name]["damping"] = judge(bench.bank, found)
        scores[name] = found
        if (cost := CONTENDERS[name].bytes_per_row) is not None:
            bytes_per_row[name] = cost(bench)
        print(f"{bench.case.name}: {name}: {bench.bank.lds(found).estimate}", flush=True)
    reference = REFERENCE if REFERENCE in scores else next(iter(scores))
    gone = None
    if removal is not None:
        gone = removed(bench, {name: scores[name] for name in removal.kernels}, SHARE, removal.queries, removal.workers)
    comparison = bench.bank.compare(scores, reference=reference, bytes_per_row=bytes_per_row, removal=gone)
    result = comparison.to_dict()
    for kernel in result["kernels"].values():
        del kernel["queries"]
    ekfac = by_default.get(EKFAC)
    if ekfac is not None:
        whites = [name for name in scores if name.startswith("whitened") and "dampings" not in name]
        result["EKFAC's ten among 200"] = {name: reranked(scores[name], ekfac) for name in whites}
    case = bench.case
    return {
        "bank": case.name,
        "title": case.title,
        "epochs": case.epochs,
        "recorded": list(case.recorded),
        "parameters": bench.job.engine.size,
        "contenders": about,
        **result,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--bank", choices=CASES, required=True)
    parser.add_argument("--folder", type=Path, default=Path("banks"), help="where banks are, or are trained")
    parser.add_argument("--kernels", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--train", action="store_true", help="train the bank and stop")
    parser.add_argument("--short", action="store_true", help="a few models of one epoch")
    parser.add_argument("--removal", nargs="+", choices=CONTENDERS, help="train without these kernels' top 1 %%, too")
    parser.add_argument("--removal-queries", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="processes that train")
    record.add_out(parser)
    options = parser.parse_args()
    case = shortened(CASES[options.bank]) if options.short else CASES[options.bank]
    bank = bank_of(case, options.folder, options.workers)
    print(f"{case.name}: {case.title}; {bank.header.subsets} subsets, {bank.seconds / 60:.1f} minutes of training")
    if options.train:
        return
    removal = None
    if options.removal:
        removal = Removing(options.removal, options.removal_queries, options.workers)
    result = measure(Bench(case, bank), list(dict.fromkeys([*options.kernels, *(options.removal or [])])), removal)
    ceiling = result["ceiling"]
    print(f"noise ceiling {ceiling['value']:.3f}" if ceiling else "no noise ceiling")
    for row in (result["removal"] or {"rows": []})["rows"]:
        paired = f"; minus control {row['change_minus_control']}" if "change_minus_control" in row else ""
        print(f"without {row['k']} by {row['removed']}: {row['change']}{paired}")
    print(result["sentence"])
    if options.out:
        record.write(options.out, result)


if __name__ == "__main__":
    main()
