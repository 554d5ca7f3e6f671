"""The command `gradindex self-influence`."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.table import Table

from gradindex.cli.console import out
from gradindex.cli.options import FILE, Json
from gradindex.defaults import INFLUENTIAL


def self_influence(
    path: Annotated[str, typer.Argument(metavar="OUT", help="Directory of the index, or a URL.")],
    top: Annotated[int, typer.Option(min=1, help="How many samples, most influential first.")] = INFLUENTIAL,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the distribution, and its relation to the loss.", **FILE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the samples that influence themselves most: mislabelled, atypical or hard ones."""
    from gradindex.loading import load

    index = load(path)
    values, ids = index.self_influence(min(top, len(index)))
    rows = index.store.rows_of(ids)
    columns = {
        name: index.store.columns[name][rows] for name in ("loss", "label", "prediction") if name in index.store.columns
    }
    if plot is not None:
        from gradindex.influence.labels import self_influence as every
        from gradindex.plots.influence import plot_self_influence
        from gradindex.plots.page import save_figure

        save_figure(plot_self_influence(every(index.store), index.store.columns["loss"]), plot)
    lines = [
        {"id": int(one), "self_influence": float(value)} | {name: _plain(column[i]) for name, column in columns.items()}
        for i, (one, value) in enumerate(zip(ids, values, strict=True))
    ]
    if as_json:
        typer.echo(json.dumps(lines))
    else:
        out.print(_table(lines, len(index), columns))


def _table(lines: list[dict[str, Any]], samples: int, columns: dict[str, object]) -> Table:
    title = f"Self-influence: the first {len(lines)} of {samples:,} samples"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for name in ("#", "sample", "self-influence", *columns):
        table.add_column(name, justify="right", style="dim" if name == "#" else None)
    for rank, line in enumerate(lines):
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values()]
        table.add_row(str(rank + 1), *cells)
    return table


def _plain(value: object) -> Any:
    return value.item() if isinstance(value, np.generic) else value
