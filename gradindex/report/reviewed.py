"""What the page of a review says, as plain values for its template."""

from gradindex.index.index import Index
from gradindex.plots.read import short_number
from gradindex.report.facts import Facts
from gradindex.review.found import MEANING, TITLES, Finding, Kind, Review

_DEPTHS = (10, 20, 50, 100, 200, 500)


def sections(index: Index, found: Review) -> list[dict[str, object]]:
    """Return a section for each kind that there is: title, meaning, its lines, and of labels the expected precision."""
    facts = Facts(index)
    return [
        {
            "title": TITLES[kind],
            "meaning": MEANING[kind],
            "precision": precisions(lines),
            "lines": [_line(facts, one, found) for one in lines],
        }
        for kind in Kind
        if (lines := found.of(kind))
    ]


def precisions(lines: list[Finding]) -> list[tuple[int, str]]:
    """Return the expected precision at some depths and at the last line."""
    if not lines or lines[-1].precision is None:
        return []
    depths = [depth for depth in _DEPTHS if depth < len(lines)] + [len(lines)]
    return [(depth, _percent(lines[depth - 1].precision)) for depth in depths]


def _percent(share: float | None) -> str:
    """Return a share as a percentage; an estimate of less than one is no zero."""
    return "" if share is None else "< 1%" if share < 0.01 else f"{share:.0%}"


def _line(facts: Facts, one: Finding, found: Review) -> dict[str, object]:
    known: dict[str, object] = {"label": one.label, "prediction": one.prediction}
    labels = one.neighbour_labels or (None,) * len(one.neighbours)
    cards = [
        facts.sample(i, {"label": label, "prediction": None}, score="", exact=True, same=_same(label, one.label))
        for i, label in zip(one.neighbours, labels, strict=True)
    ]
    title, sample = f"{facts.name(one.label)} and {facts.name(one.prediction)}", None
    if one.id is not None:
        title, sample = f"Sample {one.id}", facts.sample(one.id, known, score="", exact=True, same=None)
    elif one.held_out is not None:
        title, sample = f"Held-out sample {one.held_out}", facts.held_out(found.held_out, one.held_out, known)
    return {
        "title": title,
        "sample": sample,
        "score": short_number(one.score),
        "proposed": facts.name(one.proposed),
        "note": one.note,
        "neighbours": cards,
    }


def _same(label: int | None, own: int | None) -> bool | None:
    return None if label is None or own is None else label == own
