"""Answers by some groups of parameters alone, or by groups of several weights, from the rows of a `Groups` sketch.

The inner product is Σ_g w_g ⟨q_g, t_g⟩ over groups g with weights w_g ≥ 0, and norms are those of the same product. A
scan of the store estimates it by the groups' numbers in the rows; candidates are evaluated exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.compute import exact, queries
from gradindex.compute.blocks import default_batch_size
from gradindex.data.source import Ids
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.gradients.ways import FORMED
from gradindex.kernels import white
from gradindex.search import cascade, norm_scan
from gradindex.search.answer import Answer, Side, joined
from gradindex.search.options import SearchOptions
from gradindex.search.question import Question
from gradindex.sketch.groups import GroupsProjector
from gradindex.sketch.unit_rows import normalise

if TYPE_CHECKING:
    from gradindex.index.index import Index

GroupChoice: TypeAlias = str | Sequence[str] | Mapping[str, float]
"""One group, several, or their weights."""
_QUERIES = 64  # at once, so that their values for a block of rows take little memory


@dataclass(frozen=True)
class Weighted:
    """The weights of groups by their names, of a row's `numbers` (dim,), and of a gradient's `coordinates` (P,)."""

    by_group: dict[str, float]
    numbers: NDArray[np.float32]
    coordinates: NDArray[np.float32]


def weighted(engine: Engine, projector: object, choice: GroupChoice) -> Weighted:
    """Return the weights that a choice of groups stands for.

    Raises
    ------
    ValueError
        If the rows have no groups, one is unknown, or weights are negative or all zero.
    """
    if not isinstance(projector, GroupsProjector):
        raise ValueError(
            "groups needs an index whose rows have some: build it with sketch=gradindex.Groups({'attention': …}), or "
            "give the job parameters='…' to have no others."
        )
    chosen = {choice: 1.0} if isinstance(choice, str) else choice
    by_group = {str(name): float(one) for name, one in chosen.items()} if isinstance(chosen, Mapping) else {}
    by_group = by_group or {str(name): 1.0 for name in chosen}
    weights = np.array([*by_group.values()])
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(f"Weights of groups must be 0 or more, and some more, got {by_group}.")
    numbers, by_name = projector.weights(by_group)
    coordinates = np.concatenate([np.full(p.size, by_name[p.name], np.float32) for p in engine.parameters])
    return Weighted(by_group, numbers, coordinates)


def refuse(options: SearchOptions, *, each: bool) -> None:
    """Raise ValueError for what has no meaning with groups."""
    whitened = white(options.kernel) is not None
    names = {"certify": options.certify, "recall": options.recall is not None, "whitened kernels": whitened}
    if refused := [name for name, given in {**names, "tokens='each'": each}.items() if given]:
        raise ValueError(f"groups does not go with {', '.join(refused)}: leave one of them out.")


def explain(
    index: "Index", asked: queries.Queries, choice: GroupChoice, wanted: Question
) -> tuple[Answer, dict[str, object]]:
    """Return the answer by the chosen groups, and `params` of an explanation; raises like `weighted`."""
    engine, selection = index.job.engine, wanted.selection
    weights = weighted(engine, index.projector, choice)
    answers = []
    for _, gradients, _ in queries.gradient_chunks(engine, asked, _QUERIES):
        answers.append(_answer(index, gradients, weights, wanted))
    params: dict[str, object] = {
        "kernel": wanted.kernel.value,
        "groups": weights.by_group,
        "k": wanted.k,
        "rerank": wanted.depth if wanted.rerank else 0,
        "exact_method": FORMED if wanted.rerank else "none",
        "estimator": "exact gradients" if wanted.rerank else "stored rows",
        "selected": len(index) if selection is None else len(selection),
        "rows": len(index),
        "index": index.searcher.factory,
        "searched": cascade.STORE,
        "sketch": index.store.header.sketch,
    }
    return joined(answers), params


def _answer(index: "Index", gradients: Floats, weights: Weighted, asked: Question) -> Answer:
    norms = _norms(gradients, weights)
    rows = index.projector(index.job.engine.parameters, gradients)
    estimates, near = _scan(index, rows, weights, asked)
    halves = slice(0, len(norms)), slice(len(norms), None)
    checked = cascade.distinct(np.hstack([near[half] for half in halves]))
    if asked.rerank:
        values = _exact(index, gradients, norms, weights, checked, asked)
        found = [norm_scan.top(np.where(checked < 0, -np.inf, sign * values), checked, asked.k) for sign in (1, -1)]
    else:
        found = [(estimates[half, : asked.k], near[half, : asked.k]) for half in halves]
    sides = []
    for sign, (scores, places) in zip((1, -1), found, strict=True):
        missing = places < 0
        sides.append(
            Side(
                ids=cascade.ids_of(index.store, places),
                scores=np.where(missing, np.nan, sign * np.where(missing, 0.0, scores)),
                exact=~missing & asked.rerank,
                proved=np.zeros(len(norms), bool),
                checked=(checked >= 0).sum(axis=1) if asked.rerank else np.zeros(len(norms), np.int64),
                scanned=np.full(len(norms), len(index) if asked.selection is None else len(asked.selection)),
                bound_left=np.full(len(norms), np.nan),
                expected_recall=np.full(len(norms), np.nan),
            )
        )
    return Answer(*sides)


def _scan(
    index: "Index", rows: NDArray[np.float32], weights: Weighted, asked: Question
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return estimated kernel values (2 m, depth), descending, and rows: of the queries, then of their opposites.

    Norms are the lengths of the groups' numbers on both sides, so that cosines are those of the numbers.
    """
    store, selection, by_number = index.store, asked.selection, weights.numbers.astype(np.float64)
    norms = np.sqrt(np.square(rows, dtype=np.float64) @ by_number)
    own = np.linalg.norm(rows.astype(np.float64), axis=1)[:, None]
    rows = normalise(rows) * weights.numbers  # products of tiny numbers would vanish in single precision
    best = np.full((2 * len(rows), asked.depth), -np.inf)
    near = np.full(best.shape, -1, np.int64)
    for first, block in store.blocks():
        lengths = store.norms[first : first + len(block)].astype(np.float64)
        parts = lengths * np.sqrt(np.square(block, dtype=np.float64) @ by_number)
        found = kernels.values(asked.kernel, own * (rows @ block.T) * lengths, norms, parts, asked.eps)
        if selection is not None:
            found[:, ~selection.mask[first : first + len(block)]] = -np.inf
            opposite = np.where(np.isneginf(found), -np.inf, -found)
        else:
            opposite = -found
        places = np.where(np.isneginf(found), -1, np.arange(first, first + len(block)))
        both, twice = np.vstack([found, opposite]), np.vstack([places, places])
        best, near = norm_scan.top(np.hstack([best, both]), np.hstack([near, twice]), asked.depth)
    return best, near


