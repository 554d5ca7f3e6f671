"""Rows that a cluster's actors search and evaluate, each some of them; answers are merged to those of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.operating_point import Point
from gradindex.ann.selection import Selection
from gradindex.compute import exact
from gradindex.compute.held_queries import Held
from gradindex.data.source import Batch, Ids
from gradindex.distributed.connection import Connection
from gradindex.distributed.search_worker import IndexPart, packed
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel
from gradindex.runtime.log import log
from gradindex.search import norm_scan
from gradindex.search.row_search import LocalRows, Nearest, by_faiss
from gradindex.store import Store

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

_TRIES = 5  # actors that may die under one question
_PATIENCE = 30.0  # seconds without an answer before saying what is waited for


class Parts:
    """Actors for every part, `replicas` each, asked in turn; a dead one is replaced and its question asked again."""

    def __init__(self, connection: Connection, arguments: Sequence[tuple[object, ...]], replicas: int) -> None:
        self._connection, self._arguments = connection, arguments
        self.actors = [[connection.spawn(IndexPart, *one) for _ in range(replicas)] for one in arguments]
        self._turn = 0

    @property
    def ray(self) -> Any:
        """Ray's module, connected."""
        return self._connection.ray

    def ask(self, method: str, *each: Sequence[object]) -> list[Any]:
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

    def _send(self, part: int, method: str, call: tuple[object, ...]) -> "tuple[int, ActorHandle, ObjectRef]":
        place = self._turn % len(self.actors[part])
        actor = self.actors[part][place]
        return place, actor, getattr(actor, method).remote(*call)

    def _answer(
        self,
        part: int,
        method: str,
        call: tuple[object, ...],
        place: int,
        actor: "ActorHandle",
        answer: "ObjectRef",
    ) -> Any:
        ray = self.ray
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

    def _replace(self, part: int, place: int, actor: "ActorHandle") -> None:
        if self.actors[part][place] is actor:  # else another thread was here
            self._connection.kill(actor)
            self.actors[part][place] = self._connection.spawn(IndexPart, *self._arguments[part])


@dataclass(frozen=True)
class ClusterRows:
    """A `gradindex.search.row_search.RowSearch` whose rows are spread over actors.

    `ranges` are the rows (first, last + 1) of each part; `here` are the same rows in this process, which answer what
    parts do not: how many vectors FAISS compares, and queries that are held as factors.
    """

    parts: Parts
    ranges: Sequence[tuple[int, int]]
    here: LocalRows

    def scan(
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

    def nearest(
        self, sketches: NDArray[np.float32], k: int, selection: Selection | None, point: Point | None = None
    ) -> Nearest:
        """Return the selected rows whose cosines with unit-norm sketches are the highest; see `RowSearch`."""
        if not by_faiss(self.here.searcher, selection):
            scores, rows, scanned = self.scan(sketches, np.ones(len(sketches)), Kernel.COS, k, selection=selection)
            return scores.astype(np.float32), rows, scanned
        everywhere = selection is not None and selection.everywhere
        each = [(sketches, k, mask, everywhere, point) for mask in self._masks(selection)]
        found = self.parts.ask("search", *zip(*each, strict=True))
        scores, rows = _merged(found, k)
        if selection is not None and selection.everywhere:
            return scores.astype(np.float32), rows, np.full(len(sketches), len(selection))
        return scores.astype(np.float32), rows, self.here.searcher.scanned(sketches, point)

    def dots(self, asked: Batch | None, gradients: Floats, ids: Ids) -> exact.Evaluated:
        """Do what `exact.candidate_dots` does, each part with a share of the candidates."""
        wanted = np.unique(ids[ids >= 0])
        shares = np.array_split(wanted, len(self.ranges))
        each = [np.where(np.isin(ids, share), ids, -1) for share in shares]
        sent = (self.parts.ray.put(gradients),)
        found = self.parts.ask("dots", [sent] * len(each), each)
        losses = {row: loss for one in found for row, loss in one.losses.items()}
        method = " + ".join(sorted({one.method for one in found} - {"none"})) or "none"
        return exact.Evaluated(np.max([one.dots for one in found], axis=0), losses, method)

    def evaluate(self, held: Held, ids: Ids) -> tuple[NDArray[np.float64], dict[int, float]]:
        """Return exact inner products of held queries with samples, and their losses, computed in this process."""
        return self.here.evaluate(held, ids)

    def over(self, store: Store) -> "ClusterRows":
        """Return the search of the same rows in a store of another state; see `RowSearch`."""
        return replace(self, here=self.here.over(store))

    def _masks(self, selection: Selection | None) -> list[NDArray[np.uint8] | None]:
        if selection is None:
            return [None] * len(self.ranges)
        return [packed(selection.mask[first:last]) for first, last in self.ranges]


def _merged(found: Sequence[tuple[Any, ...]], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k best of the parts' scores and rows (m, …); −1 sorts last, and stays."""
    return norm_scan.top(np.hstack([one[0] for one in found]), np.hstack([one[1] for one in found]), k)
