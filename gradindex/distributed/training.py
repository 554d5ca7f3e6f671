"""Models of a retraining bank on Ray: actors train them, and publish each in the bank's directory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradindex.distributed.connection import Connection, reachable
from gradindex.distributed.pool import Pool
from gradindex.store.location import locate

if TYPE_CHECKING:
    from gradindex.distributed.options import Ray
    from gradindex.evaluation.training import Task, Trainer


class TrainWorker:
    """One process that trains models.

    Parameters
    ----------
    sent
        A reference to the trainer and all tasks in Ray's object store.
    """

    def __init__(self, sent: tuple[Any]) -> None:
        self._sent = sent

    def start(self) -> str:
        """Receive the trainer; return the id of this machine's node.

        Raises
        ------
        FileNotFoundError
            If the bank is not to be seen from here.
        """
        import ray

        from gradindex.evaluation.bank_store import HEADER
        from gradindex.store.location import exists

        self._trainer, self._tasks = ray.get(self._sent[0])
        if not exists(locate(self._trainer.path) / HEADER):
            raise FileNotFoundError(
                f"{self._trainer.path} holds no {HEADER} on {ray.util.get_node_ip_address()}. All machines of the "
                "cluster must see the bank's directory: give a shared file system or a URL."
            )
        return str(ray.get_runtime_context().get_node_id())

    def train(self, number: int) -> str | None:
        """Train and publish one model; return why it failed, if it did."""
        error: str | None = self._trainer(self._tasks[number])
        return error


def train(options: "Ray", trainer: "Trainer", tasks: "Sequence[Task]") -> "Iterator[tuple[int, str | None]]":
    """Yield the position of each task when its model is published, and why it failed, if it did.

    Parameters
    ----------
    options
        The cluster.
    trainer
        What trains; it is sent to every worker.
    tasks
        The models.
    """
    connection = Connection(options)
    pool: Pool | None = None
    try:
        trainer = replace(trainer, path=reachable(locate(trainer.path)))
        sent = (connection.ray.put((trainer, list(tasks))),)
        count = min(connection.count(), len(tasks))
        pool = Pool(connection, lambda: connection.spawn(TrainWorker, sent, threads=1), count)
        yield from pool.run("train", range(len(tasks)))
    finally:
        if pool is not None:
            pool.close()
        connection.close()
