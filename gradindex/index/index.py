"""The index as an object: explain, search, verify."""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.ann import files as index_files
from gradindex.ann.selection import select
from gradindex.data.checks import as_ids
from gradindex.data.names import Tree, Where
from gradindex.data.source import Ids
from gradindex.data.text import Messages
from gradindex.defaults import BUDGET, INFLUENTIAL, NEIGHBOURS, with_given
from gradindex.explanation import Explanation
from gradindex.index import explaining
from gradindex.index.measured import Measured
from gradindex.index.state import pinned
from gradindex.kernels import white
from gradindex.search import cascade, sets
from gradindex.search import select as choosing
from gradindex.search.answer import check_k
from gradindex.search.groups import GroupChoice
from gradindex.search.options import SearchOptions
from gradindex.search.texts import Prompt, TokenChoice, Words
from gradindex.sketch.unit_rows import normalise


class Index(Measured):
    """An index over the gradients of a training set; get one from `gradindex.build` or `gradindex.load`.

    Parameters
    ----------
    store
        A complete store with a FAISS index.
    job
        The model, loss and dataset it was built from; needed for new queries and exact scores.
    """

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return (
            f"Index({str(self.store.path)!r}: {len(self)} samples, {self.searcher.factory}, {self.store.header.sketch})"
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        from gradindex.plots.html import table_html

        facts = {"index": self.store.path, "samples": f"{len(self):,}", "search": self.searcher.factory}
        return table_html(facts | {"rows": self.store.header.sketch})

    @pinned
    def explain(
        self,
        x: Tree = None,
        y: Tree = None,
        *,
        ids: ArrayLike | None = None,
        where: Where | None = None,
        options: SearchOptions | None = None,
        k: int | None = None,
        kernel: str | None = None,
        rerank: int | None = None,
        candidates: int | None = None,
        recall: float | None = None,
        eps: float | None = None,
        certify: bool | None = None,
        max_checks: int | None = None,
        text: str | Sequence[str] | None = None,
        prompt: Prompt | Sequence[Prompt] | None = None,
        answer: str | Sequence[str] | None = None,
        messages: Messages | Sequence[Messages] | None = None,
        tokens: TokenChoice | None = None,
        groups: GroupChoice | None = None,
        candidates_from: tuple[str, ...] | None = None,
        reduce: str = "each",
        against: Tree = None,
    ) -> Explanation:
        """Find the training samples with the highest and the lowest kernel values for each query, or for all as one.

        Parameters
        ----------
        x
            Inputs of m queries, shaped like the training inputs; a single one may lack the first axis.
        y
            Their labels, or one label for all; None: what the model predicts (classification only).
        ids
            Instead of `x` and `y`: dataset positions of samples to use as queries, with their own labels.
        where
            Which samples may be found: a mapping of columns to a value or list of values, such as
            ``{"label": 3}`` (also a user's own columns, where None finds missing entries; several must all hold), or
            ids; None: all. Few are found
            by an exact scan of the store, many by FAISS over all lists.
        options
            How to search; None: `gradindex.SearchOptions()`, which says what each of them does.
        k, kernel, rerank, candidates, recall, eps, certify, max_checks, candidates_from
            The same, one by one: what is given takes the place of what `options` says.
        text
            Instead of `x` and `y`, of a job that was made from a tokenizer: a text (or several), all of whose tokens
            have a loss.
        prompt, answer
            Or what is asked, and what is said: the answer's tokens have a loss. None: the model's own answer, the most
            likely token each time; it is in `query_answers`.
        messages
            Or a conversation, of which the assistant's messages have a loss; where it ends with another's, the model
            answers.
        tokens
            Which tokens of the queries are asked about, by their places in `query_tokens`: a slice, or one. The loss is
            theirs alone then: their mean, where it is a mean. ``'each'``: all, as ever, and each by itself beside.
        groups
            Of an index of `gradindex.Groups` rows: which groups of parameters count, by a name, names, or names and
            weights; see `gradindex.search.groups`.
        reduce
            ``'each'``: a row of the result for each query. Else the queries are a set, which is one row: by the
            ``'mean'`` or the ``'sum'`` of the kernel's values over its m queries, (1/m) Σ K(q, t), or by ``'max'``, the
            best of them (of opponents, the lowest). Mean and sum are values of one vector, since every kernel is linear
            in q (white_dot, grad_dot, grad_asym_dot) or in q / ‖q‖ (the cosines): exact, and certified, as those of
            a query. Of the best, all candidates are compared with all queries.
        against
            A contrast set: (x, y), ids, or queries in words, such as ``{"prompt": …, "answer": …}``. The mean of the
            kernel's values over it is taken from that of the queries (from each query's own with ``'each'``; from the
            sum its sum).

        Returns
        -------
        Explanation
            With `scores` (m, k) float64 descending, `ordered_indices` (m, k) int64 ids, `exact` (m, k) bool; the same
            with ``opponent_`` in front (`opponent_indices`), ascending; `labels`, `predictions` of both sides where
            known; `query_predictions` (m,) and, where given, `query_labels`; the user's own `columns` and
            `opponent_columns`, by name arrays (m, k) (`gradindex.data.table.Columns`; `to_arrow` keeps their types);
            the measures of `candidates_from`, such as `bm25` and `opponent_bm25`, (m, k) float64. A missing result has
            id −1, score NaN and nothing in its columns. For each side `proved` (m,) bool: whether this is the answer of
            the true, unprojected kernel; `checked` (m,) rows evaluated exactly (with `certify`, for this side's sake);
            `scanned` (m,) rows looked at, −1 where FAISS does not tell; `bound_left` (m,): where not proved, a bound
            that the kernel values of all rows not evaluated keep to; `expected_recall` (m,): the share of the true k
            that such answers hold on average, at least, as `calibrate` measured it; 1 where proved, NaN where nothing
            says so. Of a set, m is 1 everywhere. For queries in words `query_tokens`, the tokens of each as texts. With
            ``tokens='each'`` `token_scores` and `opponent_token_scores` (m, t, k) float64, exact: what each token of
            the query gives to the score of each sample found, in the kernel's unit, so that they sum to scores that
            are exact; NaN behind a query's last token. `Explanation.tokens` says which tokens of the texts found.

        Raises
        ------
        ValueError
            For an unknown kernel or one that has no meaning for the index's metric, k < 1 or larger than the index,
            a wrong shape, NaN, missing labels, a bad `max_checks`, an unknown column, or if nothing matches `where`;
            for queries in words without `Job.texts`, and tokens without a loss; for an unknown `reduce`, ``'max'``
            with `against`, and `eps` where cosines are added up; for ``'bm25'`` of a job whose samples are no texts.
        IndexError
            If an id or a token is out of range.
        TypeError
            If a value of `where` is of another kind than its column's; for `tokens` of a loss that is not made of those
            of tokens.
        """
        options = with_given(
            options or SearchOptions(),
            k=k,
            kernel=kernel,
            rerank=rerank,
            candidates=candidates,
            recall=recall,
            eps=eps,
            certify=certify,
            max_checks=max_checks,
            candidates_from=candidates_from,
        )
        words = Words(text=text, prompt=prompt, answer=answer, messages=messages, tokens=tokens)
        words.refuse(whitened=white(options.kernel) is not None, gradients=self.store.header.metric is None)
        wanted = explaining.Wanted(
            options=options,
            selection=select(self.store, where),
            words=words,
            groups=groups,
            own=words.given or ids is not None or y is not None,
            filtered=where is not None,
        )
        given = self.asked(x, y, ids, words)
        others, their_ids = explaining.contrast(self, against)
        known = None if ids is None else as_ids(ids), their_ids
        return explaining.explain(self, sets.make(given.queries, reduce, others), wanted, known, given.about)

    @pinned
    def select(
        self,
        x: Tree = None,
        y: Tree = None,
        *,
        ids: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        prompt: Prompt | Sequence[Prompt] | None = None,
        answer: str | Sequence[str] | None = None,
        messages: Messages | Sequence[Messages] | None = None,
        budget: str | int = BUDGET,
        by: str = "mean",
        kernel: str | None = None,
        where: Where | None = None,
        hidden: bool = True,
    ) -> choosing.Chosen:
        """Choose the training samples that a validation set wants most, by one scan of the index.

        Parameters
        ----------
        x, y, ids, text, prompt, answer, messages
            The validation set, as `explain` takes queries.
        budget, by, kernel, where, hidden
            How much, and how it is chosen; see `gradindex.search.select.select`.

        Returns
        -------
        gradindex.search.select.Chosen
            The samples, best first; its `save` writes a Parquet file.

        Raises
        ------
        ValueError
            As `explain` and `scores`; for an unknown `by`; for a budget that is none, or of tokens in a job without
            texts.
        """
        words = Words(text=text, prompt=prompt, answer=answer, messages=messages)
        asked = self.asked(x, y, ids, words).queries
        return choosing.select(self, asked, budget=budget, by=by, kernel=kernel, where=where, hidden=hidden)

    @pinned
    def search(
        self, vectors: NDArray[np.generic], k: int = NEIGHBOURS, *, where: Where | None = None, whitened: bool = False
    ) -> tuple[NDArray[np.float32], Ids]:
        """Search with sketches made elsewhere, (m, dim), by cosine, of `whitened` rows if so; needs no job.

        `where` is as in `explain`.

        Returns
        -------
        tuple
            Estimated cosines (m, k) descending and ids (m, k); missing results have id −1.

        Raises
        ------
        ValueError
            For a wrong width, NaN or complex numbers, a bad k, or a `where` that matches nothing.
        """
        if np.iscomplexobj(vectors):
            raise ValueError("The vectors are complex: expected real numbers.")
        vectors = np.asarray(vectors, np.float64)  # float32 takes 1e-50 for zero
        check_k(k, len(self))
        if vectors.ndim != 2 or vectors.shape[1] != self.store.header.dim:
            raise ValueError(f"Expected vectors of shape (m, {self.store.header.dim}), got {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise ValueError("The vectors hold NaN or infinity.")
        if whitened:
            return self._search_whitened(normalise(vectors), k, select(self.store, where))
        scores, rows, _ = self.rows.nearest(normalise(vectors), k, select(self.store, where))
        return scores, cascade.ids_of(self.store, rows)

    @overload
    def kneighbors(
        self, X: Tree, n_neighbors: int = 5, return_distance: Literal[True] = True, *, y: Tree = None
    ) -> tuple[NDArray[np.float64], Ids]: ...

    @overload
    def kneighbors(self, X: Tree, n_neighbors: int, return_distance: Literal[False], *, y: Tree = None) -> Ids: ...

    @overload
    def kneighbors(self, X: Tree, n_neighbors: int = 5, *, return_distance: Literal[False], y: Tree = None) -> Ids: ...

    def kneighbors(
        self, X: Tree, n_neighbors: int = 5, return_distance: bool = True, *, y: Tree = None
    ) -> tuple[NDArray[np.float64], Ids] | Ids:
        """Return the nearest training samples as scikit-learn's ``kneighbors`` does.

        Parameters
        ----------
        X
            Inputs of m queries, as `explain` takes them.
        n_neighbors
            How many.
        return_distance
            Whether to return distances, too.
        y
            Labels of the queries; None: what the model predicts.

        Returns
        -------
        tuple or ndarray
            Distances (m, n_neighbors) float64, 1 − cos of the gradients (exact), ascending; and ids, int64.
        """
        found = self.explain(X, y, k=n_neighbors)
        return (1 - found.scores, found.ordered_indices) if return_distance else found.ordered_indices

    @pinned
    def check(self) -> None:
        """Compare the sha256 of every file of store and index, and look for files that do not belong.

        Raises
        ------
        DamagedIndexError
            Naming the first file that is damaged or belongs to no manifest.
        """
        self.store.check()
        index_files.check(self.store)
        index_files.check_extra(self.store)
        if self.is_whitened:
            self.white.check()

    @pinned
    def self_influence(self, top: int = INFLUENTIAL) -> tuple[NDArray[np.float64], Ids]:
        """Return the largest squared gradient norms (top,), descending, and their ids; reads no gradient.

        Raises
        ------
        ValueError
            If `top` is not between 1 and the number of rows.
        """
        check_k(top, len(self))
        rows = np.argsort(-self.store.norms, kind="stable").astype(np.int64)
        rows = (rows if self.store.alive is None else rows[self.store.alive[rows]])[:top]
        return self.store.norms[rows].astype(np.float64) ** 2, self.store.ids[rows]

    @pinned
    def sketch(self, x: Tree = None, y: Tree = None, *, ids: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return the unit-norm sketches (m, dim) of samples, as `search` takes them; arguments as in `explain`."""
        return self.embedded(self.labelled(x, y, ids))[0]

    def __sklearn_clone__(self) -> "Index":
        """Return itself: pipelines copy their steps' arguments, and an open index is not to be copied."""
        return self
