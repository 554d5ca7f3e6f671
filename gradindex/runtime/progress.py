"""Progress bars for people: on a terminal only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What `progress_bar` yields."""

    def __call__(self, done: int) -> None:
        """Say that `done` more units are done."""


@contextmanager
def progress_bar(title: str, total: int, done: int = 0, show: bool | None = None) -> Iterator[Bar]:
    """Show a bar with rate and time left on standard error.

    Parameters
    ----------
    title
        What is being done.
    total
        Units to do.
    done
        Units already done.
    show
        None: only if standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done, rate="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            speed = progress.tasks[task].speed
            progress.update(task, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance
