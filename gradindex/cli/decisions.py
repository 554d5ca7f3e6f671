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
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write those that stand, for `remove --decisions`: .csv or .jsonl.", **FILE
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the audit log: every decision that was taken on the served pages, and every one that was taken back."""
    from gradindex.review import beside
    from gradindex.review.decision_log import DecisionLog, as_csv, as_json_lines
    from gradindex.store import Store
    from gradindex.store.location import save

    writers = {".csv": as_csv, ".jsonl": as_json_lines}
    if output is not None and output.suffix not in writers:
        raise typer.BadParameter(f"-o takes FILE.csv or FILE.jsonl, got {output.name}.")
    store = Store.open(path)
    file = beside.decisions_path(beside.directory(store.path) if review_dir is None else review_dir, store)
    if output is not None and output.resolve() == file.resolve():
        raise typer.BadParameter(f"-o would overwrite the audit log {file}: give another file.")
    log = DecisionLog(file)
    found = [
        one
        for one in log.since(0, log.end)[1]
        if sample in (None, one.id) and (reviewer is None or reviewer == one.reviewer)
    ]
    if log.damaged:
        err.print(f"{log.damaged} lines of {file} cannot be read.", highlight=False, soft_wrap=True)
    standing = {
        i: one
        for i, one in log.all_standing().items()
        if sample in (None, i) and (reviewer is None or reviewer == one.reviewer)
    }
    if output is not None and standing:
        save(output, writers[output.suffix](standing).encode())
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    if not found:
        out.print(_none(path, file, log.end > 0), highlight=False, soft_wrap=True)
        return
    out.print(_table(found))
    if output is None:
        following = f"Next: gradindex decisions {path} -o decisions.csv, which writes those that stand."
    elif not standing:
        following = f"None of them stands any more, so {output} was not written."
    else:
        following = f"Wrote the {len(standing)} that stand. Next: gradindex remove {path} --decisions {output}"
    out.print(following, highlight=False, soft_wrap=True)


def _none(path: str, file: Path, chosen: bool) -> str:
    """Return that there are none, and the next command."""
    if chosen:
        return f"There are none of these in {file}. All there are: gradindex decisions {path}"
    return f"There are none in {file}. To take some: gradindex serve {path} MODULE:FUNCTION, page /review"


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
