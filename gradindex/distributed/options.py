"""Where and with how much to run: the options of the Ray engine. Needs no Ray."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.distributed.build import Workers
    from gradindex.distributed.index import ClusterIndex
    from gradindex.evaluation.training import Task, Trainer
    from gradindex.job import Job
    from gradindex.store import Store
    from gradindex.store.location import Location


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Run a build, or the lookups of an index, on a Ray cluster.

    Every worker must see the index's directory: a file system that all machines mount at the same place, or a URL.
    A program that is connected to a cluster already keeps that connection.

    Parameters
    ----------
    address
        None: start Ray on this machine; ``'auto'``: the cluster that this machine is part of; else ``'host:port'``.
    workers
        How many actors: of a build, or parts of an index; None: as many as the cluster has resources for now.
    resources
        What a worker takes: ``'CPU'`` (1 if not said), ``'GPU'``, ``'memory'`` (bytes), or names of your own.
    replicas
        Of each part of an index that is searched, so that a lost worker costs no wait.
    runtime_env
        What Ray prepares for workers, such as ``{'working_dir': '.'}`` to send them the code of this directory.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a number is too small.
    """

    address: str | None = None
    workers: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    replicas: int = 1
    runtime_env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.address is not None and not isinstance(self.address, str):
            raise TypeError(f"address must be None, 'auto' or 'host:port', got {self.address!r}.")
        for name in ("workers", "replicas"):
            value = getattr(self, name)
            if value is None and name == "workers":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        for name in ("resources", "runtime_env"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a mapping of names to values, got {value!r}.")
        for name, amount in self.resources.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount >= 0:
                raise ValueError(f"resources[{name!r}] must be a number of 0 or more, got {amount!r}.")
        object.__setattr__(self, "resources", {"CPU": 1, **self.resources})

    def workers_of(self, job: "Job", store: "Store") -> "Workers":
        """Return the workers of one build, a `gradindex.lifecycle.executor.Executor`; they start in its context."""
        from gradindex.distributed.build import Workers

        return Workers(self, job, store)

    def connect(self, path: "str | Location", job: "Job | None") -> "ClusterIndex":
        """Open the index at `path` on the cluster; see `gradindex.load`."""
        from gradindex.distributed.index import ClusterIndex

        return ClusterIndex.connect(path, job, self)

    def train(self, trainer: "Trainer", tasks: "Sequence[Task]") -> "Iterator[tuple[int, str | None]]":
        """Train models of a retraining bank; see `gradindex.evaluation.training.Cluster`."""
        from gradindex.distributed.training import train

        return train(self, trainer, tasks)

    def actor_options(self) -> dict[str, Any]:
        """Return the resources of a worker in the form that Ray's actors take."""
        own = dict(self.resources)
        found: dict[str, Any] = {"num_cpus": own.pop("CPU"), "num_gpus": own.pop("GPU", 0)}
        if memory := own.pop("memory", 0):
            found["memory"] = int(memory)
        return {**found, "resources": own}
