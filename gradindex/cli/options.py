"""Arguments and options that several commands have."""

from typing import Annotated

import typer

JobName = Annotated[
    str,
    typer.Argument(metavar="MODULE:FUNCTION", help="Function that returns a gradindex.Job; MODULE may be a .py file."),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Directory of the index, or a URL such as s3://bucket/index.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
