"""What `recall=` means for a question: a calibrated promise, or FAISS's operating point alone; and which it was."""

from dataclasses import dataclass, replace

from gradindex.ann import operating_point
from gradindex.ann.operating_point import Point
from gradindex.search import tuning
from gradindex.search.calibration import Calibration, Promise
from gradindex.search.options import SearchOptions
from gradindex.search.question import Question
from gradindex.store import Store


@dataclass(frozen=True)
class Checking:
    """How far candidates, found at a `point` of FAISS, are checked: as a `promise` says; None: as many as asked for.

    `about` is what an explanation says of it, None where no recall is asked for.
    """

    promise: Promise | None = None
    point: Point | None = None
    about: dict[str, object] | None = None

    def applied(self, asked: Question) -> Question:
        """Return a question with the operating point, and with all candidates that may be checked."""
        if self.promise is None:
            return replace(asked, point=self.point)
        count = self.promise.candidates
        return replace(asked, point=self.point, candidates=count, depth=count, rerank=True)


def checking(
    store: Store,
    calibrated: Calibration | None,
    options: SearchOptions,
    *,
    where: bool,
    ids: bool,
    labelled: bool,
    another: str = "",
) -> Checking:
    """Return what a question's `recall=` means.

    Parameters
    ----------
    store
        The store.
    calibrated
        Its calibration for the question's kernel and k; None: there is none.
    options
        How the index is searched.
    where
        Whether only some samples may be found: nothing is promised of them.
    ids
        Whether the queries are training samples, which find themselves: nothing is promised of them.
    labelled
        Whether the queries' labels were given.
    another
        Why it is another question than the calibration's, whatever the rest; empty if it is none.

    Raises
    ------
    ValueError
        If the recall cannot be certified, or there is neither a calibration nor a curve.
    """
    if options.recall is None:
        return Checking()
    why = another or _unlike(calibrated, options, where)
    about: dict[str, object] = {"wanted": options.recall, "calibrated": not why, "note": why}
    if calibrated is None:
        try:
            return Checking(point=tuning.pick(store, options.recall), about=about)
        except ValueError as error:
            raise ValueError(f"{why}. {error}") from None
    try:
        promise = calibrated.promise(options.recall)
    except ValueError:
        if not why or not 0 < options.recall < 1:
            raise
        # Nothing is promised of this question anyway.
        return Checking(point=operating_point.parse(calibrated.about.points[-1]) or None, about=about)
    point = operating_point.parse(promise.point) or None
    if why:
        return Checking(point=point, about=about)
    unlike = []
    if ids:
        unlike.append("the queries are training samples, unlike those of the calibration")
    elif labelled != calibrated.about.labelled:
        unlike.append(_LABELS[calibrated.about.labelled])
    if unlike:
        promise = promise.unpromised()
    if removed := store_removed(store) - calibrated.about.removed:
        unlike.append(f"{removed} samples were removed since the calibration")
    about |= {"calibrated": not unlike, "queries": calibrated.about.queries, "note": "; ".join(unlike)}
    return Checking(promise, point, about)


_LABELS = {
    True: "the queries have predicted labels, those of the calibration had their own",
    False: "the queries have their own labels, those of the calibration had predicted ones",
}


def store_removed(store: Store) -> int:
    """Return how many of a store's rows are removed."""
    return 0 if store.alive is None else int((~store.alive).sum())


def _unlike(calibrated: Calibration | None, options: SearchOptions, where: bool) -> str:
    """Return why a question is not one that a calibration is of; empty if it is."""
    if calibrated is None:
        return f"not calibrated for k={options.k}: FAISS's operating point alone; see Index.calibrate"
    if where:
        return "a filter is another question than that of the calibration: a fixed number of checks"
    if not options.rerank:
        return "rerank=0: nothing is checked"
    if options.certify:
        return "certify=True: a proof needs no calibration"
    if options.eps:
        return "calibrated for eps=0 alone: a fixed number of checks"
    if options.candidates not in (None, calibrated.about.candidates):
        return f"calibrated for {calibrated.about.candidates} candidates alone: a fixed number of checks"
    return ""
