"""The command `gradindex select`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from gradindex.cli import inputs
from gradindex.cli.console import out
from gradindex.cli.options import FILE, JobName, Json, Out
from gradindex.defaults import BUDGET
from gradindex.kernels import KernelName
from gradindex.words import Rank

if TYPE_CHECKING:
    from gradindex.search.select import Chosen

_SHOWN = 10  # samples that are printed


def select(
    path: Out,
    job: JobName,
    queries: Annotated[
        Path,
        typer.Option(
            help="The validation set: FILE.npz with inputs x and labels y; of texts, a .txt or .jsonl file.", **FILE
        ),
    ],
    budget: Annotated[str, typer.Option(help="How much: 5%, a number of samples, or 20000tokens.")] = BUDGET,
    by: Annotated[
        Rank, typer.Option(help="The mean or largest value over the set, or its samples choose in turns.")
    ] = Rank.MEAN,
    kernel: Annotated[
        KernelName | None, typer.Option(help="Which kernel.  [default: white_dot if whitened, else grad_cos]")
    ] = None,
    where: inputs.WhereOption = None,
    hidden: Annotated[
        bool, typer.Option(help="Compare with what similarity of hidden vectors chooses; a pass over the data.")
    ] = True,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a Parquet file.", **FILE)] = None,
    as_json: Json = False,
) -> None:
    """Choose the training samples that a validation set wants: by one scan of the index."""
    from gradindex.ann import selection
    from gradindex.loading import load

    loaded = inputs.job_of(job)
    index = load(path, loaded)
    x, y = inputs.read_queries(queries, loaded)
    allowed = selection.parse(index.store, where or [])
    found = index.select(x, y, budget=budget, by=by, kernel=kernel, where=allowed, hidden=hidden)
    if output is not None:
        found.save(str(output))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    out.print(_table(found))
    out.print(str(found), markup=False, highlight=False)


def _table(found: "Chosen") -> Table:
    """Return the first samples that were chosen."""
    table = Table(title=f"The first of {len(found):,} samples", title_justify="left", box=box.SIMPLE_HEAD)
    lines = found.to_arrow().slice(0, _SHOWN).to_pylist()
    for name in lines[0]:
        number = isinstance(lines[0][name], int | float)
        table.add_column(name, justify="right" if number else "left", overflow="ellipsis", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(f"{value:.4g}" if isinstance(value, float) else str(value)) for value in line.values()))
    return table
