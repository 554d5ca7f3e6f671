"""Answers by whitened rows: their kernels are estimates, and no exact gradient is evaluated."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.selection import Selection
from gradindex.kernels import WhiteKernel
from gradindex.search import cascade, question
from gradindex.search.answer import Answer, Side
from gradindex.search.options import SearchOptions
from gradindex.search.whitened import Whitened

ESTIMATOR = "whitened rows"


def ask(white: Whitened, kernel: WhiteKernel, options: SearchOptions, wanted: Selection | None) -> question.Question:
    """Return the question to the whitened rows of a store, of which only those of a selection may be found.

    Raises
    ------
    ValueError
        If a proof or a recall is asked for, which these kernels do not have; or `eps`; or for a bad k.
    """
    refused = {"certify": options.certify, "recall": options.recall is not None, "eps": bool(options.eps)}
    if any(refused.values()):
        names = ", ".join(name for name, given in refused.items() if given)
        raise ValueError(f"{kernel} is an estimate by whitened rows, for which {names} has no meaning: leave it out.")
    plain = replace(options, rerank=0)
    return question.ask(len(white.store), kernel.plain, plain, white.selection(wanted))


def answer(
    white: Whitened, rows: NDArray[np.float32], lengths: NDArray[np.float64], asked: question.Question
) -> Answer:
    """Return proponents and opponents of queries by a kernel of their whitened rows.

    Parameters
    ----------
    white
        The rows.
    rows, lengths
        Whitened rows (m, width) of unit norm of the queries, and their norms (m,): what `Whitened.whitener` returns.
    asked
        What `ask` returned.
    """
    pair, k = np.concatenate([rows, -rows]), asked.k
    scores, found, scanned = cascade.candidates(white, pair, np.tile(lengths, 2), asked)
    sides = []
    for half, sign in ((slice(0, len(rows)), 1), (slice(len(rows), None), -1)):
        near = found[half, :k]
        none = np.zeros(len(rows), bool)
        sides.append(
            Side(
                ids=cascade.ids_of(white.store, near),
                scores=np.where(near < 0, np.nan, sign * np.where(near < 0, 0.0, scores[half, :k])),
                exact=np.zeros(near.shape, bool),
                proved=none,
                checked=np.zeros(len(rows), np.int64),
                scanned=scanned[half],
                bound_left=np.full(len(rows), np.nan),
                expected_recall=np.full(len(rows), np.nan),
            )
        )
    return Answer(*sides)
