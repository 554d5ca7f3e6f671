"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer


def local_file(text: str) -> Path:
    """Return a path of this machine, for options that take no URL; what typer parses."""
    from gradindex.store.location import on_disk

    try:
        return on_disk(str(text), "this option")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


JobName = Annotated[
    str,
    typer.Argument(metavar="MODULE:FUNCTION", help="Function that returns a gradindex.Job; MODULE may be a .py file."),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Directory of the index, or a URL such as s3://bucket/index.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
FILE: dict[str, Any] = {"parser": local_file, "metavar": "PATH"}
"""For options whose file or directory is on this machine."""
