"""Which labels the neighbours of right and of wrong predictions have, for each kernel.

Hanawa et al. (2021, appendix G) look at the neighbours that metrics find for a few queries, predicted right and wrong:
those of a wrong prediction explain it where they have the predicted label.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.data.labels import as_classes
from gradindex.data.names import Tree
from gradindex.defaults import NEIGHBOURS
from gradindex.kernels import Kernel, WhiteKernel
from gradindex.search.answer import found_sides

if TYPE_CHECKING:
    from gradindex.index.index import Index


@dataclass(frozen=True)
class Shares:
    """Shares of the neighbours of some queries, by their labels, each from 0 to 1.

    `queries`: how many queries; `true`: of their neighbours with the query's true label; `predicted`: with its
    predicted one, which for right predictions is the same; `neither`: with neither.
    """

    queries: int
    true: float
    predicted: float
    neither: float


@dataclass(frozen=True)
class NeighbourLabels:
    """Shares of a kernel's neighbours, of queries that are predicted right and wrong; None where there are none."""

    kernel: str
    right: Shares | None
    wrong: Shares | None

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return asdict(self)


def shares(neighbours: ArrayLike, labels: ArrayLike, predictions: ArrayLike, found: ArrayLike) -> Shares | None:
    """Return the shares of neighbours by their labels, over all that were found for m queries; None if none was.

    Parameters
    ----------
    neighbours
        Labels of each query's k neighbours (m, k).
    labels, predictions
        The queries' true and predicted labels (m,).
    found
        Which of the places (m, k) hold a neighbour.
    """
    there = np.asarray(found, bool)
    if not there.any():
        return None
    true, predicted = (np.asarray(neighbours) == np.asarray(one)[:, None] for one in (labels, predictions))
    parts = (float(one[there].mean()) for one in (true, predicted, ~(true | predicted)))
    return Shares(len(there), *parts)


def kernels_of(index: "Index") -> list[str | None]:
    """Return the kernels that an index can be asked for; [None] for the one of an index of another metric's rows."""
    if index.store.header.metric is not None:
        return [None]
    return [*Kernel, *(WhiteKernel if index.is_whitened else ())]


def neighbour_labels(
    index: "Index",
    x: Tree,
    y: Tree,
    *,
    kernels: Sequence[str | None] | None = None,
    predicted: bool = True,
    k: int = NEIGHBOURS,
    rerank: int | None = None,
) -> list[NeighbourLabels]:
    """Return for each kernel which labels the neighbours of held-out queries have, of right and of wrong predictions.

    Parameters
    ----------
    index
        An index that was opened with its job, of a classifier.
    x, y
        m queries and their true labels, which are classes, as `Index.explain` takes them.
    kernels
        Which kernels, as `Index.explain` takes them; None: all that the index can be asked for.
    predicted
        Whether a query's gradient is that of the loss of its predicted label, as in the study; False: of its true one.
    k
        Neighbours of each query; all samples, if there are fewer.
    rerank
        As in `Index.explain`.

    Raises
    ------
    ValueError
        If queries or stored samples have no classes, or as `Index.explain`.
    """
    labels, predictions = classes(index, x, y)
    right = labels == predictions
    told = []
    for kernel in kernels_of(index) if kernels is None else kernels:
        result = index.explain(x, None if predicted else y, k=min(k, len(index)), kernel=kernel, rerank=rerank)
        side = found_sides(result.data)[0]
        if side.labels is None:
            raise ValueError("The stored samples have no labels that are classes.")
        both = (
            shares(side.labels[some], labels[some], predictions[some], side.ids[some] >= 0) for some in (right, ~right)
        )
        told.append(NeighbourLabels(str(result.meta["params"]["kernel"]), *both))
    return told


def classes(index: "Index", x: Tree, y: Tree) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Return the true and the predicted classes (m,) of queries; errors as those of `neighbour_labels`."""
    if y is None:
        raise ValueError("y is missing: give the true labels of the queries.")
    asked = index.labelled(x, y)
    try:
        labels, predictions = as_classes(asked.y), asked.predicted_classes(index.job.engine)
    except TypeError:
        labels = predictions = None
    if labels is None or predictions is None or labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError("The labels or the predictions of the queries are no classes, one for each query.")
    return labels, predictions


__all__ = ["NeighbourLabels", "Shares", "kernels_of", "neighbour_labels", "shares"]
