"""Where commands print. What users named (classes, columns, paths) is printed as it is: no markup, no emoji codes."""

from rich.console import Console

out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)
