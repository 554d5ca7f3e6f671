"""Workers that take shards as they become free: lost ones are replaced, and what they held is handed out again.

Ray gives at-least-once; that a shard is there exactly once is the store's doing.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradindex.distributed.connection import Connection
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from ray.actor import ActorHandle

TRIES = 3
"""So often may a shard fail, or workers fail to start one after the other, before the work stops."""
_LOST_STARTS = 10  # workers that vanish while starting, one after the other
_PATIENCE = 30.0  # seconds without news before saying what is waited for


@dataclass
class _Worker:
    actor: Any
    node: str | None = None  # None until it has started
    task: int | None = None


class Pool:
    """A fixed number of actors, replaced when they die.

    Parameters
    ----------
    connection
        Where.
    spawn
        Makes an actor with a method ``start`` that returns its node's id.
    count
        How many.
    """

    def __init__(self, connection: Connection, spawn: "Callable[[], ActorHandle]", count: int) -> None:
        self._connection, self._spawn = connection, spawn
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}
        self._failed_starts = self._lost_starts = 0
        for _ in range(count):
            self._begin()

    def run(self, method: str, tasks: Sequence[int], *arguments: object) -> Iterator[tuple[int, Any]]:
        """Yield (task, result) of ``worker.method(task, *arguments)`` for every task, in the order they finish.

        Raises
        ------
        Exception
            What a worker raised, if one task failed three times, or no worker can start.
        RuntimeError
            If one task ended its worker's process three times while its machine lived on.
        """
        exceptions = self._connection.ray.exceptions
        waiting, left = deque(tasks), len(tasks)
        failed: Counter[int] = Counter()
        while left:
            self._hand_out(waiting, method, arguments)
            ready, _ = self._connection.ray.wait(list(self._busy), num_returns=1, timeout=_PATIENCE)
            if not ready:
                self._explain_wait()
                continue
            worker = self._busy.pop(ready[0])
            try:
                result = self._connection.ray.get(ready[0])
            except exceptions.RayTaskError as error:
                self._note_failure(worker, error, failed, waiting)
            except exceptions.RuntimeEnvSetupError:
                raise
            except exceptions.RayError as error:
                self._note_loss(worker, error, failed, waiting)
            else:
                self._idle.append(worker)
                self._failed_starts = self._lost_starts = 0
                if worker.task is None:
                    worker.node = result
                else:
                    task, worker.task = worker.task, None
                    left -= 1
                    yield task, result

    def close(self) -> None:
        """End all workers."""
        for worker in [*self._idle, *self._busy.values()]:
            self._connection.kill(worker.actor)
        self._idle, self._busy = [], {}

    def _begin(self) -> None:
        worker = _Worker(self._spawn())
        self._busy[worker.actor.start.remote()] = worker

    def _hand_out(self, waiting: deque[int], method: str, arguments: tuple[object, ...]) -> None:
        while waiting and self._idle:
            worker = self._idle.pop()
            worker.task = waiting.popleft()
            self._busy[getattr(worker.actor, method).remote(worker.task, *arguments)] = worker

    def _note_failure(self, worker: _Worker, error: Exception, failed: Counter[int], waiting: deque[int]) -> None:
        """Try a shard again whose worker raised, elsewhere if possible; replace a worker that did not start."""
        cause = getattr(error, "cause", None)
        cause = cause if isinstance(cause, Exception) else error
        task, worker.task = worker.task, None
        if task is None:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                cause.add_note(f"{TRIES} workers could not start.")
                raise cause from error
            log.warning("a worker could not start and is replaced: %s", cause)
            self._connection.kill(worker.actor)
            self._begin()
            return
        failed[task] += 1
        if failed[task] >= TRIES:
            cause.add_note(f"Shard {task} failed {TRIES} times; this is the last error.")
            raise cause from error
        log.warning("shard %d failed and is tried again (%d of %d): %s", task, failed[task] + 1, TRIES, cause)
        waiting.append(task)
        self._idle.insert(0, worker)

    def _note_loss(self, worker: _Worker, error: Exception, failed: Counter[int], waiting: deque[int]) -> None:
        """Put another worker in the place of a lost one, and hand out its shard again."""
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
        log.warning("a worker was lost%s: %s", "" if worker.task is None else f" with shard {worker.task}", reason)
        self._connection.kill(worker.actor)
        if worker.task is None:
            self._lost_starts += 1
            if self._lost_starts >= _LOST_STARTS:
                raise RuntimeError(f"{_LOST_STARTS} workers were lost while they started, the last by: {reason}")
        else:
            # A machine that goes away says nothing against the shard; a process that ends on its own does.
            failed[worker.task] += self._connection.node_lives(worker.node)
            if failed[worker.task] >= TRIES:
                raise RuntimeError(
                    f"Shard {worker.task} ended its worker's process {TRIES} times (out of memory?): {reason}"
                ) from error
            waiting.appendleft(worker.task)
        self._begin()

    def _explain_wait(self) -> None:
        if all(worker.node is None for worker in self._busy.values()) and not self._idle:
            log.warning("waiting for a worker to start: %s", self._connection.state())
