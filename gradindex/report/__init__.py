"""Reports on an index, on some queries, on a review: each one HTML file that needs nothing else."""

from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from gradindex.data.names import Tree
from gradindex.defaults import REPORTED, REPORTED_INFLUENTIAL
from gradindex.kernels import white
from gradindex.search.texts import EACH
from gradindex.store.location import Location, locate, save

if TYPE_CHECKING:
    from gradindex.index.index import Index
    from gradindex.review.found import Review

_WORDS = "text", "prompt", "messages"
_NO_TOKENS = {"reduce", "against", "groups"}  # options of queries whose tokens have no influence of their own

__all__ = ["report", "review_page", "write_report", "write_review"]


def report(
    index: "Index",
    x: Tree = None,
    y: Tree = None,
    *,
    ids: ArrayLike | None = None,
    k: int = REPORTED,
    top: int = REPORTED_INFLUENTIAL,
    **how: Any,
) -> str:
    """Return an HTML page on an index, and on the neighbours of some queries.

    It holds a card of model and data, the last audit, each query with its proponents and opponents, which labels the
    neighbours of right and of wrong predictions have (of inputs with labels), a table of the classes, and the samples
    that influence themselves most. Samples look as `Job.render` shows them; texts of a language job whose loss knows
    its tokens show them shaded by what they carry of a score. The page loads nothing and runs nothing; labels and texts
    are escaped.

    Parameters
    ----------
    index
        An index that was opened with its job.
    x, y, ids
        The queries, as `Index.explain` takes them; without any the page has no section on queries.
    k
        Proponents and opponents of each.
    top
        How many of the most self-influential samples to show.
    **how
        More options of `Index.explain`: kernel, rerank, where, certify; and queries in words: text, prompt, answer,
        messages.

    Raises
    ------
    ImportError
        If Jinja2 or Pillow is not installed; says what to type.
    ValueError
        As `Index.explain`; and if k or top is less than 1.
    """
    from gradindex.report import pages

    pages.require()
    from gradindex.report.facts import Facts

    facts = Facts(index)
    asked = x is not None or ids is not None or any(how.get(name) is not None for name in _WORDS)
    if asked and facts.tells_tokens and white(how.get("kernel")) is None and not how.keys() & _NO_TOKENS:
        how = {"tokens": EACH} | how
    result = index.explain(x, y, ids=ids, k=min(k, len(index)), **how) if asked else None
    given = {name for name, value in how.items() if value is not None}
    held_out = x is not None and y is not None and given <= {"kernel", "rerank", "tokens"}
    return pages.render(
        "report.html",
        card=facts.card(),
        metric=not facts.gradients,
        audit=facts.audit(),
        classes=facts.classes(),
        shades=result is not None and "token_scores" in result.data,
        queries=[] if result is None else facts.queries(result, x, ids),
        kernel=None if result is None else facts.kernel(result),
        neighbours=[] if result is None or not held_out else facts.neighbours(result, x, y, k, how.get("rerank")),
        influential=facts.influential(min(top, len(index))),
    )


def review_page(index: "Index", found: "Review") -> str:
    """Return an HTML page on what a review found: each line with its picture or text, and its neighbours beside it.

    Samples look as `Job.render` shows them. The page loads nothing and runs nothing; labels and texts are escaped.

    Parameters
    ----------
    index
        The index that was reviewed, opened with its job.
    found
        What `gradindex.review.review` returned.

    Raises
    ------
    ImportError
        If Jinja2 or Pillow is not installed; says what to type.
    """
    from gradindex.report import pages

    pages.require()
    from gradindex.report.reviewed import sections

    return pages.render("review.html", sections=sections(index, found), left_out=found.left_out, about=found.about)


def write_review(index: "Index", found: "Review", path: str | Location) -> Location:
    """Write `review_page` into a file, as `write_report` does; return where it lies."""
    place = locate(path)
    save(place, review_page(index, found).encode("utf-8", "replace"))
    return place


def write_report(index: "Index", path: str | Location, *arguments: Any, **options: Any) -> Location:
    """Write `report` into a file, on this machine or behind a URL; return where it lies.

    A file that is there is replaced when the new one is whole.
    """
    place = locate(path)
    text = report(index, *arguments, **options)
    save(place, text.encode("utf-8", "replace"))  # half a surrogate pair has no place in a file
    return place
