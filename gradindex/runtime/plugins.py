"""What other packages add: objects that they name in entry points, imported when one is asked for by its name."""

import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

SKETCHES, METRICS = "gradindex.sketches", "gradindex.metrics"
"""Groups of entry points."""


@dataclass(frozen=True)
class Plugin:
    """An object of another package.

    Parameters
    ----------
    value
        What the entry point names.
    described
        Its name, package, version and group, for messages.
    """

    value: object
    described: str


def names(group: str) -> list[str]:
    """Return the names that installed packages have in a group, sorted; nothing is imported."""
    return sorted({entry.name for entry in _entries(group, tuple(sys.path))})


def load(group: str, name: str) -> Plugin | None:
    """Return what a package has under a name of a group; None if no installed package has it.

    Raises
    ------
    ValueError
        If two packages have it.
    ImportError
        If it cannot be imported; both name the packages.
    """
    found = [entry for entry in _entries(group, tuple(sys.path)) if entry.name == name]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"Several packages have this name: {'; '.join(map(_described, found))}. Uninstall all but one."
        )
    described = _described(found[0])
    try:
        return Plugin(found[0].load(), described)
    except Exception as error:  # whatever the package's modules raise
        raise ImportError(f"{described} cannot be loaded: {type(error).__name__}: {error}") from error


def _described(entry: EntryPoint) -> str:
    package = "an unknown package" if entry.dist is None else f"package {entry.dist.name} {entry.dist.version}"
    return f"plugin {entry.name!r} of {package} ({entry.value}, group {entry.group})"


@cache
def _entries(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of packages on a path of modules, read once."""
    return tuple(entry_points(group=group))
