"""Answers with as many exact checks as a calibrated promise takes, and no more.

Candidates of both sides are checked in blocks, in the order of what their estimates and the calibrated margin reach; a
side is finished once its k-th exact value is above what is left, see `gradindex.search.stopping`. One pass serves the
blocks of both sides.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.data.source import Batch
from gradindex.gradients.parameter import Floats
from gradindex.kernels import Kernel
from gradindex.search import cascade, stopping
from gradindex.search.answer import Answer
from gradindex.search.bounds import candidate_bounds
from gradindex.search.calibration import Promise
from gradindex.search.question import Question

if TYPE_CHECKING:
    from gradindex.index.index import Index


def answer(
    index: "Index",
    queries: Batch,
    gradients: Floats,
    sketches: NDArray[np.float32],
    norms: NDArray[np.float64],
    asked: Question,
    promise: Promise,
) -> tuple[Answer, str]:
    """Return proponents and opponents of some queries, and how exact values were computed.

    Parameters
    ----------
    index, queries, gradients, sketches, norms, asked
        As `gradindex.search.cascade.answer` takes them.
    promise
        How far to check.
    """
    pair = np.concatenate([sketches, index.projector.opposite(sketches)])
    estimates, near, scanned = cascade.candidates(index, pair, np.tile(norms, 2), asked)
    halves = slice(0, len(norms)), slice(len(norms), None)
    searches: list[list[stopping.Checks]] = []
    expected = []
    for half, limits in zip(halves, promise.sides, strict=True):
        z, weights, bounds = measures(index, asked, pair[half], norms, estimates[half], near[half])
        margins, recalls, first = limits.of(difficulty(z, asked.k))
        reached = stopping.reach(z, weights, margins[:, None], bounds)
        expected.append(recalls)
        lines = zip(near[half], reached, first.tolist(), strict=True)
        searches.append([stopping.Checks(rows, most, asked.k, size) for rows, most, size in lines])
    checked, values, methods = _checked(index, queries, gradients, norms, asked, searches)
    found = cascade.best_of(values, checked, asked.k)
    answered = cascade.answer_of(index, asked, norms, found, checked, [scanned[half] for half in halves], expected)
    return answered, " + ".join(sorted(methods))


def measures(
    index: "Index",
    asked: Question,
    sketches: NDArray[np.float32],
    norms: NDArray[np.float64],
    estimates: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """Return of a side's candidates Fisher's z of the estimates, the kernel's weights, and bounds of cosines, (m, c).

    `estimates` are those of the kernel's values, −inf for missing candidates, whose z is −inf, too.
    """
    there = rows >= 0
    lengths = index.store.norms[np.maximum(rows, 0)]
    weights = np.stack(
        [kernels.weights(asked.kernel, float(norm), some) for norm, some in zip(norms, lengths, strict=True)]
    )
    cosines = estimates
    if asked.kernel is not Kernel.COS:
        cosines = np.divide(estimates, weights, out=np.zeros_like(estimates), where=there & (weights > 0))
    z = np.where(there, stopping.to_z(np.where(there, cosines, 0.0)), -np.inf)
    return z, weights, candidate_bounds(index, sketches, rows, cosines)


def difficulty(z: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return what tells queries apart before anything is checked, (m,): the k-th largest z of their candidates."""
    kth: NDArray[np.float64] = -np.partition(-z, k - 1, axis=1)[:, k - 1]
    return kth


def _checked(
    index: "Index",
    queries: Batch,
    gradients: Floats,
    norms: NDArray[np.float64],
    asked: Question,
    searches: list[list[stopping.Checks]],
) -> tuple[NDArray[np.int64], NDArray[np.float64], set[str]]:
    """Check blocks of candidates until no search wants more; return the rows (m, c), −1 for none, and their values."""
    known: list[dict[int, float]] = [{} for _ in norms]
    methods: set[str] = set()
    while True:
        wanted = [[search.wanted() for search in pair] for pair in zip(*searches, strict=True)]
        blocks = [
            [row for row in dict.fromkeys(np.concatenate(rows).tolist()) if row not in values]
            for rows, values in zip(wanted, known, strict=True)
        ]
        lines = np.flatnonzero([len(block) > 0 for block in blocks])
        if len(lines):
            rows = np.full((len(lines), max(map(len, blocks))), -1, np.int64)
            for place, line in enumerate(lines):
                rows[place, : len(blocks[line])] = blocks[line]
            some = queries if len(lines) == len(norms) else queries.select(lines)
            part = gradients if len(lines) == len(norms) else gradients[lines]
            values, method = cascade.exact_values(index, some, part, norms[lines], rows, asked)
            methods.add(method)
            for place, line in enumerate(lines):
                known[line].update(zip(blocks[line], values[place].tolist(), strict=False))
        elif not any(len(block) for pair in wanted for block in pair):
            break
        for number, pair in enumerate(wanted):
            for sign, side, block in zip((1, -1), searches, pair, strict=True):
                if len(block):
                    side[number].take(sign * np.array([known[number][row] for row in block.tolist()]))
    width = max(map(len, known))
    rows, values = np.full((len(norms), width), -1, np.int64), np.zeros((len(norms), width))
    for place, found in enumerate(known):
        rows[place, : len(found)], values[place, : len(found)] = list(found), list(found.values())
    return rows, values, methods
