"""One thread that answers queries, those that are alike together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


class Full(RuntimeError):
    """Too much is waiting already."""


class Closed(RuntimeError):
    """The worker takes nothing more."""


@dataclass
class Task:
    """A request's share of a batch: `size` queries that may be run with others of the same `key`.

    `context` is where spans of its work belong, see `tracing`.
    """

    key: Hashable
    payload: Any
    size: int
    context: object = None
    future: "Future[Any]" = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0


class Worker:
    """Runs tasks in one thread, in the order they came; tasks with one key run as one batch.

    Parameters
    ----------
    run
        ``run(key, tasks) -> results``, one a task, in order. If it raises for several tasks they are run again, each
        by itself, so that one cannot spoil another's answer.
    most
        Queries in a batch.
    waiting
        Queries that may wait.
    linger
        Seconds to wait for as many queries as the last batch had; a lone client never waits.
    name
        Of the thread.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Task]], Sequence[Any]],
        *,
        most: int,
        waiting: int,
        linger: float,
        name: str = "gradindex-worker",
    ) -> None:
        self._run, self._most, self._limit, self._linger = run, most, waiting, linger
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._last: dict[Hashable, int] = {}
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Queries that wait."""
        return sum(task.size for task in list(self._tasks))

    @property
    def closing(self) -> bool:
        """Whether nothing more is taken."""
        return self._closing

    def submit(self, task: Task) -> "Future[Any]":
        """Queue a task; its future gets the result.

        Raises
        ------
        Full
            If more than the limit would wait.
        Closed
            After `close`.
        """
        with self._changed:
            if self._closing:
                raise Closed("The service is stopping.")
            if sum(one.size for one in self._tasks) + task.size > self._limit:
                raise Full(f"{self._limit} queries are waiting already.")
            self._tasks.append(task)
            self._changed.notify()
        return task.future

    def close(self) -> None:
        """Run what is queued, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while batch := self._next():
            self._begin(batch)
            del batch  # or it would hold its index until the next request

    def _begin(self, batch: list[Task]) -> None:
        live = [task for task in batch if task.future.set_running_or_notify_cancel()]
        now = time.perf_counter()
        for task in live:
            task.waited = now - task.since
        if live:
            self._answer(live)

    def _next(self) -> list[Task]:
        """Return the oldest task and those that may run with it; [] when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._closing)
            if not self._tasks:
                return []
            key = self._tasks[0].key
            expected = min(self._last.get(key, 1), self._most)
            if expected > 1 and not self._closing:
                self._changed.wait_for(lambda: self._alike(key) >= expected or self._closing, self._linger)
            batch: list[Task] = []
            rest, size = deque[Task](), 0
            for task in self._tasks:
                fits = task.key == key and (not batch or size + task.size <= self._most)
                if fits:
                    batch.append(task)
                    size += task.size
                else:
                    rest.append(task)
            self._tasks = rest
            self._last = {key: size}
            return batch

    def _alike(self, key: Hashable) -> int:
        return sum(task.size for task in self._tasks if task.key == key)

    def _answer(self, batch: Sequence[Task]) -> None:
        try:
            results = self._run(batch[0].key, batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            log.info("a batch of %d requests failed, running them one by one: %s", len(batch), error)
            for task in batch:
                self._answer([task])
            return
        for task, result in zip(batch, results, strict=True):
            task.future.set_result(result)
