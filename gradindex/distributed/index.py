"""An index whose parts are searched by actors; answers are merged, and are those of the whole."""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradindex.ann import files as index_files
from gradindex.data.source import Ids
from gradindex.distributed.cluster_rows import ClusterRows, Parts
from gradindex.distributed.connection import Connection, reachable
from gradindex.distributed.job_sender import recipe
from gradindex.distributed.search_worker import ranges
from gradindex.errors import DamagedIndexError
from gradindex.index.index import Index
from gradindex.job import Job
from gradindex.lifecycle.header import check_job
from gradindex.search.row_search import LocalRows
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.distributed.options import Ray


class ClusterIndex(Index):
    """An `Index` whose rows are searched, and whose candidates are evaluated, by a cluster's actors.

    Answers are those of `Index`: the parts search the same inverted lists, and scans compare the same rows. Proofs
    (``certify=True``) and audits take their bounds here. Close it to let the actors go; it is a context, too.

    Parameters
    ----------
    store
        A complete store with a FAISS index that has parts: ``Flat``, ``SQ8``, or inverted lists.
    job
        As for `Index`.
    options
        The cluster: `workers` is the number of parts.

    Raises
    ------
    ValueError
        If the FAISS index has no parts (graphs).
    """

    def __init__(self, store: Store, job: Job | None, options: "Ray") -> None:
        super().__init__(store, job, searcher=index_files.load(store))
        index_files.check(store)
        if not self.searcher.filters:
            raise ValueError(
                f"An index {self.searcher.factory!r} cannot be searched in parts. Open it without an engine, or build "
                "inverted lists, such as 'IVF1024,SQ8'."
            )
        self._connection = Connection(options)
        try:
            shipped = "working_dir" in (options.runtime_env or {})
            how = None if job is None else recipe(job, shipped=shipped)
            count = options.workers or max(1, self._connection.count() // options.replicas)
            shares = ranges(len(self), count)
            where = reachable(store.path), store.state
            self.parts = Parts(self._connection, [(*where, *one, how) for one in shares], options.replicas)
            self.rows = ClusterRows(self.parts, shares, LocalRows(store, self.searcher, self._at_hand))
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def connect(cls, path: Any, job: Job | None, options: "Ray") -> "ClusterIndex":
        """Open the index at `path` on a cluster; raises like `gradindex.load`."""
        while True:
            store = Store.open(path)
            if job is not None:
                check_job(store, job)
            try:
                return cls(store, job, options)
            except DamagedIndexError:
                if store.is_last():  # else its rows changed while their index was being opened
                    raise

    def __enter__(self) -> "ClusterIndex":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and the connection if this opened it."""
        self.parts.close()
        self._connection.close()

    def add(self, *dataset: object, **options: object) -> Ids:
        """Refuse: the parts hold the rows that were there when this was opened."""
        raise ValueError(
            "Open the index without an engine to add to it or to compact it, and then on the cluster again."
        )

    def compact(self, **options: object) -> int:
        """Refuse, as `add` does."""
        raise ValueError(
            "Open the index without an engine to add to it or to compact it, and then on the cluster again."
        )
