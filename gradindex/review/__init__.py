"""A review: samples that a person should look at before a model is trained again, and what was decided on them.

`review` looks for them; a `Review` holds what it found, and `Review.save` writes it with an empty column for decisions.
`read_decisions` reads them back.
"""

from gradindex.review.decisions import Decision, Decisions
from gradindex.review.decisions import read as read_decisions
from gradindex.review.found import Finding, Kind, Review
from gradindex.review.making import review

__all__ = ["Decision", "Decisions", "Finding", "Kind", "Review", "read_decisions", "review"]
