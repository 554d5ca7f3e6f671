"""Where commands print. What users named (classes, columns, paths) is printed as it is: no markup, no emoji codes."""

import os

from rich.console import Console

_LEAST, _USUAL = 20, 80  # columns


def width(columns: str) -> int | None:
    """Return how wide to print where $COLUMNS says 0, as where there is no terminal, or next to nothing; else None."""
    if not columns.isdigit() or int(columns) >= _LEAST:
        return None
    return _LEAST if int(columns) else _USUAL


out = Console(markup=False, emoji=False, width=width(os.environ.get("COLUMNS", "")))
err = Console(stderr=True, markup=False, emoji=False, width=width(os.environ.get("COLUMNS", "")))
