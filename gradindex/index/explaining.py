"""One call of `Index.explain`: from queries, alone or as a set, to an explanation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import relevance
from gradindex.ann.selection import Selection
from gradindex.compute import queries, watch
from gradindex.data.checks import as_ids
from gradindex.data.names import Tree
from gradindex.data.source import Batch, Ids, take_rows
from gradindex.explanation import Explanation
from gradindex.kernels import Kernel, WhiteKernel, white
from gradindex.lifecycle import whiten as whitening
from gradindex.runtime.log import log
from gradindex.search import adaptive, best_of, cascade, lexical, question, sets
from gradindex.search import certify as proofs
from gradindex.search import groups as by_groups
from gradindex.search import white as by_white_rows
from gradindex.search.answer import Answer, Described, explanation_data, joined, meta
from gradindex.search.calibration import Promise
from gradindex.search.checking import checking
from gradindex.search.describe import describe, known
from gradindex.search.options import SearchOptions
from gradindex.search.sets import QuerySet
from gradindex.search.texts import Words
from gradindex.search.tokens import Collector, Grain
from gradindex.search.whitened import Whitened
from gradindex.words import Reduce

if TYPE_CHECKING:
    from gradindex.index.index import Index


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked about queries: how to search, and among which samples; which tokens, and which groups' numbers.

    `own`: the queries' labels were given; else they are the model's predictions. `filtered`: only some samples may be
    found, beside those that are not removed.
    """

    options: SearchOptions
    selection: Selection | None
    words: Words
    groups: by_groups.GroupChoice | None
    own: bool
    filtered: bool

    def refuse(self, asked: QuerySet) -> None:
        """Raise ValueError for what cannot be asked together."""
        if self.groups is not None:
            by_groups.refuse(self.options, each=self.words.each)
        others = {"reduce or against": not asked.is_plain, "candidates_from": bool(self.options.candidates_from)}
        for name, given in others.items():
            if given and self.groups is not None:
                raise ValueError(f"groups cannot be asked about together with {name}: leave one of them out.")
        if self.words.each and not asked.is_plain:
            raise ValueError(
                "tokens='each' tells the influence on the tokens of one query, and a set has none of its own: leave "
                "tokens out, or reduce and against."
            )


def explain(
    index: "Index",
    asked: QuerySet,
    wanted: Wanted,
    ids: tuple[Ids | None, Ids | None],
    about: dict[str, object],
) -> Explanation:
    """Return what `Index.explain` does, of labelled queries.

    Parameters
    ----------
    index
        A copy of the index that is pinned for this call.
    asked
        The queries, and what becomes of their values.
    wanted
        What is asked about them.
    ids
        The ids of the queries, and of those they are asked against; None where they are no training samples.
    about
        What the result's data says of the queries besides.
    """
    wanted.refuse(asked)
    options, selection = wanted.options, wanted.selection
    others = lexical.Others.of(index, asked, ids, options)
    grain: Grain | None = None
    by_token: dict[str, NDArray[np.float64]] = {}
    method = None
    if (kernel := white(options.kernel)) is not None:
        answer, params = _by_white_rows(index, asked, kernel, options, selection)
    else:
        answer, params, norms, question_ = _by_gradients(index, asked, wanted, others, ids[0])
        if norms is not None and index.store.header.metric is None:
            grain = Grain.of(index.store, index.job, asked.asked, answer, norms, question_.kernel, question_.eps)
            if wanted.words.each:
                collector = question_.evaluate if isinstance(question_.evaluate, Collector) else None
                by_token, method = grain.of_queries(index.at_hand.batch_size, collector)
    if asked.reduce is Reduce.EACH:
        described = describe(index.store, index.job.engine, asked.asked, answer, own=wanted.own)
    else:  # a set has no label of its own
        described = Described(None, None, *(known(index.store, side.ids) for side in answer.sides))
    data = explanation_data(answer, described, others.columns(answer)) | about | by_token
    params = params | wanted.words.params(method) | asked.to_json() | others.to_json()
    drawn = ids[0] if ids[0] is None else ids[0][: asked.rows]
    return Explanation(meta("Index", params), data, view=(index.job, asked.drawn.x, drawn), grain=grain)


def contrast(index: "Index", against: Tree) -> tuple[queries.Queries | None, Ids | None]:
    """Return the labelled queries of a contrast set, (x, y), ids or queries in words, and their ids if it is ids."""
    if against is None:
        return None, None
    if isinstance(against, Mapping):
        names = {one.name for one in fields(Words)} - {"tokens"}
        if not against.keys() <= names:
            raise ValueError(
                f"against is a dict of {sorted(map(str, against))}: expected queries in words, some of "
                f"{sorted(names)}, or inputs and labels as a pair, (x, y)."
            )
        return index.asked(None, None, None, Words(**against)).queries, None
    pair = isinstance(against, tuple) and len(against) == 2 and not all(isinstance(one, Integral) for one in against)
    if pair:
        return index.labelled(*against), None
    ids = as_ids(against)
    return index.labelled(None, ids=ids), ids


