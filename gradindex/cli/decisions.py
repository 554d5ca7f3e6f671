"""The command `gradindex decisions`."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from gradindex.cli.console import err, out
from gradindex.cli.options import FILE, Json, Out

if TYPE_CHECKING:
    from gradindex.review.decision_log import Before, Entry


def decisions(
    path: Out,
    sample: Annotated[int | None, typer.Option("--id", min=0, help="Those on this sample alone.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Those of this reviewer alone.")] = None,
    review_dir: Annotated[
        Path | None,
        typer.Option(help="Where they are kept.  [default: OUT.review]", show_default=False, **FILE),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the audit log: every decision that was taken on the served pages, and every one that was taken back."""
    from gradindex.review import beside
    from gradindex.review.decision_log import DecisionLog
    from gradindex.store import Store

    store = Store.open(path)
    file = beside.decisions_path(beside.directory(store.path) if review_dir is None else review_dir, store)
    log = DecisionLog(file)
    found = [
        one
        for one in log.since(0, log.end)[1]
        if sample in (None, one.id) and (reviewer is None or reviewer == one.reviewer)
    ]
    if log.damaged:
        err.print(f"{log.damaged} lines of {file} cannot be read.", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    if not found:
        out.print(f"There are none in {file}. They are taken by gradindex serve.", highlight=False, soft_wrap=True)
        return
    out.print(_table(found))


def _table(entries: "list[Entry]") -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("line", "time", "reviewer", "sample", "before", "decision", "undoes"):
        table.add_column(name, justify="right" if name in ("line", "sample", "undoes") else "left", overflow="fold")
    for one in entries:
        who = one.reviewer if one.client is None else f"{one.reviewer} ({one.client})"
        undoes = "" if one.undoes is None else str(one.undoes)
        time = re.sub(r"\.\d+", "", one.time)
        table.add_row(str(one.number), time, who, str(one.id), _said(one.before), _said(one), undoes)
    return table


def _said(one: "Entry | Before | None") -> str:
    if one is None or one.decision is None:
        return "none"
    return str(one.decision) if one.label is None else f"{one.decision} {one.label}"
