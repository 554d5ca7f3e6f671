"""The retraining tests of `gradindex evaluate`: lds and removal, on a bank of models trained by the user's function."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gradindex.cli.console import out
from gradindex.cli.inputs import ids_of, job_of, read_rows

if TYPE_CHECKING:
    from gradindex.evaluation.comparison import Comparison
    from gradindex.evaluation.scoring import PairScores
    from gradindex.evaluation.training import Fit
    from gradindex.job import Job

TESTS = ("lds", "removal")
KERNELS = "grad_dot,grad_cos,label,hidden,pixels"
SUBSETS, MODELS, WORKERS, ASKED = 60, 3, 1, 20


@dataclass(frozen=True)
class Options:
    """What the command line says; `remove` None: a hundredth of the samples."""

    job: str
    tests: list[str]
    fit: str | None
    kernels: list[str]
    rows: Path | None
    bank: str | None
    index: str | None
    subsets: int
    models: int
    workers: int
    remove: str | None
    asked: int
    seed: int


def is_retraining(tests: list[str]) -> bool:
    """Whether tests are those of this module; raises BadParameter if only some are."""
    ours = [test for test in tests if test in TESTS]
    if ours and len(ours) < len(tests):
        raise typer.BadParameter(f"{' and '.join(TESTS)} run by themselves: leave out the other tests.")
    return bool(ours)


def compare(options: Options) -> "Comparison":
    """Train the bank, or what is missing of it, and return kernels side by side."""
    from gradindex.evaluation.bank import Bank
    from gradindex.evaluation.scoring import scores

    for name, value in (("fit", options.fit), ("rows", options.rows), ("bank", options.bank)):
        if value is None:
            raise typer.BadParameter(f"The tests {' and '.join(TESTS)} need --{name}.")
    job, fit = job_of(options.job), function_of(str(options.fit))
    x, y = read_rows(Path(str(options.rows)))
    if y is None:
        raise typer.BadParameter(f"{options.rows} holds no y, and the queries' losses need labels.")
    bank = Bank.build(
        fit,
        len(job.source),
        str(options.bank),
        queries=(x, y),
        loss_fn=job.loss_fn,
        dataset=job.dataset,
        subsets=options.subsets,
        models=options.models,
        seed=options.seed,
        workers=options.workers,
    )
    found = scores(job, x, y, options.kernels, None if options.index is None else stored(options.index, job))
    removal = None
    if "removal" in options.tests:
        k = [max(1, len(job.source) // 100)] if options.remove is None else ids_of(options.remove)
        removal = bank.removal(fit, found, k, queries=options.asked, models=options.models, workers=options.workers)
    reference = "grad_cos" if "grad_cos" in found else None
    return bank.compare(found, reference=reference, removal=removal)


def stored(path: str, job: "Job") -> "PairScores":
    """Return the scores of an index's stored rows; raises BadParameter if this index gives none."""
    from gradindex.loading import load

    index: Any = load(path, job)
    if not hasattr(index, "scores"):
        raise typer.BadParameter(f"The index {path} gives no scores of all pairs: it holds no whitened rows.")
    return lambda x, y, kernel: index.scores(x, y, kernel=kernel)


def function_of(reference: str) -> "Fit":
    """Return the function that MODULE:FUNCTION names; raises BadParameter if there is none."""
    from gradindex.job import JobReferenceError, _import

    module, _, name = reference.rpartition(":")
    try:
        found: Any = getattr(_import(module), name, None) if module and name else None
    except JobReferenceError as error:
        raise typer.BadParameter(str(error)) from None
    if not callable(found):
        raise typer.BadParameter(f"Expected MODULE:FUNCTION, and there is no function {reference!r}.")
    function: Fit = found
    return function


def show(comparison: "Comparison", tests: list[str]) -> None:
    """Print the tables, models that failed, and the sentence."""
    if "lds" in tests:
        out.print(comparison.table())
    if comparison.removal is not None:
        out.print(comparison.removal.table())
    for failure in comparison.meta["failures"]:
        where = f"subset {failure['subset']}, seed {failure['seed']}"
        out.print(f"Left out: the model of {where}: {failure['error']}", highlight=False)
    out.print(comparison.sentence(), highlight=False, soft_wrap=True)
