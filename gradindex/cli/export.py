"""The command `gradindex export`."""

import dataclasses
import json
from typing import Annotated

import typer

from gradindex.cli.console import out
from gradindex.cli.options import Json, Out


def export(
    path: Out,
    parquet: Annotated[str | None, typer.Option(help="New directory for Parquet files, or a URL.")] = None,
    faiss: Annotated[str | None, typer.Option(help="New file for the FAISS index with ids, or a URL.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the Parquet vectors: 'float32' or 'float16'.")] = "float32",
    as_json: Json = False,
) -> None:
    """Write the embeddings for other programs: Parquet for vector databases, FAISS for its readers."""
    from gradindex.interop.export import export as write

    done = write(path, parquet=parquet, faiss=faiss, dtype=dtype)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(done)))
    else:
        out.print(str(done), markup=False, highlight=False)
