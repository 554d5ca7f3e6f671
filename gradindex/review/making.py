"""Making a review: what each kind of finding is made of."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tree
from gradindex.defaults import NEIGHBOURS, REVIEWED, SEED
from gradindex.review import combine, distances, leaks, planting
from gradindex.review.evidence import Evidence, Near
from gradindex.review.found import Finding, Kind, Review
from gradindex.review.moved import Moved
from gradindex.runtime.turns import Turn, at_once
from gradindex.search.answer import check_k

if TYPE_CHECKING:
    from gradindex.index.index import Index

_NAMED = 5  # neighbours that a line names


STAGES = "samples", "neighbours", "classifiers", "ranking"
"""What a review does, in this order."""


def review(
    index: "Index",
    *,
    top: int = REVIEWED,
    k: int = NEIGHBOURS,
    seed: int = SEED,
    turn: Turn = at_once,
    say: Callable[[str], None] = lambda stage: None,
    held_out: Tree = None,
    held_out_labels: Tree = None,
) -> Review:
    """Look for samples that a person should look at: wrong labels, duplicates, outliers, opponents, confused classes.

    With held-out samples, also for leaks: those that are near-duplicates of training samples.

    Labels are ranked by one score, see `gradindex.review.combine`. It combines the loss, the labels of gradient
    neighbours and opponents, those of the nearest hidden vectors and inputs, and a cross-validated classifier of the
    inputs. It reads the data once, pictures twice, and trains small classifiers; the model is not trained again.
    Neighbours by gradient are those of the stored rows: estimates.

    Near-duplicates are pairs whose hidden vectors or inputs are nearer than Tukey's outer fence of the distances of
    nearest samples, or nearer than his inner one and five times as near as the second nearest; pictures are also
    compared when moved by a pixel, with all others where there are up to 10,000, and with those neighbours else.
    Outliers are beyond the inner fence above; see `gradindex.review.distances`.

    Parameters
    ----------
    index
        An index that was opened with its job. Removed samples are left alone.
    top
        The most lines of each kind.
    k
        Neighbours of each sample that count.
    seed
        Of folds, and of labels that are planted wrong to estimate the precision.
    turn
        Runs each piece of what uses the model or the dataset, a batch at a time: where others use them, too.
    say
        Called with each of `STAGES` as it begins.
    held_out
        Inputs of m held-out samples (m, …), in the form of the dataset's. A leak is one that is as near to a training
        sample, in hidden vectors or inputs, as near-duplicates in the training set are; see
        `gradindex.review.leaks.find`.
    held_out_labels
        Their labels (m, …), to be shown; may be left out.

    Returns
    -------
    Review
        The findings; its `left_out` says what could not be looked at: wrong labels, opponents and confused classes of
        regression and of labels that are no single classes, opponents of rows that are no gradients, inputs that are
        texts or of different shapes.

    Raises
    ------
    ValueError
        If the index was opened without a job, holds fewer than 3 samples, or top or k is less than 1 or k larger than
        the index; if the held-out samples are shaped otherwise than the dataset's, or are not as many as their labels.
    ImportError
        If the samples have classes and scikit-learn is not installed; says what to type.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    check_k(k, len(index))
    if held_out is not None:
        held_out, held_out_labels = leaks.checked(index, held_out, held_out_labels)
    evidence = Evidence(index, k, seed, turn)
    say(STAGES[0])
    _ = evidence.vectors
    say(STAGES[1])
    _ = evidence.near
    say(STAGES[2])
    _ = evidence.probabilities
    say(STAGES[3])
    about: dict[str, object] = {"samples": len(evidence.ids), "neighbours": evidence.k, "seed": seed}
    findings: list[Finding] = []
    scores = None
    if evidence.labels is not None:
        scores = combine.score(evidence.signs)
        findings += _labels(evidence, scores, top, about)
    moved = Moved.of(evidence)
    findings += _duplicates(evidence, moved, top, about)
    findings += _outliers(evidence, top)
    if evidence.labels is not None and evidence.by_gradient:
        findings += _opponents(evidence, top)
        findings += _confusions(evidence, top)
    if held_out is not None:
        findings += leaks.find(evidence, moved, held_out, held_out_labels, top, about)
    return Review(tuple(findings), tuple(evidence.left_out), about, scores, evidence.ids, held_out)


def _labels(evidence: Evidence, scores: NDArray[np.float64], top: int, about: dict[str, object]) -> Iterator[Finding]:
    """Yield the samples whose labels are likely wrong, and say how many there may be."""
    labels = evidence.labels
    assert labels is not None
    order = np.argsort(-scores, kind="stable")
    estimate = planting.estimate(evidence, order)
    about["label_errors"] = None if np.isnan(estimate.share) else estimate.share
    about["precision_from"] = estimate.how
    proposed, by_gradient = evidence.guessed, evidence.by_gradient
    disagreement = evidence.disagreement if by_gradient else np.zeros(0)
    for rank, place in enumerate(order[:top].tolist()):
        space = evidence.space
        another = proposed[place] if proposed[place] != labels[place] else None
        yield _finding(
            evidence,
            Kind.LABEL,
            place,
            float(scores[place]),
            evidence.near[space].places[place],
            f"neighbours by {space}"
            + (f"; {disagreement[place]:.0%} of gradients and opponents differ" if by_gradient else ""),
            proposed=another,
            precision=None if np.isnan(estimate.precision[rank]) else float(estimate.precision[rank]),
        )


