"""Who does the work of a build: this process, or the workers of a cluster."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from gradindex.ann import build as indexing
from gradindex.job import Job
from gradindex.lifecycle import embed_shards
from gradindex.store import Store

if TYPE_CHECKING:
    import faiss

Advance = Callable[[int], None]
"""Called with the number of rows that were done since the last call."""


class Executor(Protocol):
    """Does the two long steps of the build of one store; a context that lets go of what it took for them."""

    def __enter__(self) -> "Executor": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def embed_missing(self, progress: bool | None = None) -> int:
        """Embed and publish the shards that the store lacks; return how many samples were embedded."""
        ...

    def add(self, index: "faiss.Index", store: Store, dim: int, advance: Advance) -> None:
        """Add all rows of a store, folded to `dim` numbers, to a trained FAISS index, in the order of the rows."""
        ...


class Cluster(Protocol):
    """Where the workers of a build come from, such as `gradindex.Ray`."""

    def workers_of(self, job: Job, store: Store) -> Executor:
        """Return the executor of one build; nothing is started before its context is entered."""
        ...


class ThisProcess:
    """The executor of a build without a cluster.

    Parameters
    ----------
    job, store
        What is built.
    """

    def __init__(self, job: Job, store: Store) -> None:
        self._job, self._store = job, store

    def __enter__(self) -> "ThisProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def embed_missing(self, progress: bool | None = None) -> int:
        """Embed and publish the shards that the store lacks; return how many samples were embedded."""
        return embed_shards.embed_missing(self._job, self._store, progress)

    def add(self, index: "faiss.Index", store: Store, dim: int, advance: Advance) -> None:
        """Add all rows of a store, folded to `dim` numbers, to a trained FAISS index, in the order of the rows."""
        indexing.add(index, store, dim, advance)
