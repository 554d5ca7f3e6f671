"""The connection to a cluster, and the actors on it."""

import logging
import signal
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradindex.errors import missing
from gradindex.runtime.log import log
from gradindex.store.location import Location

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from gradindex.distributed.options import Ray


class Connection:
    """A connection to Ray: the program's own if it has one, else a new one that `close` ends.

    Parameters
    ----------
    options
        Where to connect, and what a worker takes.

    Raises
    ------
    ImportError
        If Ray is not installed.
    ConnectionError
        If no cluster answers.
    """

    def __init__(self, options: "Ray") -> None:
        try:
            import ray
        except ImportError:
            raise missing("Ray", "gradindex[ray]") from None
        self.ray: Any = ray
        self.options = options
        self._owned = not ray.is_initialized()
        if self._owned:
            _connect(ray, options)

    def spawn(self, kind: type, *arguments: object, threads: int = 0) -> "ActorHandle":
        """Return the handle of a new actor of class `kind`, which Ray starts where there is room.

        `threads` is how many its libraries may use; 0 leaves it to Ray.
        """
        environment = dict(self.options.runtime_env or {}) if not self._owned else {}
        if threads:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            environment["env_vars"] = {**environment.get("env_vars", {}), **dict.fromkeys(names, str(threads))}
        actor = self.ray.remote(kind).options(
            **self.options.actor_options(), scheduling_strategy="SPREAD", runtime_env=environment or None
        )
        return actor.remote(*arguments)

    def count(self) -> int:
        """Return how many workers were asked for, or fit the cluster now (at least one)."""
        if self.options.workers is not None:
            return self.options.workers
        there = self.ray.available_resources()
        need = self.options.resources
        return max(1, min(int(there.get(name, 0) // amount) for name, amount in need.items() if amount))

    def node_lives(self, node: str | None) -> bool:
        """Whether Ray believes a node to be alive."""
        return any(one["NodeID"] == node and one["Alive"] for one in self.ray.nodes())

    def kill(self, actor: "ActorHandle") -> None:
        """End an actor, if it is not gone already."""
        try:
            self.ray.kill(actor, no_restart=True)
        except (self.ray.exceptions.RayError, ValueError, RuntimeError) as error:
            log.debug("an actor was gone before it was ended: %s", error)

    def state(self) -> str:
        """Return what the cluster has and what a worker needs, in words."""
        total = {name: amount for name, amount in self.ray.cluster_resources().items() if not name.startswith("node:")}
        return f"the cluster has {total}, a worker takes {dict(self.options.resources)}"

    def close(self) -> None:
        """End the connection, unless it is the program's own."""
        if self._owned and self.ray.is_initialized():
            self.ray.shutdown()
        self._owned = False


def reachable(path: Location) -> str:
    """Return a path or URL as other processes, with other working directories, can use it."""
    return str(path.resolve() if isinstance(path, Path) else path)


def _connect(ray: ModuleType, options: "Ray") -> None:
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(
            address=options.address or "local",
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
            runtime_env=dict(options.runtime_env) if options.runtime_env else None,
            **({} if options.address else {"include_dashboard": False}),
        )
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of ours