def _duplicates(evidence: Evidence, moved: Moved | None, top: int, about: dict[str, object]) -> list[Finding]:
    """Return the pairs that are alike in some space, the most unlike others first."""
    best: dict[tuple[int, int], tuple[float, str]] = {}
    fences: dict[str, float] = {}
    for space, near, usual in _alike(evidence, moved):
        places, scores, fences[space] = distances.pairs(near, usual)
        if distances.all_are_copies(near):
            evidence.left_out.append(
                f"By {space}, the {evidence.k} samples nearest to each are its copies, so near-duplicates are not told "
                "from others: leave repeated samples out, or compare more neighbours (k)."
            )
        for (one, other), score in zip(places.tolist(), scores.tolist(), strict=True):
            best[one, other] = max(best.get((one, other), (0.0, "")), (score, space))
    about["duplicate_cosines"] = fences
    first = sorted(best.items(), key=lambda entry: (-entry[1][0], entry[0]))[:top]
    return [
        _finding(evidence, Kind.DUPLICATE, one, score, np.array([other]), evidence.cosines(one, other))
        for (one, other), (score, _) in first
    ]


def _alike(evidence: Evidence, moved: Moved | None) -> Iterator[tuple[str, Near, Near]]:
    """Yield a name, the samples near to each one, and what is usual: in each space, and of pictures that are moved."""
    for space in evidence.vectors:
        yield space, evidence.near[space], evidence.near[space]
    if moved is not None:
        yield "inputs moved by a pixel", moved.of_training(), moved.usual


def _outliers(evidence: Evidence, top: int) -> list[Finding]:
    """Return the samples that are farther from their nearest than the inner fence in some space."""
    if not evidence.vectors:
        return []
    spaces = list(evidence.vectors)
    scores = np.stack([distances.outliers(evidence.near[space]) for space in spaces])
    best = scores.max(axis=0)
    found = []
    for place in np.argsort(-best, kind="stable")[:top].tolist():
        if best[place] < distances.FARTHER:
            break
        space = spaces[int(scores[:, place].argmax())]
        note = f"neighbours by {space}, mean cosine {evidence.near[space].mean_cosine(place):.3f}"
        found.append(
            _finding(evidence, Kind.OUTLIER, place, float(best[place]), evidence.near[space].places[place], note)
        )
    return found


def _opponents(evidence: Evidence, top: int) -> list[Finding]:
    """Return the samples that are most often opponents of samples that the model predicts as they are labelled."""
    if evidence.predictions is None:
        return []
    right = np.flatnonzero(evidence.predictions == evidence.classes[evidence.labels])
    opposed = evidence.opponents.places[right]
    there = evidence.opponents.cosines[right] > 0
    counts = np.bincount(opposed[there & (opposed >= 0)], minlength=len(evidence.ids))
    found = []
    for place in np.argsort(-counts, kind="stable")[:top].tolist():
        if not counts[place]:
            break
        rows, columns = np.nonzero((opposed == place) & there)
        strongest = np.argsort(-evidence.opponents.cosines[right[rows], columns], kind="stable")
        note = f"opposes {counts[place]:,} of {len(right):,} samples that are predicted right; the most strongly: these"
        found.append(_finding(evidence, Kind.OPPONENT, place, float(counts[place]), right[rows[strongest]], note))
    return found


def _confusions(evidence: Evidence, top: int) -> list[Finding]:
    """Return the pairs of classes whose samples oppose each other most."""
    labels, count = evidence.labels, len(evidence.classes)
    assert labels is not None
    places, cosines = evidence.opponents.places, evidence.opponents.cosines
    rows, columns = np.nonzero((places >= 0) & (cosines > 0))
    table = np.zeros((count, count))
    np.add.at(table, (labels[rows], labels[places[rows, columns]]), 1)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    mutual = np.sqrt(shares * shares.T)
    one, other = np.triu_indices(count, 1)
    found = []
    for pair in np.argsort(-mutual[one, other], kind="stable")[:top].tolist():
        a, b = int(one[pair]), int(other[pair])
        if not mutual[a, b]:
            break
        between = np.isin(labels[rows], (a, b)) & np.isin(labels[places[rows, columns]], (a, b))
        between &= labels[rows] != labels[places[rows, columns]]
        strongest = np.argsort(-cosines[rows, columns] * between, kind="stable")[: int(between.sum())]
        named = np.unique(np.stack([rows, places[rows, columns]], axis=1)[strongest[:_NAMED]].ravel())
        found.append(
            Finding(
                Kind.CONFUSION,
                None,
                float(mutual[a, b]),
                evidence.class_of(a),
                evidence.class_of(b),
                None,
                tuple(evidence.ids[named[:_NAMED]].tolist()),
                tuple(evidence.class_of(int(labels[place])) for place in named[:_NAMED]),
                f"of the opponents of the first {shares[a, b]:.0%} are of the second, the other way {shares[b, a]:.0%}",
            )
        )
    return found


def _finding(
    evidence: Evidence,
    kind: Kind,
    place: int,
    score: float,
    neighbours: NDArray[np.int64],
    note: str,
    *,
    proposed: int | None = None,
    precision: float | None = None,
) -> Finding:
    """Return a line on the sample at a place."""
    near = [int(one) for one in neighbours[neighbours >= 0][:_NAMED]]
    labels = evidence.labels
    return Finding(
        kind,
        int(evidence.ids[place]),
        score,
        None if labels is None else evidence.class_of(int(labels[place])),
        evidence.prediction(place),
        None if proposed is None else evidence.class_of(int(proposed)),
        tuple(int(evidence.ids[one]) for one in near),
        () if labels is None else tuple(evidence.class_of(int(labels[one])) for one in near),
        note,
        precision,
    )
