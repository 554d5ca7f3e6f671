"""The command `gradindex review`."""

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from gradindex.cli import inputs
from gradindex.cli.console import out
from gradindex.cli.options import FILE, JobName, Json, Out
from gradindex.defaults import NEIGHBOURS, REVIEWED, SEED

if TYPE_CHECKING:
    from gradindex.review import Finding, Kind, Review

_SHOWN = 5  # lines of each kind that are printed


def review(
    path: Out,
    job: JobName,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Write FILE.csv, FILE.parquet or FILE.html; a URL may be.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="The most lines of each kind.")] = REVIEWED,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each sample that count.")] = NEIGHBOURS,
    seed: Annotated[int, typer.Option(help="Of cross-validation, and of labels planted wrong.")] = SEED,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Look for these test samples in the training set: inputs x, and labels y, of FILE.npz.", **FILE
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for samples to look at: wrong labels, near-duplicates, outliers, opponents, confused classes, leaks."""
    from gradindex.loading import load
    from gradindex.report import write_review
    from gradindex.review import Kind
    from gradindex.review import review as look
    from gradindex.review.decisions import refuse_to_overwrite
    from gradindex.store.location import locate

    suffix = None if output is None else PurePosixPath(output).suffix.lower()
    if suffix not in (None, ".csv", ".parquet", ".html"):
        raise typer.BadParameter(f"-o takes a name that ends with .csv, .parquet or .html, got {output!r}.")
    if output is not None and isinstance(place := locate(output), Path):
        refuse_to_overwrite(place)  # before the work
    loaded = inputs.job_of(job)
    index = load(path, loaded)
    x, y = (None, None) if held_out is None else inputs.read_queries(held_out, loaded)
    found = look(index, top=top, k=k, seed=seed, held_out=x, held_out_labels=y)
    if output is not None:
        _ = write_review(index, found, output) if suffix == ".html" else found.save(output)
    if as_json:
        typer.echo(json.dumps(found.to_json() | {"written": output}))
        return
    for kind in Kind:
        if lines := found.of(kind):
            out.print(_table(kind, lines, loaded.class_names))
    if held_out is not None:
        out.print(f"Leaks: {found.about['leaks']:,} of {found.about['held_out']:,} held-out samples.", highlight=False)
    if found.of(Kind.LABEL):
        out.print(str(found.about["precision_from"]), highlight=False)
    for sentence in found.left_out:
        out.print(sentence, highlight=False)
    out.print(_next(path, job, found, output), highlight=False, soft_wrap=True)


def _next(path: str, job: str, found: "Review", written: str | None) -> str:
    """Return what was found in all, and the command that comes next."""
    kinds = dict.fromkeys(one.kind for one in found.findings)
    counts = ", ".join(f"{len(found.of(kind))} of kind {kind}" for kind in kinds) or "nothing"
    said = f"Found: {counts}."
    if written is None:
        return f"{said} Next: gradindex review {path} {job} -o review.csv"
    if written.endswith(".html"):
        return (
            f"{said} Wrote {written}. To decide: gradindex serve {path} {job}, page /review, or "
            f"gradindex review {path} {job} -o review.csv"
        )
    return (
        f"{said} Wrote {written}. Fill in its column decision (keep, relabel, remove, later; with relabel also "
        f"new_label), then: gradindex remove {path} --decisions {written}"
    )


def _table(kind: "Kind", lines: "list[Finding]", names: object) -> Table:
    from gradindex.plots.read import class_name, short_number

    table = Table(
        title=f"{kind}: the first {min(len(lines), _SHOWN)} of {len(lines)}", title_justify="left", box=box.SIMPLE_HEAD
    )
    labelled = any(line.label is not None for line in lines)
    leaks = lines[0].held_out is not None
    columns = [
        "held-out sample" if leaks else "sample",
        "score",
        *(["label", "predicted", "proposed"] if labelled else []),
        "training samples" if leaks else "neighbours",
    ]
    estimated = lines[0].precision is not None
    columns += ["precision, estimate"] if estimated else []
    for name in columns:
        table.add_column(name, justify="left" if name not in ("sample", "held-out sample", "score") else "right")
    called = list(names) if isinstance(names, list | tuple) else None

    def name_of(value: int | None) -> str:
        return "" if value is None else class_name(called, value)

    for line in lines[:_SHOWN]:
        named = line.held_out if leaks else line.id
        cells = ["" if named is None else str(named), short_number(line.score)]
        if labelled:
            cells += [name_of(line.label), name_of(line.prediction), name_of(line.proposed)]
        cells.append(", ".join(map(str, line.neighbours)))
        if estimated:
            cells.append("" if line.precision is None else f"{line.precision:.0%}")
        table.add_row(*cells)
    return table
