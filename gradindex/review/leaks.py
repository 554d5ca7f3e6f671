"""Leaks: held-out samples that are near-duplicates of training samples."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.vectors import nearest_to
from gradindex.compute.queries import match_shapes
from gradindex.data.labels import as_classes
from gradindex.data.names import Tree
from gradindex.data.source import length
from gradindex.review import distances
from gradindex.review.evidence import Evidence, Near, unit
from gradindex.review.found import Finding, Kind
from gradindex.review.moved import Moved

if TYPE_CHECKING:
    from gradindex.index.index import Index

_NAMED = 5  # training samples that a line names


def checked(index: "Index", x: Tree, y: Tree) -> tuple[Tree, Tree]:
    """Return held-out samples with a sample axis, compared with the dataset's; raises ValueError if they differ."""
    x, y = match_shapes(x, y, index.example)
    if y is not None and length(y, "Y") != length(x, "X"):
        raise ValueError(f"There are {length(x, 'X')} held-out samples, but {length(y, 'Y')} labels.")
    return x, y


def find(
    evidence: Evidence, moved: Moved | None, x: Tree, y: Tree, top: int, about: dict[str, object]
) -> list[Finding]:
    """Return the held-out samples with a near-duplicate in the training set, those with the nearest first.

    A held-out sample leaks if it is as near to a training sample, in hidden vectors or in inputs, as near-duplicates
    are, see `distances.alike`; what is usual is the distance of training samples and their nearest others. Pictures are
    also compared moved by a pixel, and what is usual then is the distance of pictures compared so, see `Moved`. `about`
    is told how many leak, of how many, whatever `top` is.
    """
    best: dict[int, dict[int, tuple[float, str]]] = {}  # of a row and a place: score, and the cosines
    for space, near, usual in _compared(evidence, moved, x, y):
        scores, _ = distances.nearness(near, usual)
        for row, column in np.argwhere(distances.alike(near, usual)).tolist():
            of_row, place = best.setdefault(row, {}), int(near.places[row, column])
            score, cosines = of_row.get(place, (0.0, "cosines: "))
            cosines += f"{', ' if score else ''}{space} {float(near.cosines[row, column]):.4f}"
            of_row[place] = max(score, float(scores[row, column])), cosines
    about["leaks"], about["held_out"] = len(best), length(x, "X")
    if not evidence.vectors:
        evidence.left_out.append("Leaks: there are no vectors by which held-out samples could be compared.")
    labels, found = _classes(evidence, y), []
    for row in sorted(best, key=lambda one: (-max(best[one].values())[0], one))[:top]:
        places = sorted(best[row], key=lambda place: (-best[row][place][0], place))
        score, alike = best[row][places[0]]
        named = places[:_NAMED]
        more = f", near-duplicates of {len(places)} training samples in all" if len(places) > len(named) else ""
        found.append(
            Finding(
                Kind.LEAK,
                None,
                score,
                None if labels is None else int(labels[row]),
                None,
                None,
                tuple(evidence.ids[named].tolist()),
                () if evidence.labels is None else tuple(evidence.classes[evidence.labels[named]].astype(int).tolist()),
                f"{alike}{more}",
                held_out=row,
            )
        )
    return found


def _compared(evidence: Evidence, moved: Moved | None, x: Tree, y: Tree) -> Iterator[tuple[str, Near, Near]]:
    """Yield a name, the training samples near to each held-out one, and what is usual of training samples."""
    for space, rows in evidence.vectors_of(x, y).items():
        near = nearest_to(unit(rows), unit(evidence.vectors[space]), evidence.k)
        yield space, Near(*near), evidence.near[space]
    if moved is not None:
        yield "inputs moved by a pixel", moved.near(x), moved.usual


def _classes(evidence: Evidence, y: Tree) -> NDArray[np.int64] | None:
    """Return the classes (m,) of held-out samples; None where the training samples have none, or y is left out."""
    classes = None if evidence.labels is None else as_classes(y)
    return None if classes is None else classes.astype(np.int64)