def _by_gradients(
    index: "Index", asked: QuerySet, wanted: Wanted, others: lexical.Others, ids: Ids | None
) -> tuple[Answer, dict[str, object], NDArray[np.float64] | None, question.Question]:
    """Return an answer by gradients, or by the rows of a metric, and how it was found.

    And the norms of the gradients that it is about, None where they are not those of queries by themselves; and the
    question with its depths.
    """
    store, options, selection = index.store, wanted.options, wanted.selection
    parsed = relevance.kernel_of(store.header.metric, options.kernel)
    checked = checking(
        store,
        None if options.recall is None else index.calibrated(parsed, options.k),
        options,
        where=wanted.filtered,
        ids=ids is not None,
        labelled=wanted.own,
        another=_another(asked, wanted),
    )
    question_ = checked.applied(question.ask(len(index), parsed, options, selection))
    asked.refuse_eps(parsed, options.eps)
    if wanted.words.each and checked.promise is None and not options.certify:
        collector = Collector.fit(index.job, question_, len(asked.asked), index.at_hand.batch_size)
        question_ = replace(question_, evaluate=collector)
    compared = index.at_hand.compared if question_.rerank or options.certify else watch.Compared()
    index.changed = []  # of the copy that is pinned for this call
    if wanted.groups is not None:
        found, about = by_groups.explain(index, asked.asked, wanted.groups, question_)
        return _doubted(index, found), about, None, question_
    more = others.candidates(question_.depth, selection)
    searched: set[str] = set()
    norms: NDArray[np.float64] | None = None
    if asked.is_plain:
        promise = checked.promise
        answers, methods, norms = _each(index, asked.asked, promise, question_, options.certify, more, searched)
    elif asked.reduce is Reduce.MAX:
        answers, methods = _best(index, asked, options, question_, more)
    else:
        pairs = list(sets.combined(index, asked, question_, options.certify, more))
        answers, methods = [one for one, _ in pairs], {method for _, method in pairs}
    if options.certify and not searched:
        searched = {proofs.searched(index, question_, asked.rows)}
    params: dict[str, object] = {
        "kernel": relevance.title(store.header.metric, parsed),
        "k": question_.k,
        "rerank": question_.depth if question_.rerank else 0,
        "candidates": question_.candidates if parsed is Kernel.COS and not index.searcher.exact else None,
        "point": None if question_.point is None else dict(question_.point),
        "width": index.searcher.dim,
        "exact_method": " + ".join(sorted(methods)),
        "estimator": "stored rows" if not question_.rerank and not options.certify else "exact gradients",
        "whitened": index.is_whitened,
        "compared": {"rows": compared.rows, "products": index.job.engine.ways.compared},
        "certify": options.certify,
        "recall": checked.about,
        "max_checks": question_.max_checks,
        "selected": len(index) if selection is None else len(selection),
        "rows": len(index),
        "index": index.searcher.factory,
        "searched": " + ".join(sorted(searched)) if options.certify else cascade.searched(index, question_),
        "sketch": store.header.sketch,
    }
    return _doubted(index, joined(answers)), params, norms, question_


def _another(asked: QuerySet, wanted: Wanted) -> str:
    """Return why queries, however they are searched, are no question that a recall can be calibrated for."""
    if not asked.is_plain:
        return "a set is another question than that of the calibration: a fixed number of checks"
    if wanted.groups is not None or wanted.options.candidates_from:
        return "groups or other candidates are another question than that of the calibration: a fixed number of checks"
    return ""


