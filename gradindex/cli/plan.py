"""The command `gradindex plan`."""

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from gradindex.cli.console import err, out
from gradindex.cli.options import Json
from gradindex.defaults import MEASURED_SECONDS, SKETCH_DIM
from gradindex.lifecycle.plan import Prediction, Rates


def plan(
    job: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Function that returns a gradindex.Job.")],
    rows: Annotated[
        float | None, typer.Option(min=1, help="Samples of the build, such as 1e9.  [default: the job's own]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers like this machine's process.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure.")] = MEASURED_SECONDS,
    dim: Annotated[int, typer.Option(min=1, help="Width of the CountSketch.")] = SKETCH_DIM,
    as_json: Json = False,
) -> None:
    """Measure a job here, and say what a build of many rows would take: hours, bytes, memory, queries a second."""
    from gradindex.cli import inputs
    from gradindex.lifecycle.measure import measure
    from gradindex.lifecycle.plan import predict
    from gradindex.sketch import CountSketch

    with err.status(f"Embedding, storing and searching some rows for about {seconds:g} s"):
        made = inputs.job_of(job)
        rates = measure(made, sketch=CountSketch(dim), seconds=seconds)
    wanted = len(made.source) if rows is None else int(rows)
    found = predict(rates, wanted, workers)
    sizes = [max(1, int(wanted * factor)) for factor in (0.01, 0.1, 1, 10)]
    growth = [predict(rates, size, workers) for size in sizes]
    if as_json:
        every = {"rates": vars(rates), "plan": found.to_json(), "growth": [one.to_json() for one in growth]}
        typer.echo(json.dumps(every))
        return
    _print(rates, found, growth)


def _print(rates: Rates, found: Prediction, growth: list[Prediction]) -> None:
    out.print(
        f"Measured: {1 / rates.embed:,.0f} rows/s embedded, {1 / rates.check:,.0f} exact evaluations/s, "
        f"{rates.row_bytes:,.0f} bytes a stored row, {_bytes(rates.base_bytes)} a process.",
        highlight=False,
    )
    title = f"{found.rows:,} rows, {found.workers} worker(s) as fast as this process"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("")
    for one in growth:
        table.add_column(f"{one.rows:.3g} rows", justify="right", style="bold" if one.rows == found.rows else "")
    lines: dict[str, list[Any]] = {
        "embedding": [_hours(one.embedding_seconds) for one in growth],
        "training the index, one machine": [_hours(one.training_seconds) for one in growth],
        "adding to the index": [_hours(one.adding_seconds) for one in growth],
        "in all": [_hours(3600 * one.hours) for one in growth],
        "index": [one.index for one in growth],
        "store": [_bytes(one.store_bytes) for one in growth],
        "index file": [_bytes(one.index_bytes) for one in growth],
        "memory of a worker": [_bytes(one.worker_bytes) for one in growth],
        "memory of the driver": [_bytes(one.driver_bytes) for one in growth],
        "explanations a second": [f"{one.queries_per_second:,.3g}" for one in growth],
        "searches a second": [f"{one.searches_per_second:,.3g}" for one in growth],
    }
    for name, cells in lines.items():
        table.add_row(name, *cells)
    out.print(table)


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
