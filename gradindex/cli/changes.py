"""The commands that change an index: `gradindex add`, `remove` and `compact`."""

from typing import Annotated

import typer
from rich.console import Console

Out = Annotated[str, typer.Argument(metavar="OUT", help="Directory of the index, or a URL such as s3://bucket/index.")]


def add(
    path: Out,
    job: Annotated[
        str,
        typer.Argument(metavar="MODULE:FUNCTION", help="The job of the build, with new samples last."),
    ],
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.  [default: as in the build]")] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a shard.  [default: as in the build]")] = None,
) -> None:
    """Add the samples that a job's dataset has behind those of the index; continues if it was interrupted."""
    import gradindex
    from gradindex.cli.app import _job
    from gradindex.store import Store

    before = len(Store.open(path))
    index = gradindex.add(path, _job(job), batch_size=batch_size, shard_rows=shard_rows)
    if index.summary is None:
        Console().print(f"Nothing to add: the index has all {before} samples.")
    else:
        Console().print(f"Added {len(index) - before} samples to {before}.")
        Console().print(str(index.summary), highlight=False)


def remove(
    path: Out,
    ids: Annotated[str, typer.Option("--ids", help="Training rows to remove, such as 3,14.")],
) -> None:
    """Remove training samples from all answers; indexes that are open now keep finding them."""
    from gradindex.cli.app import _ids
    from gradindex.store import Store

    count = Store.open(path).remove(_ids(ids))
    Console().print(f"Removed {count} samples.")


def compact(path: Out) -> None:
    """Rewrite an index without the samples that were removed; ids keep their meaning."""
    import gradindex

    Console().print(f"Left out {gradindex.compact(path)} removed samples.")
