"""Texts of a report, token by token: how dark one is says how much of a score it carries."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from gradindex.plots.read import short_number
from gradindex.plots.rendering import printable

_OPEN = 96  # tokens that are shown without unfolding a text
_BLUE, _ORANGE = "0, 114, 178", "213, 94, 0"
_DARKEST = 0.65


class Token(TypedDict):
    """A token: its text, its colour in CSS, what it carries as text, and whether it has a loss."""

    text: str
    colour: str
    carries: str
    counts: bool


def shaded(pieces: Sequence[str], scores: NDArray[np.float64], largest: float) -> dict[str, Any]:
    """Return a text for the report's template, with the tokens behind the first ones folded away.

    Parameters
    ----------
    pieces
        The tokens as texts.
    scores
        What each of them carries of a score, (t,) float64; 0 where it has no loss, as in a prompt.
    largest
        The size of what is drawn darkest.
    """
    gap = _gap(pieces)
    tokens: list[Token] = []
    for place, piece in enumerate(pieces):
        score = float(scores[place]) if place < len(scores) and np.isfinite(scores[place]) else 0.0
        share = 0.0 if largest <= 0 else min(1.0, abs(score) / largest)
        tokens.append(
            {
                "text": printable(piece) + gap,
                "colour": f"rgba({_BLUE if score >= 0 else _ORANGE}, {_DARKEST * share:.3f})",
                "carries": short_number(score),
                "counts": score != 0,
            }
        )
    return {"kind": "tokens", "value": tokens[:_OPEN], "rest": tokens[_OPEN:]}


def text_of(pieces: Sequence[str]) -> str:
    """Return tokens as one text."""
    return _gap(pieces).join(pieces)


def _gap(pieces: Sequence[str]) -> str:
    """Return what stands between tokens: a space where a tokenizer leaves none in them."""
    return "" if any(piece[:1].isspace() or piece[-1:].isspace() for piece in pieces) else " "


def largest_of(scores: Sequence[NDArray[np.float64]]) -> float:
    """Return the size of the largest of some scores, 0 if there are none."""
    finite = [np.abs(some[np.isfinite(some)]) for some in scores]
    return max((float(some.max()) for some in finite if some.size), default=0.0)
