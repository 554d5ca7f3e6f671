"""How long each stage of an answer took."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


@contextmanager
def recorded() -> Iterator[dict[str, float]]:
    """Collect the seconds of every `stage` that this thread goes through meanwhile, by name."""
    before: dict[str, float] | None = getattr(_here, "seconds", None)
    seconds: dict[str, float] = {}
    _here.seconds = seconds
    try:
        yield seconds
    finally:
        _here.seconds = before


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
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
