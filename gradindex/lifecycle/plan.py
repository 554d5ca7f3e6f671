"""What a build of many rows would take: rates measured on this machine, and the arithmetic that scales them up.

Every cost is a product of counts (rows, lists, shards, workers) and a measured time or size; `predict` has no other
input than those. A worker is taken to be as fast as this process, and workers not to slow each other down.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from gradindex.ann import plan as index_plan
from gradindex.defaults import RERANK
from gradindex.search import question
from gradindex.store.shard import SHARD_BYTES

_FETCHED = max(question.LEAST_CANDIDATES, question.CANDIDATES_PER_CHECK * RERANK)  # stored rows that a query reads
_ITERATIONS = 10  # of k-means in FAISS's inverted lists
_SIDE_BYTES = 28  # of a row for a searching worker: norm, id, and the order of a norm-ordered scan
_LIST_ROW = 8  # bytes of a row's number in an inverted list
_GROWN_LISTS, _GROWN = 1.5, 2.0  # memory of inverted lists, and of one array, that grow by doubling, over their size


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured costs: seconds and bytes of one unit of each kind of work.

    `embed` a row; `publish` a row written to the store; `start` loading the job in a new process. `fold` reading a
    stored row and making it a vector of inverted lists; `assign` comparing one of many vectors with one list's
    centroid; `encode` a vector; `append` a code that another process encoded. `add_flat` a row of an exact index.
    `finish` saving an index, however small, and `save` a byte of it. `coarse` comparing one query with one centroid;
    `scan` with one code of a list; `scan_flat` with one uncompressed row; `fetch` a stored row; `query` the gradient of
    a query; `check` one exact evaluation. `row_bytes` of the store, `number_bytes` of one number of a row;
    `base_bytes` a process with the model; `embed_bytes` the most it needs above that while embedding. `dim` numbers of
    a stored row, `width` of a row of inverted lists.
    """

    embed: float
    publish: float
    start: float
    fold: float
    assign: float
    encode: float
    append: float
    add_flat: float
    finish: float
    save: float
    coarse: float
    scan: float
    scan_flat: float
    fetch: float
    query: float
    check: float
    row_bytes: float
    number_bytes: float
    base_bytes: float
    embed_bytes: float
    dim: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `rows` rows take with `workers` workers: seconds, bytes, and single queries a second, one after the other.

    `queries_per_second` are complete explanations with exact scores of both sides; `searches_per_second` without
    them. `worker_bytes` is the most that a worker of the build, or of the lookups, holds; mapped files included.
    `driver_bytes` is that of the process that starts the build: it trains the index and puts it together in memory.
    With one worker they are the same process.
    """

    rows: int
    workers: int
    index: str
    embedding_seconds: float
    training_seconds: float
    adding_seconds: float
    store_bytes: float
    index_bytes: float
    worker_bytes: float
    driver_bytes: float
    queries_per_second: float
    searches_per_second: float

    @property
    def hours(self) -> float:
        """Of the whole build."""
        return (self.embedding_seconds + self.training_seconds + self.adding_seconds) / 3600

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON-ready values."""
        return {**dataclasses.asdict(self), "hours": self.hours}


def choose(rates: Rates, rows: int) -> int:
    """Return the number of inverted lists that ``index='auto'`` takes, 0 for an exact index."""
    kind, _ = index_plan.choose(rows, rates.dim, rates.width < rates.dim)
    return 0 if kind == "Flat" else int(kind.removeprefix("IVF").partition(",")[0])


def predict(
    rates: Rates, rows: int, workers: int = 1, *, lists: int | None = None, shard_rows: int | None = None
) -> Prediction:
    """Return what a build of `rows` rows takes.

    Parameters
    ----------
    rates
        What `gradindex.lifecycle.measure.measure` found.
    rows, workers
        How many.
    lists
        Inverted lists; 0: an exact index; None: see `choose`.
    shard_rows
        Rows of a shard; None: as many as 128 MiB hold.

    Raises
    ------
    ValueError
        If `rows` or `workers` is not positive.
    """
    for name, value in (("rows", rows), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    size = min(rows, shard_rows or _shard_rows(rates))
    lists = choose(rates, rows) if lists is None else lists
    searching = min(workers, rows)
    part = rows / searching
    if lists:
        adders = min(workers, math.ceil(rows / size))
        training = _training(rates, rows, lists)
        adding = rows * (rates.fold + lists * rates.assign + rates.encode) / adders
        if workers > 1:
            adding = max(adding, rows * rates.append)  # which the driver does alone
        centroids = 4 * lists * rates.width
        index_bytes = rows * (rates.width + _LIST_ROW) + centroids
        sample = 4 * rates.width * index_plan.training_rows(rows, lists)
        assembling = max(2.0 * sample, _GROWN_LISTS * index_bytes)  # FAISS trains the codes on a copy
        search = lists * rates.coarse + part * index_plan.probes(lists) / lists * rates.scan + _FETCHED * rates.fetch
        held = part * (rates.width + _LIST_ROW) + centroids
    else:
        centroids, training, adding = 0, 0.0, rows * rates.add_flat
        index_bytes = 4 * rates.dim * rows
        assembling = _GROWN * index_bytes
        held = 4 * rates.dim * part
        search = part * rates.scan_flat
    explained = rates.query + 2 * search + 2 * RERANK * rates.check / searching
    building = max(rates.embed_bytes + rates.number_bytes * rates.dim * size, 2.0 * centroids)
    if workers == 1:
        building = assembling = max(building, assembling)
    return Prediction(
        rows=rows,
        workers=workers,
        index=f"IVF{lists},SQ8" if lists else "Flat",
        embedding_seconds=_embedding(rates, rows, workers, size),
        training_seconds=training,
        adding_seconds=adding + rates.finish + rates.save * index_bytes,
        store_bytes=rows * rates.row_bytes,
        index_bytes=index_bytes,
        worker_bytes=rates.base_bytes + max(building, held + _SIDE_BYTES * part),
        driver_bytes=rates.base_bytes + assembling,
        queries_per_second=1 / explained,
        searches_per_second=1 / search,
    )


def _shard_rows(rates: Rates) -> int:
    return max(1, int(SHARD_BYTES / (rates.number_bytes * rates.dim)))


def _embedding(rates: Rates, rows: int, workers: int, shard_rows: int) -> float:
    """Return the seconds until the last of equal shards is published, each handed to the worker that is free first."""
    shards = math.ceil(rows / shard_rows)
    each = rates.embed + rates.publish
    if workers == 1:
        return rows * each
    return rates.start + math.ceil(shards / workers) * min(rows, shard_rows) * each


def _training(rates: Rates, rows: int, lists: int) -> float:
    """Return the seconds of k-means on one machine: each iteration compares the sample with all centroids."""
    return index_plan.training_rows(rows, lists) * (rates.fold + _ITERATIONS * lists * rates.assign)
