"""Neighbours by words (BM25) and by hidden vectors: more candidates for the exact check, and columns beside its scores.

A reader sees by them where gradients know more than words. BM25 is that of the package bm25s, over the training texts
as `Job.texts` or `Job.render` gives them; hidden vectors are those of `gradindex.relevance.pooled`, compared by their
cosine. Both are made when they are first asked for, and kept in memory with the index.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.selection import Selection
from gradindex.compute.queries import Queries
from gradindex.data.source import Ids, take_rows
from gradindex.errors import missing
from gradindex.job import Job
from gradindex.relevance.pooled import Pooled
from gradindex.search.answer import Answer
from gradindex.search.options import SearchOptions
from gradindex.search.sets import QuerySet
from gradindex.store import Store
from gradindex.words import Reduce

if TYPE_CHECKING:
    from gradindex.index.index import Index

_WORD = re.compile(r"\w+")

Scores = NDArray[np.float64]
"""Of all rows of a store for one query, (n,)."""


def words(text: str) -> list[str]:
    """Return the words of a text as BM25 compares them: letters, digits and underscores between others, lower case."""
    return _WORD.findall(text.lower())


class Bm25:
    """BM25 over texts (Lucene's form, k1 = 1.5, b = .75), by the package bm25s.

    Parameters
    ----------
    texts
        The texts, n of them.

    Raises
    ------
    ImportError
        If bm25s is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise missing("bm25s", "gradindex[language]", "BM25") from error
        self._count = len(texts)
        self._retriever = bm25s.BM25()
        found = [words(text) for text in texts]
        self._empty = not any(found)
        if not self._empty:
            self._retriever.index(found, show_progress=False)

    def __call__(self, text: str) -> Scores:
        """Return the score (n,) of every text for a query; 0 where they have no word in common."""
        known = [] if self._empty else [word for word in words(text) if word in self._retriever.vocab_dict]
        if not known:
            return np.zeros(self._count)
        return np.asarray(self._retriever.get_scores(known), np.float64)


def text_of(job: Job, i: int) -> str:
    """Return training sample i as text.

    Raises
    ------
    ValueError
        If the job's samples are no texts.
    """
    if job.texts is not None:
        return job.texts.text(i)
    shown = job.source.take(np.array([i], np.int64)).x if job.render is None else [job.render(i)]
    if isinstance(shown, list) and isinstance(shown[0], str):
        return shown[0]
    raise ValueError(
        "BM25 compares texts, and this job's samples are none: give the job texts= (as "
        "gradindex.hugging_face.causal_lm does) or a render= that returns strings."
    )


def query_texts(job: Job, asked: Queries, ids: Ids | None) -> list[str]:
    """Return queries as texts: training samples by their ids, others by their tokens, or as they are.

    Raises
    ------
    ValueError
        If that is not to be had.
    """
    if ids is not None:
        return [text_of(job, int(i)) for i in ids]
    if job.texts is not None:
        return ["".join(job.texts.pieces_of(take_rows(asked.x, slice(i, i + 1)))) for i in range(len(asked))]
    if isinstance(asked.x, list) and all(isinstance(one, str) for one in asked.x):
        return list(asked.x)
    raise ValueError(
        "BM25 needs the queries' texts, and this job has no way from inputs to text: give the job texts= (as "
        "gradindex.hugging_face.causal_lm does), or queries as ids of training samples."
    )


class Made:
    """What is compared with queries by other measures, made when it is first needed; shared by all states of an index.

    Rows are those of the store, removed samples among them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bm25: Bm25 | None = None
        self._hidden: NDArray[np.float32] | None = None

    def bm25(self, store: Store, job: Job) -> Bm25:
        """Return BM25 over the texts of a store's samples."""
        with self._lock:
            if self._bm25 is None:
                self._bm25 = Bm25([text_of(job, int(i)) for i in store.ids])
            return self._bm25

    def hidden(self, store: Store, job: Job) -> NDArray[np.float32]:
        """Return the unit-norm hidden vectors (n, d) of a store's samples."""
        with self._lock:
            if self._hidden is None:
                self._hidden = Pooled(job).of_samples(store.ids)
            return self._hidden


Scorer = Callable[[int], Scores]
"""Returns the scores of all rows for a query by its place."""


@dataclass(frozen=True)
class Others:
    """Other measures that an answer is to show beside its own: scores of the queries, and of those against them.

    The scores of a set become one as its kernel values do.
    """

    store: Store
    asked: QuerySet
    scorers: dict[str, tuple[Scorer, Scorer | None]]
    depth: int
    """How many candidates of each measure are evaluated exactly; 0 where nothing is."""

    @classmethod
    def of(
        cls, index: "Index", asked: QuerySet, ids: tuple[Ids | None, Ids | None], options: SearchOptions
    ) -> "Others":
        """Return the measures that are asked for by `options.candidates_from`, for queries with those ids, if any."""
        depth = 0 if options.certify else options.rerank
        if not options.candidates_from:
            return cls(index.store, asked, {}, depth)
        store, job, made = index.store, index.job, index.made

        def scorer(name: str, some: Queries, their: Ids | None) -> Scorer:
            if name == "bm25":
                texts, bm25 = query_texts(job, some, their), made.bm25(store, job)
                return lambda i: bm25(texts[i])
            vectors, rows = Pooled(job)(some.x, some.y), made.hidden(store, job)
            return lambda i: (rows @ vectors[i]).astype(np.float64)

        scorers = {
            name: (
                scorer(name, asked.asked, ids[0]),
                None if asked.against is None else scorer(name, asked.against, ids[1]),
            )
            for name in options.candidates_from
        }
        return cls(store, asked, scorers, depth)

    def lines(self, name: str) -> Iterator[Scores]:
        """Yield the scores of all rows of the store for each row of the result."""
        scorer, against = self.scorers[name]
        count, reduce, away = len(self.asked.asked), self.asked.reduce, np.zeros(len(self.store))
        if against is not None and self.asked.against is not None:
            others = len(self.asked.against)
            away = sum((against(i) for i in range(others)), away)
            away = away if reduce is Reduce.SUM else away / others
        if reduce is Reduce.EACH:
            for i in range(count):
                yield scorer(i) - away
            return
        total = scorer(0)
        for i in range(1, count):
            total = np.maximum(total, scorer(i)) if reduce is Reduce.MAX else total + scorer(i)
        yield (total / count if reduce is Reduce.MEAN else total) - away

    def candidates(self, depth: int, selection: Selection | None) -> NDArray[np.int64] | None:
        """Return the best rows by each measure, (s, depth times measures); None if there are no measures."""
        if not self.scorers or not self.depth:
            return None
        allowed = np.arange(len(self.store)) if selection is None else np.flatnonzero(selection.mask)
        depth, found = min(depth, len(allowed)), []
        for name in self.scorers:
            best = [allowed[np.argpartition(-scores[allowed], depth - 1)[:depth]] for scores in self.lines(name)]
            found.append(np.stack(best))
        return np.hstack(found).astype(np.int64)

    def columns(self, answer: Answer) -> tuple[dict[str, Scores], dict[str, Scores]]:
        """Return the measures of what was found on both sides, by name arrays (s, k), NaN where nothing was."""
        found: tuple[dict[str, Scores], dict[str, Scores]] = ({}, {})
        for name in self.scorers:
            lines = list(self._at(name, [side.ids for side in answer.sides]))
            for place, columns in enumerate(found):
                columns[name] = np.stack([line[place] for line in lines])
        return found

    def _at(self, name: str, ids: list[NDArray[np.int64]]) -> Iterator[list[Scores]]:
        for line, scores in enumerate(self.lines(name)):
            there = [np.where(side[line] < 0, self.store.ids[0], side[line]) for side in ids]
            values = [scores[self.store.rows_of(one)] for one in there]
            yield [np.where(side[line] < 0, np.nan, value) for side, value in zip(ids, values, strict=True)]

    def to_json(self) -> dict[str, list[str]]:
        """Return the measures' names, JSON-ready; nothing where there is none."""
        return {"candidates_from": list(self.scorers)} if self.scorers else {}
