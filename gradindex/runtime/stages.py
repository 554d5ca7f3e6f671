"""How long each stage of an answer took."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

Interval = tuple[str, float, float]
"""A stage's name, and when it began and ended, as `time.perf_counter` has it."""

_here = threading.local()


@contextmanager
def recorded(intervals: list[Interval] | None = None) -> Iterator[dict[str, float]]:
    """Collect the seconds of every `stage` that this thread goes through meanwhile, by name.

    Parameters
    ----------
    intervals
        A list that gets each of them, in the order of their ends.
    """
    before = getattr(_here, "seconds", None), getattr(_here, "intervals", None)
    seconds: dict[str, float] = {}
    _here.seconds, _here.intervals = seconds, intervals
    try:
        yield seconds
    finally:
        _here.seconds, _here.intervals = before


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time this takes to what `recorded` collects, if anything does; stages must not nest."""
    seconds: dict[str, float] | None = getattr(_here, "seconds", None)
    if seconds is None:
        yield
        return
    began = time.perf_counter()
    try:
        yield
    finally:
        ended = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + ended - began
        intervals: list[Interval] | None = getattr(_here, "intervals", None)
        if intervals is not None:
            intervals.append((name, began, ended))