def _each(
    index: "Index",
    asked: queries.Queries,
    promise: Promise | None,
    wanted: question.Question,
    certify: bool,
    more: NDArray[np.int64] | None,
    searched: set[str],
) -> tuple[list[Answer], set[str], NDArray[np.float64]]:
    """Return the answers to queries by themselves, how exact values were computed, and the norms (m,) of gradients.

    Adds to `searched` what looked for rows.
    """
    answers, methods, lengths = [], set(), []
    most = min(sets.AT_ONCE, proofs.chunk(len(index))) if certify else sets.AT_ONCE
    formed = wanted.rerank and not certify
    chunks = queries.gradient_chunks(index.job.engine, asked, most) if formed else index.sketch_chunks(asked, most)
    for some, rows, norms in chunks:
        batch = Batch(np.arange(some.start, some.stop), take_rows(asked.x, some), take_rows(asked.y, some))
        if certify:
            found, method = proofs.checked_answer(index, batch, wanted)
            searched.add(proofs.searched(index, wanted, len(batch)))
        elif formed and promise is not None:
            found, method = adaptive.answer(index, batch, rows, index.sketches(rows, norms), norms, wanted, promise)
        elif formed:
            extra = None if more is None else more[some]
            found, method = cascade.answer(index, batch, rows, index.sketches(rows, norms), norms, wanted, extra)
        else:
            found, method = cascade.answer(index, batch, None, rows, norms, wanted)
        answers.append(found)
        methods.add(method)
        lengths.append(norms)
    return answers, methods, np.concatenate(lengths)


def _best(
    index: "Index",
    asked: QuerySet,
    options: SearchOptions,
    wanted: question.Question,
    more: NDArray[np.int64] | None,
) -> tuple[list[Answer], set[str]]:
    """Return the answer for the best over a set."""
    if options.certify:
        found, methods = best_of.certified(index, asked.asked, wanted)
    elif wanted.rerank:
        found, methods = best_of.answer(index, asked.asked, wanted, None if more is None else more.ravel())
    else:
        rows = lambda: ((rows, norms) for _, rows, norms in index.sketch_chunks(asked.asked, sets.AT_ONCE))  # noqa: E731
        found, methods = best_of.estimated(index, rows, index.projector.opposite, wanted), {"none"}
    return [found], methods


def _doubted(index: "Index", answer: Answer) -> Answer:
    """Return an answer without what samples that have changed, or wrong stored rows, leave unproved."""
    if len(changed := np.concatenate([*index.changed, np.empty(0, np.int64)])):
        answer = Answer(*(side.without(changed) for side in answer.sides))
    if any(side.proved.any() for side in answer.sides):  # by bounds, which hold for right rows only
        answer = Answer(*(replace(side, proved=side.proved & index.at_hand.rows_hold) for side in answer.sides))
    return answer


def _by_white_rows(
    index: "Index", asked: QuerySet, kernel: WhiteKernel, options: SearchOptions, selection: Selection | None
) -> tuple[Answer, dict[str, object]]:
    """Return an answer by whitened rows, and how it was found."""
    whitening.refuse_metric(index.store)
    rows = index.white
    if rows.missing:
        log.warning("%d samples are not whitened yet, and not found: whiten the index again", rows.missing)
    wanted = by_white_rows.ask(rows, kernel, options, selection)
    params: dict[str, object] = {
        "kernel": kernel.value,
        "k": wanted.k,
        "rerank": 0,
        "candidates": wanted.candidates if wanted.kernel is Kernel.COS and not rows.searcher.exact else None,
        "point": None,
        "width": rows.searcher.dim,
        "exact_method": "none",
        "estimator": by_white_rows.ESTIMATOR,
        "certify": False,
        "max_checks": None,
        "selected": len(rows.store) if wanted.selection is None else len(wanted.selection),
        "rows": len(index.store),
        "index": rows.searcher.factory,
        "searched": cascade.searched(rows, wanted),
        "sketch": rows.store.header.sketch,
        "whitened": rows.to_json(),
    }
    return _white_answer(index, rows, asked, wanted), params


def _white_answer(index: "Index", rows: Whitened, asked: QuerySet, wanted: question.Question) -> Answer:
    def chunks(some: queries.Queries) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float64]]]:
        for place, sketches, norms in index.sketch_chunks(some, sets.AT_ONCE):
            yield place, *rows.whitener(sketches, norms)

    if asked.is_plain:
        return joined([by_white_rows.answer(rows, unit, lengths, wanted) for _, unit, lengths in chunks(asked.asked)])
    if asked.reduce is Reduce.MAX:
        each = lambda: ((unit, lengths) for _, unit, lengths in chunks(asked.asked))  # noqa: E731
        return best_of.estimated(rows, each, np.negative, wanted)
    cosine = wanted.kernel is Kernel.COS

    def vectors(some: queries.Queries) -> sets.Vectors:
        for place, unit, lengths in chunks(some):
            yield place, unit * lengths[:, None], lengths

    answers = []
    for _, combined in asked.vectors(vectors, unit=cosine):
        lengths = np.linalg.norm(combined, axis=1)
        scaled = np.divide(combined, lengths[:, None], out=np.zeros_like(combined), where=lengths[:, None] > 0)
        found = by_white_rows.answer(rows, scaled.astype(np.float32), lengths, wanted)
        answers.append(sets.scaled(found, lengths) if cosine else found)
    return joined(answers)
