"""A FAISS index over a metric's feature map."""

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tree
from gradindex.defaults import NEIGHBOURS
from gradindex.relevance.base import Metric


class MetricIndex:
    """Maximum inner product search over `Metric.keys`; float32.

    Parameters
    ----------
    metric
        A dot or cosine metric.
    factory
        A FAISS factory string.

    Raises
    ------
    ValueError
        For an ℓ2 metric, which is no inner product.
    """

    def __init__(self, metric: Metric, factory: str = "Flat") -> None:
        import faiss

        if metric.similarity == "l2":
            raise ValueError(f"{metric.name} is no inner product, so it has no such index. Use its cosine form.")
        keys = np.ascontiguousarray(metric.keys(), np.float32)
        self._metric = metric
        self._index = faiss.index_factory(keys.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        self._index.train(keys)
        self._index.add(keys)

    def top(self, X: Tree, y: Tree = None, k: int = NEIGHBOURS) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ids (−1 for none) and estimated scores (m, k) of the most relevant samples."""
        rows = self._metric.query_rows(X, y)
        scores, ids = self._index.search(np.ascontiguousarray(rows, np.float32), k)
        return ids, scores
