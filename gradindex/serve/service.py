"""The workers, and how routes ask them."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException

from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.index.index import Index
from gradindex.runtime.stages import Interval
from gradindex.search.options import SearchOptions
from gradindex.serve import models, tracing
from gradindex.serve.batching import Closed, Full, Task, Worker
from gradindex.serve.inputs import BadInput, parse_inputs, parse_labels
from gradindex.serve.lookup import Explain, Lookup, Queries, Search, Where
from gradindex.serve.metrics import Metrics
from gradindex.serve.reloading import Reloading
from gradindex.serve.reviewing import Reviewing
from gradindex.serve.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
_ALONE = itertools.count(1)


class Service:
    """The workers, and how routes ask them."""

    def __init__(self, index: Index, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.lookup = Lookup(index)
        """The index that answers requests from now on; those that were accepted before have their own."""
        self.path = index.store.path
        self.accepted = 0
        self._workers: dict[str, Worker] = {}
        self.reviewing = Reviewing(lambda: self.lookup, settings, self._queue)
        turn = self.reviewing.turn
        self.reloading = Reloading(self.lookup, settings.reload_seconds, self.metrics, turn, self._take)

    def _take(self, lookup: Lookup) -> None:
        self.lookup = lookup

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Warm up, serve, and answer what was accepted before the end."""
        await asyncio.to_thread(self.lookup.warm)
        self.metrics.rows.set_function(lambda: len(self.lookup.store))
        limits = {"most": self.settings.max_batch, "waiting": self.settings.max_waiting}
        self._workers = {
            "model": Worker(self._model, **limits, linger=self.settings.linger, name="gradindex-model"),
            "search": Worker(self._search, **limits, linger=0.0, name="gradindex-search"),
        }
        self.metrics.waiting.set_function(lambda: sum(worker.waiting for worker in self._workers.values()))
        self.reloading.start()
        yield
        self.reloading.close()
        self.reviewing.close()
        await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in self._workers.values()))
        log.info("stopped after answering %d accepted lookups", self.accepted)

    def _model(self, key: object, tasks: Sequence[Task]) -> list[Any]:
        if not isinstance(key, Explain):
            return [task.payload() for task in tasks]
        intervals: list[Interval] = []
        results: list[dict[str, Any]] = tasks[0].payload.lookup.explain(key, tasks, intervals)
        self._count(results[0])
        known = {name: results[0][name] for name in ("kernel", "rerank", "rows", "batch")}
        tracing.answered(tasks, intervals, {"k": key.search.k, **known})
        return results

    def _search(self, key: Search, tasks: Sequence[Task]) -> list[Any]:
        intervals: list[Interval] = []
        results: list[dict[str, Any]] = tasks[0].payload.lookup.search(key, tasks, intervals)
        self._count(results[0])
        tracing.answered(tasks, intervals, {"k": key.k, "batch": results[0]["batch"]})
        return results

    def _count(self, result: dict[str, Any]) -> None:
        self.metrics.batch.observe(result["batch"])
        for name, seconds in result["stages"].items():
            self.metrics.stages.labels(name).inc(seconds)

    async def answer(self, worker: str, make: Callable[[Lookup], tuple[object, object, int]]) -> Any:
        """Return the result of a task that `make` makes for an index: key, payload, size; raises HTTPException.

        Where files of the index are gone, because another one took its place, it is put to that.
        """
        lookup = self.lookup
        try:
            return await self._ask(worker, *make(lookup))
        except (DamagedIndexError, MismatchError):
            newer = await asyncio.to_thread(self.reloading.newer, lookup)
            if newer is None:
                raise
        return await self._ask(worker, *make(newer))

    async def _ask(self, worker: str, key: Any, payload: object, size: int) -> Any:
        try:
            future = self._workers[worker].submit(Task(key, payload, size, tracing.begun()))
        except Full as error:
            raise HTTPException(429, str(error), {"retry-after": "1"}) from None
        except Closed as error:
            raise HTTPException(503, str(error)) from None
        self.accepted += 1
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout)
        except TimeoutError:
            raise HTTPException(504, f"No answer within {self.settings.timeout:g} s.") from None
        except (DamagedIndexError, MismatchError):
            raise
        except IndexError as error:
            raise HTTPException(404 if "out of range" in str(error) else 422, str(error)) from None
        except (ValueError, TypeError) as error:
            raise HTTPException(422, str(error)) from None

    @property
    def is_ready(self) -> bool:
        """Whether a lookup would be taken now."""
        return bool(self._workers) and all(
            not worker.closing and worker.waiting < self.settings.max_waiting for worker in self._workers.values()
        )

    def _queue(self, work: Callable[[], T]) -> "Future[T]":
        """Queue work for the thread that may use the model; raises Full or Closed."""
        return self._workers["model"].submit(Task("call", work, 1))

    async def call(self, work: Callable[[Lookup], object]) -> Any:
        """Return the result of work on the index that may touch the dataset."""
        return await self.answer("model", lambda lookup: ("call", lambda: work(lookup), 1))

    def explain_task(self, asked: models.ExplainRequest, lookup: Lookup) -> tuple[Explain, Queries, int]:
        """Return options, queries and their number; raises HTTPException for what makes no sense."""
        if sum(given is not None for given in (asked.inputs, asked.ids, asked.texts)) != 1:
            raise HTTPException(422, "Give either inputs or ids, or texts.")
        if asked.texts is not None and lookup.index.job.texts is None:
            raise HTTPException(422, "texts: this job has no tokenizer, so its queries are inputs.")
        if asked.labels is not None and asked.inputs is None:
            raise HTTPException(422, "labels belong to inputs; ids have their own.")
        size = len(asked.inputs or asked.ids or asked.texts or ())
        self.check_sizes(size, asked.k)
        if max(asked.rerank, asked.max_checks or 0) > self.settings.max_rerank:
            raise HTTPException(422, f"rerank and max_checks may be at most {self.settings.max_rerank} here.")
        try:
            search = SearchOptions(
                k=asked.k,
                kernel=None if asked.kernel is None else asked.kernel.value,
                rerank=asked.rerank,
                certify=asked.certify,
                max_checks=asked.max_checks,
                recall=asked.recall,
            )
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        example = lookup.index.example
        ids = x = y = None
        try:
            if asked.ids is not None:
                ids = np.asarray(asked.ids, np.int64)
                lookup.store.rows_of(ids)
            elif asked.texts is None:
                x = parse_inputs(asked.inputs or [], example.x)
                y = None if asked.labels is None else parse_labels(asked.labels, example.y)
        except IndexError as error:
            raise HTTPException(404, str(error)) from None
        except BadInput as error:
            raise HTTPException(422, str(error)) from None
        if asked.labels is not None and len(asked.labels) not in (1, size):
            raise HTTPException(422, f"There are {size} inputs but {len(asked.labels)} labels.")
        if y is not None and len(y) != size:
            y = parse_labels((asked.labels or []) * size, example.y)
        given = "ids" if ids is not None else "texts" if asked.texts else "inputs" if y is None else "labelled inputs"
        options = Explain(
            lookup=lookup.number,
            search=search,
            where=as_where(asked.where),
            given=given,
            # With certify, rows are checked for all queries of a batch: answers that are not proved would depend on it.
            alone=next(_ALONE) if asked.certify else 0,
        )
        return options, Queries(lookup, ids, x, y, tuple(asked.texts or ()), asked.render), size

    def check_sizes(self, queries: int, k: int) -> None:
        """Raise HTTPException for too many queries or neighbours."""
        if queries > self.settings.max_queries:
            raise HTTPException(422, f"{queries} queries; at most {self.settings.max_queries} at once.")
        if k > self.settings.max_k:
            raise HTTPException(422, f"k is {k}; at most {self.settings.max_k} here.")


def as_where(value: object) -> Where:
    """Return a filter that can be compared."""
    return Where(json.dumps(value, sort_keys=True), value)
