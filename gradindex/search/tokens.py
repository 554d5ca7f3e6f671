"""Which tokens carry an influence: those of a query for each sample found, and those of a sample found for a query."""

from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.compute import tokens
from gradindex.compute.exact import Evaluated
from gradindex.compute.queries import Queries
from gradindex.data.names import Tree
from gradindex.data.source import Batch, Ids, take_rows
from gradindex.data.tensors import as_numpy
from gradindex.gradients import paths
from gradindex.gradients.parameter import Floats
from gradindex.gradients.ways import FORMED
from gradindex.job import Job
from gradindex.kernels import Kernel
from gradindex.runtime import forking
from gradindex.search.answer import PREFIXES, SIDES, Answer, Side
from gradindex.search.question import Question
from gradindex.store import Store

_FOUND = "found_tokens"
_MOST_CHECKS = 1.5  # for a result: above that, tokens of what was found are cheaper in a pass of their own


class Entry(TypedDict):
    """What an explanation's data has of the tokens of a sample found: JSON-ready."""

    tokens: list[str] | None
    scores: list[float]
    method: str


@dataclass(frozen=True)
class TokenScores:
    """How much each token of a training text gives to its score as a proponent or opponent of a query.

    `id`, its dataset position; `score`, that of the result; `scores` (t,) float64, each token's share of it, in the
    same unit: they sum to the score where that is exact; `pieces`, the t tokens as text, None where the job has no
    texts; `method`, how the shares were computed.
    """

    id: int
    score: float
    scores: NDArray[np.float64]
    pieces: list[str] | None
    method: str


@dataclass(frozen=True)
class Grain:
    """What it takes to tell the influence of single tokens: an answer, and what its scores were computed from.

    Parameters
    ----------
    job
        The model and the dataset.
    queries
        m labelled queries.
    answer
        What was found for them.
    lengths
        Of both sides, the norms of the gradients of the samples found (m, k), as the scores were computed with them.
    query_lengths
        The norms of the queries' gradients (m,).
    kernel, eps
        What the scores are values of.
    """

    job: Job
    queries: Queries
    answer: Answer
    lengths: tuple[NDArray[np.float64], NDArray[np.float64]]
    query_lengths: NDArray[np.float64]
    kernel: Kernel
    eps: float

    @classmethod
    def of(
        cls,
        store: Store,
        job: Job,
        queries: Queries,
        answer: Answer,
        query_lengths: NDArray[np.float64],
        kernel: Kernel,
        eps: float,
    ) -> "Grain":
        """Return the grain of an answer that a store gave."""
        first, second = (_lengths(store, side.ids) for side in answer.sides)
        return cls(job, queries, answer, (first, second), query_lengths, kernel, eps)

    def of_queries(
        self, batch_size: int, collector: "Collector | None" = None
    ) -> tuple[dict[str, NDArray[np.float64]], str]:
        """Return what each token of the queries gives to the scores, and how that was computed.

        By names of an explanation's data: `token_scores` (m, t, k) and `opponent_token_scores`, NaN for missing results
        and behind the last token of a query shorter than others. The gradients of `batch_size` samples at most are held
        at once. What a `collector` has already is not computed again.
        """
        parts, methods = [], set()
        for query in range(len(self.queries)):
            one, gradient = self._query(query)
            ids = self._found(query)
            found = None if collector is None else collector.found
            if found is None:
                found = tokens.of_query(self.job.engine, self.job.source, one, gradient, ids, batch_size)
            ids = found.ids
            methods.add(found.method)
            places = [np.minimum(np.searchsorted(ids, side.ids[query]), max(0, len(ids) - 1)) for side in self._sides]
            by_sample = found.products if len(ids) else np.zeros((1, found.products.shape[1]))
            parts.append([self._scaled(query, side, by_sample[at].T) for side, at in enumerate(places)])
        width = max(one.shape[0] for one, _ in parts)
        both = [np.stack([_padded(part[side], width) for part in parts]) for side in (0, 1)]
        names = [f"{prefix}token_scores" for prefix in PREFIXES]
        return dict(zip(names, both, strict=True)), " + ".join(sorted(methods))

    def of_found(self, query: int) -> list[list[Entry | None]]:
        """Return the tokens of all samples found for a query: of both sides, an entry for each place, JSON-ready."""
        _, gradient = self._query(query)
        ids = self._found(query)
        whole = np.full(len(ids), np.nan)
        lengths = np.zeros(len(ids))
        for number, side in enumerate(self._sides):
            there = np.flatnonzero(side.ids[query] >= 0)
            at = np.searchsorted(ids, side.ids[query, there])
            lengths[at] = self.lengths[number][query, there]
            factors = self._factors(query, number)[there]
            known = side.exact[query, there] & (factors != 0)
            whole[at[known]] = side.scores[query, there[known]] / factors[known]
        found = tokens.of_samples(self.job.engine, self.job.source, ids, gradient, whole, lengths)
        batch = self.job.source.take(ids)
        out: list[list[Entry | None]] = []
        for number, side in enumerate(self._sides):
            factors = self._factors(query, number)
            entries: list[Entry | None] = []
            for id_, factor in zip(side.ids[query], factors, strict=True):
                if id_ < 0:
                    entries.append(None)
                    continue
                at = int(np.searchsorted(ids, id_))
                pieces = None if self.job.texts is None else self.job.texts.pieces(int(id_))
                scores = factor * found.products[at]
                if pieces is not None:
                    scores = scores[_present(take_rows(batch.x, slice(at, at + 1)), len(scores), len(pieces))]
                entries.append({"tokens": pieces, "scores": scores.tolist(), "method": found.method})
            out.append(entries)
        return out

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.answer.sides

    def _query(self, query: int) -> tuple[Batch, Floats]:
        forking.settle(self.job.backend)
        rows = slice(query, query + 1)
        one = Batch(np.array([query]), take_rows(self.queries.x, rows), take_rows(self.queries.y, rows))
        engine = self.job.engine
        found, by_token = engine.sample_gradient(one.x, one.y), engine.token_losses(one.x, one.y)
        loss, total = float(found.losses[0]), float(by_token.sum())
        if abs(total - loss) > paths.tolerances(engine)[0] * (1 + abs(loss)):
            raise ValueError(
                f"What per_token says of query {query} adds up to {total:.4g}, but its loss is {loss:.4g}: expected "
                "the same. Let per_token return each token's share of the loss of a batch of one."
            )
        return one, found.gradients[0]

    def _found(self, query: int) -> Ids:
        every = np.unique(np.concatenate([side.ids[query] for side in self._sides]))
        return every[every >= 0]

    def _factors(self, query: int, side: int) -> NDArray[np.float64]:
        """Return by what products are multiplied to give values of the kernel, (k,)."""
        lengths = self.lengths[side][query]
        ones = np.ones((1, len(lengths)))
        own = self.query_lengths[query : query + 1]
        factors: NDArray[np.float64] = kernels.values(self.kernel, ones, own, lengths, self.eps)[0]
        return factors

    def _scaled(self, query: int, side: int, products: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(self._sides[side].ids[query] < 0, np.nan, products * self._factors(query, side))


class Collector:
    """Evaluates the candidates of a single query by formed gradients, and keeps what its tokens give on the way.

    Where most candidates end up in the answer, their gradients are needed anyway, and a pass of their own is saved.
    """

    def __init__(self, job: Job, batch_size: int) -> None:
        self._job, self._batch_size = job, batch_size
        self.found: tokens.QueryTokens | None = None

    @classmethod
    def fit(cls, job: Job, asked: Question, queries: int, batch_size: int) -> "Collector | None":
        """Return a collector if it saves something."""
        few = asked.depth <= _MOST_CHECKS * asked.k
        return cls(job, batch_size) if queries == 1 and asked.rerank and few else None

    def __call__(self, queries: Batch | None, gradients: Floats, ids: Ids) -> Evaluated:
        """Return exact inner products (1, c) of the query with its candidates (1, c); −1 is none."""
        assert queries is not None, "a set of queries has no tokens"
        wanted = np.unique(ids[ids >= 0])
        engine, source = self._job.engine, self._job.source
        self.found = tokens.of_query(engine, source, queries, gradients[0], wanted, self._batch_size)
        places = np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)
        return Evaluated(np.where(ids >= 0, self.found.whole[places], -np.inf), self.found.losses, FORMED)


