"""The training samples that a validation set wants: all samples ranked by their kernel values with it, some are taken.

Every stored row is compared with the validation samples in one scan of the store, and nothing grows with the number of
pairs. The values are those of the stored rows, or of the whitened ones: estimates, of which there are too many to be
checked exactly. As a baseline the same is done with hidden vectors (`gradindex.relevance.pooled`), which public
comparisons find hard to beat.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels, relevance
from gradindex.ann.selection import select as selected_rows
from gradindex.compute.queries import Queries
from gradindex.data.names import Where
from gradindex.data.source import Ids
from gradindex.data.tabular import Tabular
from gradindex.defaults import BLOCK_ROWS, BUDGET
from gradindex.job import Job
from gradindex.kernels import Kernel, WhiteKernel
from gradindex.relevance.pooled import Pooled
from gradindex.search import norm_scan, sets
from gradindex.search.sets import QuerySet
from gradindex.store import location
from gradindex.words import Rank, Reduce, choose_word

if TYPE_CHECKING:
    import pyarrow as pa

    from gradindex.index.index import Index
    from gradindex.store import Store

_NUMBERS = 1 << 24  # scores held at once
_LEAST = 16  # samples that each query lists for its turns, at least
_POOLED = 512  # samples whose hidden vectors are read at once
_KEPT = 1 << 26  # numbers of hidden vectors that are kept, as turns may read them again
_BUDGET = re.compile(r"\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>%|tokens|)\s*")

Scan = Callable[[], Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]]
"""Yields rows of the store (r,) and their scores (m, r) for every query; together all that may be chosen."""


@dataclass(frozen=True)
class Budget:
    """How much is to be chosen: so many samples, or as many as have so many tokens together."""

    samples: int
    tokens: int | None = None


def parse_budget(budget: str | int | float, rows: int) -> Budget:
    """Return ``"5%"``, ``500``, ``"500"`` or ``"20000tokens"`` as a budget, of an index of so many rows.

    Raises
    ------
    ValueError
        If it is none of these, or of nothing, or of more than there is.
    """
    found = _BUDGET.fullmatch(str(budget))
    if found is None:
        raise ValueError(f"budget must be like '5%', 500 or '20000tokens', got {budget!r}.")
    number, unit = float(found["number"]), found["unit"]
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"A budget of {budget} is not between 0 and 100 %.")
        return Budget(max(1, round(rows * number / 100)))
    if number < 1 or number != int(number):
        raise ValueError(f"A budget of {budget!r} is no whole number of at least 1; give a share as '5%'.")
    if unit == "tokens":
        return Budget(rows, int(number))
    if number > rows:
        raise ValueError(f"The budget is {int(number)} samples, but there are only {rows}.")
    return Budget(int(number))


@dataclass(frozen=True)
class Chosen(Tabular):
    """The samples that were chosen, best first.

    Parameters
    ----------
    ids
        Dataset positions, (b,) int64.
    scores
        What they were chosen by, (b,): the mean or the largest kernel value, or that with the query whose turn it was.
    queries
        The query with that value, (b,) int64; −1 for a mean.
    kernel, by
        How.
    rows
        How many samples there were to choose from.
    tokens
        Tokens of each sample, (b,), where the budget was of tokens.
    hidden
        What similarity of hidden vectors chooses with the same budget; None if that was not asked for.
    table
        What the index knows of the samples: label, loss and the user's own columns, in the order of `ids`.
    """

    ids: Ids
    scores: NDArray[np.float64]
    queries: NDArray[np.int64]
    kernel: str
    by: str
    rows: int
    tokens: NDArray[np.int64] | None = None
    hidden: "Chosen | None" = None
    table: "pa.Table | None" = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def overlap(self) -> float:
        """The share of the samples that `hidden` chooses, too; NaN where it was not asked for."""
        return np.nan if self.hidden is None else float(np.isin(self.ids, self.hidden.ids).mean())

    def __str__(self) -> str:
        share = f"{len(self):,} of {self.rows:,} samples ({len(self) / self.rows:.1%})"
        size = "" if self.tokens is None else f", {self.tokens.sum():,} tokens"
        title = kernels.title(self.kernel)
        line = f"Chosen by {self.by} {title}: {share}{size}, scores {self.scores.max():.4g} to {self.scores.min():.4g}."
        if self.hidden is None:
            return line
        by_chance = len(self.hidden) / self.rows
        return (
            f"{line}\nSimilarity of hidden vectors would choose {self.overlap:.1%} of them ({by_chance:.1%} by chance)."
        )

    def to_json(self) -> dict[str, object]:
        """Return what was chosen and how, as JSON-ready values."""
        return {
            "ids": self.ids.tolist(),
            "scores": self.scores.tolist(),
            "kernel": self.kernel,
            "by": self.by,
            "rows": self.rows,
            "tokens": None if self.tokens is None else int(self.tokens.sum()),
            "overlap_with_hidden": None if self.hidden is None else self.overlap,
        }

    def to_arrow(self) -> "pa.Table":
        """Return a ``pyarrow.Table``, a row a sample: rank, id, score; query, tokens, hidden where known; `table`."""
        import pyarrow as pa

        found: dict[str, NDArray[Any]] = {"rank": np.arange(1, len(self) + 1), "id": self.ids, "score": self.scores}
        if (self.queries >= 0).all():
            found["query"] = self.queries
        if self.tokens is not None:
            found["tokens"] = self.tokens
        if self.hidden is not None:
            found["hidden"] = np.isin(self.ids, self.hidden.ids)
        out = pa.table(found)
        if self.table is not None:
            for name, column in zip(self.table.column_names, self.table.columns, strict=True):
                out = out.append_column(name if name not in out.column_names else f"{name}_", column)
        return out

    def save(self, path: str) -> None:
        """Write `to_arrow` as a Parquet file, whole or not at all; its metadata say how the samples were chosen."""
        import pyarrow.parquet as pq

        table, sink = self.to_arrow(), io.BytesIO()
        about = {"kernel": self.kernel, "by": self.by, "rows": str(self.rows), "overlap": str(self.overlap)}
        pq.write_table(table.replace_schema_metadata({f"gradindex.{key}": value for key, value in about.items()}), sink)
        location.save(path, sink.getvalue())


def select(
    index: "Index",
    asked: Queries,
    *,
    budget: str | int = BUDGET,
    by: str = "mean",
    kernel: str | None = None,
    where: Where | None = None,
    hidden: bool = True,
) -> Chosen:
    """Choose the training samples that a validation set wants most.

    Parameters
    ----------
    index
        An index opened with its job.
    asked
        The validation set, labelled.
    budget
        How much: a share of the samples such as ``"5%"``, so many samples, or ``"20000tokens"``: samples in their order
        until the next one would not fit; the job must have `texts`.
    by
        ``'mean'``: by the mean kernel value over the validation set. ``'max'``: by the largest. ``'round-robin'``: its
        samples choose in turns, each the best that is left, so that none of them goes empty.
    kernel
        As in `Index.explain`; None: ``'white_dot'`` where the index is whitened, else the cosine of gradients.
    where
        Which samples may be chosen, as in `Index.explain`.
    hidden
        Whether to choose by similarity of hidden vectors, too: `Chosen.hidden`. That is a pass over the dataset.

    Returns
    -------
    Chosen
        The samples, best first.

    Raises
    ------
    ValueError
        As `Index.scores`; for an unknown `by`; for a budget that is none, or of tokens in a job without texts.
    """
    rule = choose_word(Rank, by, "by")
    selection = selected_rows(index.store, where)
    allowed = np.arange(len(index.store)) if selection is None else np.flatnonzero(selection.mask)
    wanted = parse_budget(budget, len(allowed))
    if wanted.tokens is not None and index.job.texts is None:
        raise ValueError(
            f"A budget of {budget} needs the samples' tokens, and this job has no texts: give a number of samples, or "
            "a share such as '5%'."
        )
    if kernel is None and index.is_whitened:
        kernel = WhiteKernel.DOT.value
    name, scan, store = _kernel_scan(index, asked, kernel, rule, allowed)
    found = _take(_ranked(scan, len(asked), rule, wanted), wanted, store, index.job)
    found = replace(found, kernel=name, by=rule.value, rows=len(allowed), table=_known(index.store, found.ids))
    if not hidden:
        return found
    by_hidden = _ranked(_hidden_scan(index, asked, rule, allowed), len(asked), rule, wanted)
    plain = _take(by_hidden, wanted, index.store, index.job)
    return replace(found, hidden=replace(plain, kernel="hidden", by=rule.value, rows=len(allowed)))


def _kernel_scan(
    index: "Index", asked: Queries, kernel: str | None, rule: Rank, allowed: NDArray[np.int64]
) -> "tuple[str, Scan, Store]":
    """Return a kernel's name, the scan of its scores of the allowed rows, and the store whose rows they are."""
    reduce = Reduce.MEAN if rule is Rank.MEAN else Reduce.EACH
    white = kernels.white(kernel)
    if white is not None:
        rows = index.whitened_rows()
        parsed, store, name = white.plain, rows.store, white.value
        places = np.flatnonzero(np.isin(store.ids, index.store.ids[allowed]))
    else:
        parsed, store, places = relevance.kernel_of(index.store.header.metric, kernel), index.store, allowed
        name = relevance.title(store.header.metric, parsed)

    def vectors(some: Queries) -> sets.Vectors:
        for place, sketches, norms in index.sketch_chunks(some, sets.AT_ONCE):
            unit, lengths = (sketches, norms) if white is None else rows.whitener(sketches, norms)
            yield place, unit * lengths[:, None], lengths

    cosine = parsed is Kernel.COS
    queries = np.concatenate([found for _, found in QuerySet(asked, reduce).vectors(vectors, cosine)])
    single = queries.astype(np.float32)
    mask = np.zeros(len(store), bool)
    mask[places] = True

    def scan() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        size = int(np.clip(_NUMBERS // len(single), 1, BLOCK_ROWS))
        for first, block in store.blocks(size):
            here = np.flatnonzero(mask[first : first + len(block)])
            if len(here):
                norms = store.norms[first + here].astype(np.float64)
                # the queries' scales are in their vectors, so a cosine is one with queries of norm 1
                dots = (single @ block[here].T) * norms
                yield first + here, kernels.values(parsed, dots, np.ones(len(single)), norms)

    return name, scan, store


def _hidden_scan(index: "Index", asked: Queries, rule: Rank, allowed: NDArray[np.int64]) -> Scan:
    """Return the scan of the cosines of hidden vectors; it reads the dataset."""
    pooled = Pooled(index.job)
    queries = pooled(asked.x, asked.y)
    queries = queries.mean(axis=0, keepdims=True) if rule is Rank.MEAN else queries
    fits = len(index.store) * queries.shape[1] <= _KEPT

    def scan() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        for begin in range(0, len(allowed), _POOLED):
            rows = allowed[begin : begin + _POOLED]
            kept = index.made.hidden(index.store, index.job)[rows] if fits else pooled.of_samples(index.store.ids[rows])
            yield rows, (queries @ kept.T).astype(np.float64)

    return scan


Line = tuple[int, float, int]
"""A row of the store, its score, and the query that it is for (−1: for all)."""


def _ranked(scan: Scan, queries: int, rule: Rank, wanted: Budget) -> Iterator[Line]:
    """Yield rows in the order in which they are chosen."""
    if rule is Rank.ROUND_ROBIN:
        yield from _in_turns(scan, queries, wanted)
        return
    parts = [(rows, scores.max(axis=0), scores.argmax(axis=0)) for rows, scores in scan()]
    rows, scores, best = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    whose = np.full(len(rows), -1) if rule is Rank.MEAN else best
    for i in order.tolist():
        yield int(rows[i]), float(scores[i]), int(whose[i])


def _in_turns(scan: Scan, queries: int, wanted: Budget) -> Iterator[Line]:
    """Yield rows as queries choose them in turns, each the best that is left.

    A query lists only a few of its best rows; where all of these are gone, the lists are made anew of what is left.
    """
    length = max(_LEAST, 4 * -(-wanted.samples // queries))
    taken: set[int] = set()
    turns = count()
    turn = next(turns)
    while True:
        scores, rows = _best_of_each(scan, queries, length, np.fromiter(taken, np.int64, len(taken)))
        places = np.zeros(queries, np.int64)
        if not (rows >= 0).any():
            return
        while True:
            query = turn % queries
            line = rows[query]
            while places[query] < len(line) and int(line[places[query]]) in taken:
                places[query] += 1
            if places[query] == len(line) or line[places[query]] < 0:
                break
            row = int(line[places[query]])
            taken.add(row)
            yield row, float(scores[query, places[query]]), query
            turn = next(turns)


def _best_of_each(
    scan: Scan, queries: int, length: int, taken: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the best rows of each query and their scores (m, length), without those that are taken; −1 for none."""
    best, rows = np.full((queries, length), -np.inf), np.full((queries, length), -1, np.int64)
    for found, scores in scan():
        left = ~np.isin(found, taken)
        every = np.broadcast_to(found[left], (queries, int(left.sum())))
        best, rows = norm_scan.top(np.hstack([best, scores[:, left]]), np.hstack([rows, every]), length)
    return best, rows


def _take(ranked: Iterator[Line], wanted: Budget, store: "Store", job: Job) -> Chosen:
    """Return what is chosen until the budget is used up."""
    lines: list[Line] = []
    tokens: list[int] = []
    left = wanted.tokens
    for line in ranked:
        if left is not None and job.texts is not None:
            size = len(job.texts.pieces(int(store.ids[line[0]])))
            if size > left:
                break
            left -= size
            tokens.append(size)
        lines.append(line)
        if len(lines) == wanted.samples:
            break
    if not lines:
        raise ValueError(f"A budget of {wanted.tokens} tokens is less than the best sample takes: give a larger one.")
    rows, scores, queries = zip(*lines, strict=True)
    ids = store.ids[np.array(rows)]
    counted = np.array(tokens, np.int64) if wanted.tokens is not None else None
    return Chosen(ids, np.array(scores), np.array(queries, np.int64), "", "", 0, counted)


def _known(store: "Store", ids: Ids) -> "pa.Table":
    """Return what a store says of some samples."""
    names = [name for name in ("label", "prediction", "loss") if name in store.columns]
    return store.columns.take(store.rows_of(ids), [*names, *(store.header.columns or ())]).table
