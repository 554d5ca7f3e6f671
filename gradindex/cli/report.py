"""The command `gradindex report`."""

import json
from typing import Annotated

import typer

from gradindex.cli.options import Json, Out, local_file
from gradindex.defaults import REPORTED, REPORTED_INFLUENTIAL
from gradindex.kernels import KernelName


def report(
    path: Out,
    job: Annotated[
        str,
        typer.Argument(metavar="MODULE:FUNCTION", help="Function that returns the gradindex.Job it was built from."),
    ],
    queries: Annotated[
        str | None,
        typer.Option(help="Training rows such as 3,14, or FILE.npz with inputs x and, optionally, labels y."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text as a query, of a language job; may be repeated.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt as a query, with the model's own answer; may be repeated.")
    ] = None,
    answer: Annotated[list[str] | None, typer.Option(help="What is said to a prompt, in the order of prompts.")] = None,
    file: Annotated[str, typer.Option("--output", "-o", help="Where to write the page; a URL may be.")] = "report.html",
    k: Annotated[int, typer.Option("-k", min=1, help="Proponents and opponents of each query.")] = REPORTED,
    kernel: Annotated[
        KernelName | None, typer.Option(help="Which kernel.  [default: grad_cos, or the index's own metric]")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Most self-influential samples.")] = REPORTED_INFLUENTIAL,
    as_json: Json = False,
) -> None:
    """Write a page on an index and on some queries: one file that needs no network."""
    from gradindex.cli import inputs
    from gradindex.loading import load
    from gradindex.report import write_report
    from gradindex.store.location import size

    index = load(path, inputs.job_of(job))
    x = y = ids = None
    if queries is not None and queries.endswith(".npz"):
        x, y = inputs.read_rows(local_file(queries))
    elif queries is not None:
        ids = inputs.ids_of(queries)
    words = {"text": text or None, "prompt": prompt or None, "answer": answer or None}
    written = write_report(index, file, x, y, ids=ids, k=k, top=top, kernel=kernel, **words)
    bytes_ = size(written)
    found = {"report": str(written), "bytes": bytes_}
    typer.echo(json.dumps(found) if as_json else f"Wrote {written} ({bytes_:,} bytes).")