def _exact(
    index: "Index",
    gradients: Floats,
    norms: NDArray[np.float64],
    weights: Weighted,
    rows: NDArray[np.int64],
    asked: Question,
) -> NDArray[np.float64]:
    """Return exact kernel values (m, c) of queries with samples of some rows, from formed gradients."""
    engine, store = index.job.engine, index.store
    wanted = np.unique(rows[rows >= 0])
    every, lengths = np.zeros((len(gradients), len(wanted))), np.zeros(len(wanted))
    losses: dict[int, float] = {}
    size = min(default_batch_size(engine), index.at_hand.batch_size)
    directions, begin = gradients * weights.coordinates, 0
    for batch, formed in exact.gradient_blocks(engine, index.job.source, store.ids[wanted], size):
        part = slice(begin, begin := begin + len(batch))
        every[:, part] = exact.dots(directions, formed.gradients)
        lengths[part] = _norms(formed.gradients, weights)
        losses.update(zip(batch.ids.tolist(), formed.losses.tolist(), strict=True))
    changed: Ids = cascade.compare_losses(store, losses)
    index.changed.append(changed)
    places = np.minimum(np.searchsorted(wanted, rows), len(wanted) - 1)
    out = np.empty(rows.shape)
    for line in range(len(rows)):
        dots = every[line : line + 1, places[line]]
        out[line] = kernels.values(asked.kernel, dots, norms[line : line + 1], lengths[places[line]], asked.eps)[0]
    return out


def _norms(gradients: Floats, weights: Weighted) -> NDArray[np.float64]:
    """Return √(Σ_g w_g ‖g‖²) of each gradient (b, P), accumulated in double precision."""
    squares = np.zeros(len(gradients))
    for begin in range(0, gradients.shape[1], 1 << 16):
        part = slice(begin, begin + (1 << 16))
        squares += np.square(gradients[:, part], dtype=np.float64) @ weights.coordinates[part].astype(np.float64)
    return np.sqrt(squares)
