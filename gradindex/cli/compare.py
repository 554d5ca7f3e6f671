"""The command `gradindex compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from gradindex.cli import inputs
from gradindex.cli.console import out
from gradindex.cli.options import FILE, Json
from gradindex.defaults import NEIGHBOURS, PERSISTENCE
from gradindex.kernels import KernelName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradindex.search.compare import Comparison

_SHOWN = 20  # queries of a table
_NAMED = 5  # samples that came or went, of a cell


def compare(
    before: Annotated[str, typer.Argument(metavar="OUT_A", help="The first index: a directory or a URL.")],
    after: Annotated[str, typer.Argument(metavar="OUT_B", help="The second index.")],
    job_before: Annotated[str, typer.Argument(metavar="JOB_A", help="MODULE:FUNCTION of the first index's job.")],
    job_after: Annotated[str, typer.Argument(metavar="JOB_B", help="MODULE:FUNCTION of the second index's job.")],
    ids: Annotated[str | None, typer.Option("--ids", help="Training samples as queries, such as 3,14.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="FILE.npz with inputs x and labels y; of texts, a .txt or .jsonl file.", **FILE)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each side.")] = NEIGHBOURS,
    kernel: Annotated[KernelName | None, typer.Option(help="Which kernel.  [default: grad_cos]")] = None,
    persistence: Annotated[
        float, typer.Option(help="Of rank-biased overlap: from 0, the first counts alone, to 1.")
    ] = PERSISTENCE,
    as_json: Json = False,
) -> None:
    """Say what changed in the neighbours of the same queries between two models, or two states of one index."""
    from gradindex.loading import load
    from gradindex.search.compare import compare as compare_indexes

    if (ids is None) == (queries is None):
        raise typer.BadParameter("Give the queries as --ids 3,14 or as --queries FILE: one of the two.")
    first = inputs.job_of(job_before)
    one, other = load(before, first), load(after, inputs.job_of(job_after))
    x, y = (None, None) if queries is None else inputs.read_queries(queries, first)
    named = None if ids is None else inputs.ids_of(ids)
    found = compare_indexes(one, other, x, y, ids=named, k=k, kernel=kernel, persistence=persistence)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    out.print(_table(found, first.class_names))
    for name, side in found.sides.items():
        out.print(
            f"Of the {found.k} {name} of a query {side.overlap.mean():.0%} stay on average; rank-biased overlap "
            f"{side.rank_biased.mean():.3f}.",
            highlight=False,
        )


def _table(found: "Comparison", classes: "Sequence[str] | None") -> Table:
    from gradindex.plots.read import class_name

    title = f"Neighbours by {found.kernel}: the first {min(len(found), _SHOWN)} of {len(found)} queries"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("query")
    if found.predictions_before is not None and found.predictions_after is not None:
        table.add_column("predicted")
    for name in ("stay", "RBO", "came", "gone"):
        table.add_column(name, justify="right" if name in ("stay", "RBO") else "left")
    side = found.proponents
    for i in range(min(len(found), _SHOWN)):
        cells = [found.names[i]]
        if found.predictions_before is not None and found.predictions_after is not None:
            a, b = (class_name(classes, one[i]) for one in (found.predictions_before, found.predictions_after))
            cells.append(a if a == b else f"{a}, then {b}")
        cells += [f"{side.overlap[i]:.0%}", f"{side.rank_biased[i]:.3f}", _named(side.came(i)), _named(side.gone(i))]
        table.add_row(*cells)
    return table


def _named(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:_NAMED])) + (", …" if len(ids) > _NAMED else "")
