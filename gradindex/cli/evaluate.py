"""The command `gradindex evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gradindex.cli import retraining
from gradindex.cli.console import out
from gradindex.cli.options import FILE, Json
from gradindex.defaults import FISHER, LABELS, NEIGHBOURS, REPEATS, SEED, SOLVER


def evaluate(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="Function that returns a gradindex.evaluation.Experiment, or a gradindex.Job (then --rows is needed).",
        ),
    ],
    tests: Annotated[
        str, typer.Option(help="Some of class,subclass,randomization; or of lds,removal, which train models anew.")
    ] = "class,randomization",
    metrics: Annotated[str, typer.Option(help="Names of metrics, or all.")] = "l2-x,cos-x,dot-x,GD,GC,l2-grad",
    rows: Annotated[
        Path | None, typer.Option("--rows", help="FILE.npz with test inputs x and classes y, for a Job.", **FILE)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often to train; 1 for a Job.")] = REPEATS,
    k: Annotated[int, typer.Option("-k", min=1, help="Of the top-k tests.")] = NEIGHBOURS,
    seed: Annotated[int, typer.Option(min=0, help="Repeat r uses seed + r.")] = SEED,
    fisher: Annotated[str, typer.Option(help="true or mean, for FK.")] = FISHER,
    damping: Annotated[
        str | None,
        typer.Option(
            help="Added to the diagonal of IF's and FK's matrix: a number, or study for 1e-10 of its mean.  "
            "[default: a tenth of the mean eigenvalue]"
        ),
    ] = None,
    solver: Annotated[str, typer.Option(help="auto, exact, ekfac, kfac, minres or cg, for IF and FK.")] = SOLVER,
    top: Annotated[
        int | None, typer.Option(min=1, help="Randomize only so many layers, from the output down.  [default: all]")
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Of queries to the random model: own (its predictions), fixed (the trained model's, the definition), "
            "or both."
        ),
    ] = LABELS,
    index: Annotated[bool, typer.Option("--index", help="Answer through a FAISS index as well.")] = False,
    json_path: Annotated[Path | None, typer.Option("--out", help="Write the result to this JSON file.", **FILE)] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="Draw the bar chart into this picture.", **FILE)] = None,
    fit: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Of lds and removal: fit(ids, seed) trains a model.")
    ] = None,
    kernels: Annotated[str, typer.Option(help="What lds and removal compare, metrics too.")] = retraining.KERNELS,
    bank: Annotated[str | None, typer.Option(help="Directory of the trained models; goes on where it was.")] = None,
    index_path: Annotated[
        str | None, typer.Option(help="Index whose stored rows white_dot and white_cos score.")
    ] = None,
    subsets: Annotated[int, typer.Option(min=4, help="Halves of the training set to train on.")] = retraining.SUBSETS,
    models: Annotated[
        int, typer.Option(min=1, help="Trained on each, and without removed samples.")
    ] = retraining.MODELS,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train.")] = retraining.WORKERS,
    remove: Annotated[
        str | None, typer.Option(help="How many samples to remove, such as 20,50.  [default: a hundredth]")
    ] = None,
    removal_queries: Annotated[int, typer.Option(min=1, help="Of how many queries.")] = retraining.ASKED,
    as_json: Json = False,
) -> None:
    """Ask which relevance metric makes sense for a model: the tests of Hanawa et al., or retraining (lds, removal)."""
    from gradindex import evaluation, relevance
    from gradindex.plots.page import save_figure

    if retraining.is_retraining(_words(tests)):
        named = (subject, _words(tests), fit, _words(kernels), rows, bank, index_path)
        comparison = retraining.compare(
            retraining.Options(*named, subsets, models, workers, remove, removal_queries, seed)
        )
        text = comparison.to_json(json_path)
        if chart is not None:
            save_figure(comparison.chart(), chart)
        if as_json:
            print(text)  # noqa: T201
        else:
            retraining.show(comparison, _words(tests))
        return
    experiment, once = _experiment(subject, rows)
    names = relevance.METRICS if metrics == "all" else _words(metrics)
    result = evaluation.evaluate(
        experiment,
        names,
        _words(tests),
        repeats=1 if once else repeats,
        seed=seed,
        k=k,
        through_index=index,
        top=top,
        labels=labels,
        options={"fisher": fisher, "damping": _damping(damping), "solver": solver},
    )
    text = result.to_json(json_path)
    if chart is not None:
        save_figure(result.chart(), chart)
    if as_json:
        print(text)  # noqa: T201
    else:
        out.print(result.table())
        for what, values in result.accuracy.items():
            out.print(f"Test accuracy ({what} labels): {np.mean(values):.3f}", highlight=False)
        for line in result.notes():
            out.print(line, highlight=False)
        out.print(result.sentence(), style="bold", highlight=False)


def _damping(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _experiment(reference: str, rows: Path | None) -> tuple[Any, bool]:
    """Return the experiment and whether it is a job's single trained model."""
    from gradindex.evaluation import Experiment
    from gradindex.job import Job, JobReferenceError, _import

    module_name, _, function = reference.rpartition(":")
    try:
        make = getattr(_import(module_name), function, None) if module_name and function else None
    except JobReferenceError as error:
        raise typer.BadParameter(str(error)) from None
    if not callable(make):
        raise typer.BadParameter(f"Expected MODULE:FUNCTION, and there is no function {reference!r}.")
    found = make()
    if isinstance(found, Experiment):
        return found, False
    if not isinstance(found, Job):
        raise typer.BadParameter(f"{reference} gave {type(found).__name__}; expected an Experiment or a Job.")
    if rows is None:
        raise typer.BadParameter("A Job has no test samples: give --rows FILE.npz with x and y.")
    with np.load(rows, allow_pickle=False) as arrays:
        test = (arrays["x"], arrays["y"])
    return Experiment.of_job(found, test), True
