"""Opening what was saved: the one place that knows explainers, indexes and clusters."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradindex.index import opening
from gradindex.interop.alibi import GradientSimilarity
from gradindex.interop.alibi_saved import MANIFEST
from gradindex.store.location import Location, exists, locate

if TYPE_CHECKING:
    from gradindex.distributed.options import Ray


def load(path: str | Location, job: Any = None, *, engine: "Ray | None" = None, **options: Any) -> Any:
    """Open what was saved at `path`.

    Parameters
    ----------
    path
        A directory or URL made by `build`, or a directory made by `GradientSimilarity.save`.
    job
        For an index: the job it was built from; needed only for new queries and exact scores. For an
        explainer: its predictor.
    engine
        None: this process searches. A `gradindex.Ray`: its workers do, each a part of the rows; close the index
        (`close`, or a ``with`` block) to let them go.
    **options
        For an explainer: see `GradientSimilarity.load`.

    Returns
    -------
    Index or GradientSimilarity
        Whichever was saved.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    MismatchError
        If the index was built with another model, parameter set or number of samples; names the difference.
    DamagedIndexError
        If the index is incomplete or damaged.
    """
    place = locate(path)
    if isinstance(place, Path) and exists(place / MANIFEST):
        return GradientSimilarity.load(place, job, **options)
    return opening.open(path, job) if engine is None else engine.connect(place, job)
