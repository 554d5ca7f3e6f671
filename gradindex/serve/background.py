"""Work that takes longer than a request may: done once, in a thread of its own, while requests ask how far it is."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from gradindex.serve.review_models import Making

log = logging.getLogger(__name__)
T = TypeVar("T")


class Stopped(RuntimeError):
    """The service is stopping, so that nobody waits for this work any more."""


class Background(Generic[T]):
    """Makes one thing at a time, and holds the last one.

    Parameters
    ----------
    name
        What is made, for the log.
    stages
        Names of what it does, in this order.
    """

    def __init__(self, name: str, stages: Sequence[str]) -> None:
        self._name, self._stages = name, tuple(stages)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._made: tuple[str, T] | None = None
        self._stage, self._began, self._why = "", 0.0, ""
        self.stopping = False

    def of(self, key: str) -> T | None:
        """Return what was made for a key; None if there is none (yet)."""
        made = self._made
        return made[1] if made is not None and made[0] == key else None

    def hold(self, key: str, made: T) -> None:
        """Hold what was found made."""
        self._made = key, made

    def making(self, key: str) -> Making:
        """Return how far the work for a key is."""
        with self._lock:
            if self.of(key) is not None:
                return Making(state="ready", steps=len(self._stages), step=len(self._stages))
            if self._thread is not None:
                at = self._stages.index(self._stage) if self._stage in self._stages else 0
                seconds = time.monotonic() - self._began
                return Making(
                    state="running", stage=self._stage, step=at, steps=len(self._stages), seconds=round(seconds, 1)
                )
            return Making(state="failed" if self._why else "none", detail=self._why, steps=len(self._stages))

    def start(self, key: str, make: Callable[[Callable[[str], None]], T]) -> None:
        """Begin to make something for a key with `make(say)`, if it is neither there nor being made."""
        with self._lock:
            if self._thread is not None or self.of(key) is not None or self.stopping:
                return
            self._stage, self._began, self._why = self._stages[0], time.monotonic(), ""
            # A daemon: the process does not wait for it at its end, since what it makes can be made again.
            self._thread = threading.Thread(
                target=self._run, args=(key, make), name=f"gradindex-{self._name}", daemon=True
            )
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the thread's end; return whether it has ended."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _run(self, key: str, make: Callable[[Callable[[str], None]], T]) -> None:
        why = ""
        try:
            self._made = key, make(self._say)
            log.info("made the %s in %.1f s", self._name, time.monotonic() - self._began)
        except Stopped:
            log.info("stopped before the %s was made", self._name)
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            log.exception("the %s failed", self._name)
        with self._lock:
            self._thread, self._why = None, why

    def _say(self, stage: str) -> None:
        if self.stopping:
            raise Stopped
        self._stage = stage
