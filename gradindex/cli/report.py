"""The command `gradindex report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gradindex.cli.options import Json
from gradindex.kernels import Kernel


def report(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of the index.")],
    job: Annotated[
        str,
        typer.Argument(metavar="MODULE:FUNCTION", help="Function that returns the gradindex.Job it was built from."),
    ],
    queries: Annotated[
        str | None,
        typer.Option(help="Training rows such as 3,14, or FILE.npz with inputs x and, optionally, labels y."),
    ] = None,
    file: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")] = Path("report.html"),
    k: Annotated[int, typer.Option("-k", min=1, help="Proponents and opponents of each query.")] = 8,
    kernel: Annotated[
        Kernel | None, typer.Option(help="Which kernel.  [default: grad_cos, or the index's own metric]")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Most self-influential samples.")] = 12,
    as_json: Json = False,
) -> None:
    """Write a page on an index and on some queries: one file that needs no network."""
    import gradindex
    from gradindex.cli.app import _ids, _job, _read_rows
    from gradindex.report import write_report

    index = gradindex.load(path, _job(job))
    x = y = ids = None
    if queries is not None and queries.endswith(".npz"):
        x, y = _read_rows(Path(queries))
    elif queries is not None:
        ids = _ids(queries)
    write_report(index, file, x, y, ids=ids, k=k, top=top, kernel=kernel)
    size = file.stat().st_size
    typer.echo(json.dumps({"report": str(file), "bytes": size}) if as_json else f"Wrote {file} ({size:,} bytes).")
