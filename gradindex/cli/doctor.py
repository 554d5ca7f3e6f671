"""The command `gradindex doctor`."""

import json
import os
import platform
import time
from importlib import metadata
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.table import Table

from gradindex.cli.console import out
from gradindex.cli.options import Json
from gradindex.runtime import threads

_PACKAGES = (
    "numpy",
    "faiss-cpu",
    "pyarrow",
    "numba",
    "scipy",
    "torch",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "matplotlib",
    "fastapi",
    "uvicorn",
    "jinja2",
)
_SECONDS = 3.0  # spent on measuring rows a second
_TOLERANCE = 1e-4  # of the fast gradients from the loop's, relative to their length


def doctor(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]", help="A job to test: how its gradients are computed, and how fast."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples whose gradients are compared with the loop.")] = 8,
    as_json: Json = False,
) -> None:
    """Say what is installed and what there is to compute with; test the gradients of a job against the plain loop."""
    from gradindex.cli import inputs

    found: dict[str, Any] = {"environment": environment()}
    if job is not None:
        found["job"] = examine(inputs.job_of(job), samples)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        out.print(_table("Environment", found["environment"]))
        if "job" in found:
            tables = ("paths", "modules")
            out.print(_table("Job", {name: value for name, value in found["job"].items() if name not in tables}))
            out.print(_shares(found["job"]["modules"]))
            out.print(_table("Paths of the parameters", found["job"]["paths"]))
            if found["job"]["gradients_agree"]:
                out.print(f"Next: gradindex build {job} runs/index", highlight=False, soft_wrap=True)
    if job is not None and not found["job"]["gradients_agree"]:
        raise ValueError(
            f"The gradients differ from the plain loop's by {found['job']['largest_error']:.1e} of their length."
        )


def environment() -> dict[str, Any]:
    """Return versions, devices and threads, without importing a framework that is not there."""
    from gradindex._version import __version__

    versions = {"gradindex": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        versions
        | {"cores": cores, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set")}
        | _devices(versions)
    )


def _devices(versions: dict[str, Any]) -> dict[str, Any]:
    from gradindex.ann import blas

    found: dict[str, Any] = {"faiss threads": blas.threads()}
    if "torch" in versions:
        from gradindex.gradients.torch.model import devices

        found["torch threads"] = threads.count("torch")
        found["torch devices"] = devices()
    return found


def examine(job: Any, samples: int) -> dict[str, Any]:
    """Return how a job's gradients are computed, whether they agree with training steps, and how many rows a second.

    Also, how exact products are computed, and what was seen of the model that some ways miss.
    """
    from gradindex.compute import exact
    from gradindex.compute.blocks import embedding_batch_size
    from gradindex.data.checks import check_finite
    from gradindex.gradients import loop
    from gradindex.gradients.shares import shares, warnings_of
    from gradindex.sketch import CountSketch

    engine, source = job.engine, job.source
    batch = source.take(np.arange(min(samples, len(source)), dtype=np.int64))
    found = engine.gradients(batch.x, batch.y)
    check_finite(batch.ids, "gradient", found.gradients)
    truth = loop.gradients(engine, batch.x, batch.y)
    lengths = np.maximum(exact.norms(truth.gradients), 1e-30)
    errors = exact.norms(found.gradients - truth.gradients) / lengths
    others = np.arange(1, min(samples, len(source)), dtype=np.int64)[None]
    products = exact.candidate_dots(engine, source, batch.select(slice(0, 1)), truth.gradients[:1], others)
    size = embedding_batch_size(job)
    rate = _rate(job, CountSketch().bind(engine.parameters, 0), size)
    of_modules = shares(job.model, engine, found.gradients)
    attributed, every, trainable = (
        sum(getattr(share, name) for share in of_modules) for name in ("attributed", "numbers", "trainable")
    )
    return {
        "model": type(job.model).__name__,
        "framework": engine.backend,
        "samples": len(source),
        "gradient": engine.size,
        "share_of_the_model": attributed / every,
        "share_of_what_is_trainable": attributed / trainable,
        "warnings": warnings_of(of_modules),
        "not trainable": list(engine.frozen),
        "compared": len(batch),
        "largest_error": float(errors.max()),
        "gradients_agree": bool(errors.max() <= _TOLERANCE),
        "exact_products": products.method,
        "seen": [str(signal) for signal in engine.signals or ()],
        "batch_size": size,
        "rows_per_second": rate,
        "whole_dataset_seconds": len(source) / rate,
        "modules": {
            share.group: {"numbers": share.numbers, "trainable": share.trainable, "attributed": share.attributed}
            for share in of_modules
        },
        "paths": dict(engine.paths),
    }


def _rate(job: Any, projector: Any, size: int) -> float:
    """Return rows embedded a second, over whole batches for about three seconds, the first not counted."""
    ids = np.arange(min(size, len(job.source)), dtype=np.int64)
    batch = job.source.take(ids)
    job.engine.embed(batch.x, batch.y, projector)
    began, rows = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < _SECONDS:
        batch = job.source.take((ids + rows) % len(job.source))
        job.engine.embed(batch.x, batch.y, projector)
        rows += len(batch)
    return rows / took


def _shares(groups: dict[str, dict[str, int]]) -> Table:
    """Return how much of each group of modules is in the rows."""
    table = Table(title="Attributed, by modules", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("modules", style="bold", overflow="fold")
    for name in ("numbers", "trainable", "attributed", "share"):
        table.add_column(name, justify="right")
    for group, counts in groups.items():
        share = counts["attributed"] / counts["numbers"] if counts["numbers"] else 0.0
        table.add_row(group, *(f"{count:,}" for count in counts.values()), f"{share:.1%}")
    return table


def _table(title: str, lines: dict[str, object]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in lines.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else text
        table.add_row(name.replace("_", " "), text or "none")
    return table