def of_found(data: dict[str, object], grain: Grain | None, rank: int, query: int, side: str) -> TokenScores:
    """Return the tokens of a sample that was found, from an explanation's `data`, or computed and put there.

    Raises
    ------
    ValueError
        If `side` is unknown, or the tokens are not there and cannot be computed.
    IndexError
        If there is no such query or place, or nothing was found there.
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(map(repr, SIDES))}, got {side!r}.")
    prefix, indices = SIDES[side]
    ids = np.asarray(data[indices])
    if not 0 <= query < len(ids) or not 0 <= rank < ids.shape[1]:
        raise IndexError(f"There is no {side} {rank} of query {query}: {ids.shape[1]} for each of {len(ids)} queries.")
    if ids[query, rank] < 0:
        raise IndexError(f"Nothing was found as {side} {rank} of query {query}.")
    saved = cast("list[list[Entry] | None] | None", data.get(f"{prefix}{_FOUND}"))
    entries = None if saved is None else saved[query]
    if entries is None:
        if grain is None:
            raise ValueError(
                "The tokens of this result were not computed while its model was at hand (results that are saved leave "
                "it behind, and rows of a metric or whitened ones have no tokens). Ask the index again, or call tokens "
                "before saving."
            )
        both = cast("list[list[Entry]]", grain.of_found(query))
        for (start, _), some in zip(SIDES.values(), both, strict=True):
            cast("list[list[Entry] | None]", data.setdefault(f"{start}{_FOUND}", [None] * len(ids)))[query] = some
        entries = both[[*SIDES].index(side)]
    entry = entries[rank]
    score = float(np.asarray(data[f"{prefix}scores"])[query, rank])
    scores = np.asarray(entry["scores"], np.float64)
    return TokenScores(int(ids[query, rank]), score, scores, entry["tokens"], entry["method"])


def _lengths(store: Store, ids: Ids) -> NDArray[np.float64]:
    """Return the stored norms of samples (m, k), 0 for missing ones."""
    rows = store.rows_of(np.where(ids < 0, store.ids[0], ids).ravel()).reshape(ids.shape)
    return np.where(ids < 0, 0.0, store.norms[rows].astype(np.float64))


def _padded(scores: NDArray[np.float64], tokens: int) -> NDArray[np.float64]:
    return np.pad(scores, ((0, tokens - len(scores)), (0, 0)), constant_values=np.nan)


def _present(x: Tree, tokens: int, pieces: int) -> NDArray[np.int64]:
    """Return the places of a sample's tokens that are no padding: those of its attention mask, or else the first."""
    mask = x.get("attention_mask") if isinstance(x, dict) else None
    if pieces != tokens and mask is not None:
        there = np.flatnonzero(np.asarray(as_numpy(mask[0])).ravel())
        if len(there) == pieces and there.max() < tokens:
            return there
    return np.arange(min(pieces, tokens))
