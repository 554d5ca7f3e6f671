"""An index whose parts are searched by actors; answers are merged, and are those of the whole."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.ann import files as index_files
from gradindex.ann.operating_point import Point
from gradindex.ann.selection import SCAN_ROWS, Selection
from gradindex.compute import exact
from gradindex.data.source import Batch, Ids
from gradindex.distributed.connection import Connection, reachable
from gradindex.distributed.job_sender import recipe
from gradindex.distributed.search_worker import IndexPart, packed, ranges
from gradindex.errors import DamagedIndexError
from gradindex.gradients.engine import Floats, log
from gradindex.index.index import Index
from gradindex.job import Job
from gradindex.kernels import Kernel
from gradindex.lifecycle.header import check_job
from gradindex.search import norm_scan
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.distributed.options import Ray

_TRIES = 5  # actors that may die under one question
_PATIENCE = 30.0  # seconds without an answer before saying what is waited for


class Parts:
    """Actors for every part, `replicas` each, asked in turn; a dead one is replaced and its question asked again."""

    def __init__(self, connection: Connection, arguments: Sequence[tuple[Any, ...]], replicas: int) -> None:
        self._connection, self._arguments = connection, arguments
        self.actors = [[connection.spawn(IndexPart, *one) for _ in range(replicas)] for one in arguments]
        self._turn = 0

    def ask(self, method: str, *each: Sequence[Any]) -> list[Any]:
        """Return the answers of all parts to ``method(*arguments)``; `each` holds a sequence per argument.

        Raises
        ------
        Exception
            What a part raised.
        RuntimeError
            If five actors of a part died one after the other.
        """
        self._turn += 1
        calls = list(zip(*each, strict=True)) if each else [()] * len(self.actors)
        asked = [self._send(part, method, call) for part, call in enumerate(calls)]
        return [self._answer(part, method, call, *asked[part]) for part, call in enumerate(calls)]

    def close(self) -> None:
        """End all actors."""
        for replicas in self.actors:
            for actor in replicas:
                self._connection.kill(actor)

    def _send(self, part: int, method: str, call: tuple[Any, ...]) -> tuple[int, Any, Any]:
        place = self._turn % len(self.actors[part])
        actor = self.actors[part][place]
        return place, actor, getattr(actor, method).remote(*call)

    def _answer(self, part: int, method: str, call: tuple[Any, ...], place: int, actor: Any, answer: Any) -> Any:
        ray = self._connection.ray
        for _ in range(_TRIES):
            try:
                while not ray.wait([answer], timeout=_PATIENCE)[0]:
                    log.warning("waiting for part %d of the index: %s", part, self._connection.state())
                return ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except ray.exceptions.RayError as error:
                last = str(error).strip().splitlines()[-1]
                log.warning("an actor of part %d of the index was lost and is replaced: %s", part, last)
                self._replace(part, place, actor)
                self._turn += 1
                place, actor, answer = self._send(part, method, call)
        raise RuntimeError(f"{_TRIES} actors of part {part} died one after the other, the last by: {last}")

    def _replace(self, part: int, place: int, actor: Any) -> None:
        if self.actors[part][place] is actor:  # else another thread was here
            self._connection.kill(actor)
            self.actors[part][place] = self._connection.spawn(IndexPart, *self._arguments[part])


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
            self.ranges = ranges(len(self), count)
            where = reachable(store.path), store.state
            self.parts = Parts(self._connection, [(*where, *one, how) for one in self.ranges], options.replicas)
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

    def add(self, *dataset: Any, **options: Any) -> Ids:
        """Refuse: the parts hold the rows that were there when this was opened."""
        raise ValueError(
            "Open the index without an engine to add to it or to compact it, and then on the cluster again."
        )

    def compact(self, **options: Any) -> int:
        """Refuse, as `add` does."""
        raise ValueError(
            "Open the index without an engine to add to it or to compact it, and then on the cluster again."
        )

    def _scan(  # type: ignore[override]
        self,
        sketches: NDArray[np.float32],
        norms: NDArray[np.float64],
        kernel: Kernel,
        k: int,
        eps: float = 0.0,
        selection: Selection | None = None,
    ) -> norm_scan.Found:
        """Do what `norm_scan.scan` does, each part over its rows; rows scanned are the parts' sum."""
        each = [(sketches, norms, kernel, k, eps, mask) for mask in self._masks(selection)]
        found = self.parts.ask("scan", *zip(*each, strict=True))
        scores, rows = _merged(found, k)
        return scores, rows, np.sum([one[2] for one in found], axis=0)

    def _nearest(
        self, sketches: NDArray[np.float32], k: int, selection: Selection | None, point: Point | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        if selection is not None and selection.everywhere and len(selection) <= SCAN_ROWS:
            scores, rows, scanned = self._scan(sketches, np.ones(len(sketches)), Kernel.COS, k, selection=selection)
            return scores.astype(np.float32), rows, scanned
        everywhere = selection is not None and selection.everywhere
        each = [(sketches, k, mask, everywhere, point) for mask in self._masks(selection)]
        found = self.parts.ask("search", *zip(*each, strict=True))
        scores, rows = _merged(found, k)
        scanned = (
            np.full(len(sketches), len(selection))
            if everywhere and selection
            else self.searcher.scanned(sketches, point)
        )
        return scores.astype(np.float32), rows, scanned

    def _dots(self, asked: Batch, gradients: Floats, ids: Ids) -> exact.Evaluated:
        """Do what `exact.candidate_dots` does, each part with a share of the candidates."""
        wanted = np.unique(ids[ids >= 0])
        shares = np.array_split(wanted, len(self.ranges))
        each = [np.where(np.isin(ids, share), ids, -1) for share in shares]
        sent = (self._connection.ray.put(gradients),)
        found = self.parts.ask("dots", [sent] * len(each), each)
        losses = {row: loss for one in found for row, loss in one.losses.items()}
        method = " + ".join(sorted({one.method for one in found} - {"none"})) or "none"
        return exact.Evaluated(np.max([one.dots for one in found], axis=0), losses, method)

    def _masks(self, selection: Selection | None) -> list[NDArray[np.uint8] | None]:
        if selection is None:
            return [None] * len(self.ranges)
        return [packed(selection.mask[first:last]) for first, last in self.ranges]


def _merged(found: Sequence[tuple[Any, ...]], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k best of the parts' scores and rows (m, …); −1 sorts last, and stays."""
    return norm_scan.top(np.hstack([one[0] for one in found]), np.hstack([one[1] for one in found]), k)
