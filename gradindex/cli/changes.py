"""The commands that change an index: `gradindex add`, `remove`, `compact` and `whiten`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from gradindex.cli.console import out
from gradindex.cli.options import FILE, Json, Out
from gradindex.defaults import INDEX, WHITENED_BITS, WHITENED_DIMS


def add(
    path: Out,
    job: Annotated[
        str,
        typer.Argument(metavar="MODULE:FUNCTION", help="The job of the build, with new samples last."),
    ],
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.  [default: as in the build]")] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a shard.  [default: as in the build]")] = None,
    as_json: Json = False,
) -> None:
    """Add the samples that a job's dataset has behind those of the index; continues if it was interrupted."""
    from gradindex.cli import inputs
    from gradindex.index import opening
    from gradindex.store import Store

    before = len(Store.open(path))
    index = opening.add(path, inputs.job_of(job), batch_size=batch_size, shard_rows=shard_rows)
    summary = index.summary
    text = (
        f"Nothing to add: the index has all {before} samples."
        if summary is None
        else f"Added {len(index) - before} samples to {before}.\n{summary}"
    )
    found = {"added": len(index) - before, "samples": len(index)}
    _say(text, found | {"summary": None if summary is None else summary.to_json()}, as_json)


def remove(
    path: Out,
    ids: Annotated[str | None, typer.Option("--ids", help="Training rows to remove, such as 3,14.")] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            help="FILE.csv, .parquet or .jsonl with id, decision, new_label: removes what says remove.", **FILE
        ),
    ] = None,
    relabels: Annotated[
        Path | None, typer.Option(help="Write the decisions' new labels as CSV: id,label.", **FILE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove training samples from all answers; indexes that are open now keep finding them."""
    from gradindex.cli import inputs
    from gradindex.store import Store

    if (ids is None) == (decisions is None):
        raise typer.BadParameter("Give either --ids 3,14 or --decisions FILE.")
    if decisions is not None:
        _carry_out(path, decisions, relabels, as_json)
        return
    if relabels is not None:
        raise typer.BadParameter("--relabels writes the new labels of --decisions FILE: give that, too.")
    count = Store.open(path).remove(inputs.ids_of(str(ids)))
    _say(f"Removed {count} samples.", {"removed": count}, as_json)


def _carry_out(path: str, file: Path, relabels: Path | None, as_json: bool) -> None:
    """Remove what a file of decisions says, after comparing its samples with the store's."""
    from gradindex.review.decisions import Decision, read
    from gradindex.store import Store
    from gradindex.store.location import save

    if relabels is not None and relabels.resolve() == file.resolve():
        raise typer.BadParameter(f"--relabels would overwrite the decisions in {file}: give another file.")
    decided, store = read(file), Store.open(path)
    decided.check(store)
    wanted = decided.ids(Decision.REMOVE)
    if relabels is not None:
        save(relabels, decided.relabels().encode())  # first: where that fails, nothing is removed
    count = store.remove(wanted) if len(wanted) else 0
    counts = {one.value: len(decided.ids(one)) for one in Decision}
    changed = counts["relabel"]
    text = f"Decided on {len(decided.by_id)} samples; removed {count}."
    if relabels is not None:
        text += f" Wrote {changed} new labels to {relabels}."
    elif changed:
        text += f" {changed} are to be relabelled: --relabels FILE writes their new labels."
    if changed:
        text += " Put them into the dataset."
    if changed or len(wanted):
        text += f" {_again(file, bool(len(wanted)))}"
    found = {"removed": count, "decisions": counts, "relabels": None if relabels is None else str(relabels)}
    _say(text, found, as_json)


def _again(file: Path, removed: bool) -> str:
    """Return what comes after decisions: another model, and an index whose ids mean the same samples."""
    if not removed:
        return "Train again, and build a new index: gradindex build MODULE:FUNCTION NEW"
    return (
        "Train again without what was removed, leave its rows in the job's dataset, so that ids keep their meaning, "
        f"and build a new index: gradindex build MODULE:FUNCTION NEW, then gradindex remove NEW --decisions {file}"
    )


def compact(path: Out, as_json: Json = False) -> None:
    """Rewrite an index without the samples that were removed; ids keep their meaning."""
    from gradindex.index import opening

    count = opening.compact(path)
    _say(f"Left out {count} removed samples.", {"left_out": count}, as_json)


def whiten(
    path: Out,
    damping: Annotated[
        float | None, typer.Option(help="Added to the second moment of the gradients.  [default: by its eigenvalues]")
    ] = None,
    dims: Annotated[int, typer.Option(min=1, help="Numbers of a whitened row.")] = WHITENED_DIMS,
    bits: Annotated[int, typer.Option(help="Bits of each: 8 or 4.")] = WHITENED_BITS,
    index: Annotated[str, typer.Option(help="'auto' or a FAISS factory string.")] = INDEX,
    as_json: Json = False,
) -> None:
    """Whiten the rows of an index, for the kernels white_dot and white_cos; needs no model."""
    from gradindex.lifecycle.whiten import whiten as whiten_rows

    found = whiten_rows(path, damping=damping, dims=dims, bits=bits, index=index).to_json()
    text = (
        f"Whitened: {found['dims']} numbers of {found['bits']} bits a row, {float(found['store_bytes']) / 1e6:,.1f} "
        f"MB, damping {found['damping']:.3g}. Ask with --kernel white_dot: whose removal would change the prediction?"
    )
    _say(text, found, as_json)


def _say(text: str, found: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dict(found)))
    else:
        out.print(text, highlight=False)
