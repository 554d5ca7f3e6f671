"""A build on Ray: the driver hands out shards, trains the quantiser, and puts the inverted lists together."""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradindex.ann import build as indexing
from gradindex.compute import landmarks
from gradindex.data.columns import as_columns
from gradindex.distributed import inverted_lists
from gradindex.distributed.build_worker import Worker
from gradindex.distributed.connection import Connection, reachable
from gradindex.distributed.job_sender import recipe
from gradindex.distributed.pool import Pool
from gradindex.job import Job
from gradindex.lifecycle.embed_shards import check_begun, check_versions
from gradindex.lifecycle.executor import Advance
from gradindex.runtime.log import log
from gradindex.runtime.progress import progress_bar
from gradindex.store import Store

if TYPE_CHECKING:
    import faiss
    from ray.actor import ActorHandle

    from gradindex.distributed.options import Ray


class Workers:
    """The workers of one build; a context that ends them.

    Parameters
    ----------
    options
        The cluster.
    job, store
        What is built.
    """

    def __init__(self, options: "Ray", job: Job, store: Store) -> None:
        self._options, self._job, self._store = options, job, store
        self._pool: Pool | None = None

    def __enter__(self) -> "Workers":
        self._connection = Connection(self._options)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.close()
        self._connection.close()

    def embed_missing(self, progress: bool | None = None) -> int:
        """Embed and publish the shards that the store lacks; return how many samples were embedded."""
        store, missing = self._store, self._store.missing()
        if not missing:
            return 0
        check_versions(store)
        extra = as_columns(self._job.columns, store.header.rows)  # raises here rather than on every worker
        projector = landmarks.bound(store, self._job, create=True)  # saved, for the workers to open
        check_begun(self._job, store, projector, extra, missing)
        spans = {number: store.header.span(number) for number in missing}
        left = sum(stop - start for start, stop in spans.values())
        embedded = 0
        with progress_bar("Embedding", store.header.rows, store.header.rows - left, show=progress) as advance:
            for number, rows in self._workers(len(missing)).run("embed", missing):
                embedded += rows
                advance(spans[number][1] - spans[number][0])
        return embedded

    def add(self, index: "faiss.Index", store: Store, dim: int, advance: Advance) -> None:
        """Add all rows of a store to a trained index as `indexing.add` does, encoded by the workers."""
        if not inverted_lists.spreads(index):
            indexing.add(index, store, dim, advance)
            return
        numbers = range(store.header.shards)
        trained = (self._connection.ray.put(inverted_lists.sent(index)),)
        early: dict[int, Any] = {}
        turn = 0
        for number, codes in self._workers(len(numbers)).run("encode", numbers, trained, dim):
            early[number] = codes
            while turn in early:
                inverted_lists.append(index, early.pop(turn))
                start, stop = store.header.span(turn)
                advance(stop - start)
                turn += 1

    def _workers(self, tasks: int) -> Pool:
        if self._pool is None:
            header = self._store.header
            how = recipe(self._job, shipped="working_dir" in (self._options.runtime_env or {}))
            path = reachable(self._store.path)
            count = min(self._connection.count(), tasks)
            log.info("%d workers: %s", count, self._connection.state())

            def spawn() -> "ActorHandle":
                arguments = how, path, header.seal, header.backend, header.threads
                return self._connection.spawn(Worker, *arguments, threads=header.threads)

            self._pool = Pool(self._connection, spawn, count)
        return self._pool
