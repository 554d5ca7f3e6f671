"""Long work in short pieces, between which others may use what it uses."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Turn(Protocol):
    """Runs a piece of work, when its turn comes, and returns what it returns."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Run the piece."""


def at_once(work: Callable[[], T]) -> T:
    """Run a piece of work here and now: nobody else is there."""
    return work()
