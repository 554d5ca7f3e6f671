"""A build's worker: embeds whole shards and publishes them, encodes shards for the FAISS index."""

import os
from typing import TYPE_CHECKING, Any

from gradindex.distributed.job_sender import Recipe

if TYPE_CHECKING:
    from ray import ObjectRef


class Worker:
    """One process of a build; the model is loaded once.

    Parameters
    ----------
    recipe
        Makes the job.
    path
        The store, as this machine reaches it.
    seal
        Of the header that the build was begun with.
    backend, threads
        The framework, and how many threads it computed with when the build was begun.
    """

    def __init__(self, recipe: Recipe, path: str, seal: str, backend: str, threads: int) -> None:
        self._recipe, self._path, self._seal = recipe, path, seal
        self._backend, self._threads = backend, threads
        self._trained: tuple[Any, Any] = (None, None)

    def start(self) -> str:
        """Load the job and compare it with the store; return the id of this machine's node.

        Raises
        ------
        FileNotFoundError
            If the store is not to be seen from here.
        MismatchError
            If it is another one, or the job or the installed packages are not those it was begun with.
        """
        import ray

        from gradindex.compute import landmarks
        from gradindex.data.columns import as_columns
        from gradindex.errors import MismatchError
        from gradindex.lifecycle.embed_shards import check_versions
        from gradindex.lifecycle.header import check_job
        from gradindex.runtime import threads
        from gradindex.store import Header, Store
        from gradindex.store.location import exists, locate
        from gradindex.store.store import HEADER

        threads.fix(self._backend, self._threads)
        path = locate(self._path)
        where = ray.util.get_node_ip_address()
        if not exists(path / HEADER):
            raise FileNotFoundError(
                f"{path} holds no {HEADER} on {where}. All machines of the cluster must see the index's directory: "
                "give a shared file system or a URL."
            )
        self._store = Store(path, Header.read(path / HEADER))
        header = self._store.header
        if header.seal != self._seal:
            raise MismatchError(f"{path} is another store on {where} than for the program that builds it.")
        self._job = self._recipe.make()
        check_versions(self._store)
        check_job(self._store, self._job)
        with threads.using(header.backend, header.threads):
            self._projector = landmarks.bound(self._store, self._job)
        self._columns = as_columns(self._job.columns, header.rows)
        return str(ray.get_runtime_context().get_node_id())

    def embed(self, number: int) -> int:
        """Embed and publish a shard, unless another did; return how many samples were embedded."""
        from gradindex.lifecycle.embed_shards import embed_shard
        from gradindex.runtime import threads

        if self._store.has(number):
            return 0
        with threads.using(self._store.header.backend, self._store.header.threads):
            return embed_shard(self._job, self._store, self._projector, self._columns, number)

    def encode(self, number: int, trained: "tuple[ObjectRef]", dim: int) -> Any:
        """Return a shard's rows as codes (n, bytes) of a trained index, which `trained` refers to."""
        import ray

        from gradindex.distributed import inverted_lists

        if self._trained[0] != trained[0]:
            self._trained = (trained[0], inverted_lists.received(ray.get(trained[0])))
        return inverted_lists.encode(self._trained[1], self._store, number, dim)

    def process(self) -> int:
        """Return the id of this process."""
        return os.getpid()
