"""An index as a step of a scikit-learn pipeline."""

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gradindex.data.names import Tree
from gradindex.defaults import RERANK
from gradindex.index.index import Index


class GradientNeighborsTransformer(TransformerMixin, BaseEstimator):
    """Turn samples into the sparse graph of their gradient neighbours, as ``KNeighborsTransformer`` does.

    What follows in a pipeline takes precomputed distances: ``KNeighborsClassifier(metric="precomputed")``. The
    distance is 1 − cos of the loss gradients, exact, from 0 to 2.

    Parameters
    ----------
    index
        An open index, with its job.
    n_neighbors
        How many neighbours of each sample.
    mode
        ``'distance'``: one neighbour more, as a training sample is its own; or ``'connectivity'``: ones.
    rerank
        As in `Index.explain`; at least the number of neighbours.
    """

    def __init__(self, index: Index, *, n_neighbors: int = 5, mode: str = "distance", rerank: int = RERANK) -> None:
        self.index = index
        self.n_neighbors = n_neighbors
        self.mode = mode
        self.rerank = rerank

    def fit(self, X: Tree, y: Tree = None) -> "GradientNeighborsTransformer":
        """Check that X has as many samples as were indexed: the index is already built.

        Raises
        ------
        ValueError
            If it has not, or `mode` is unknown.
        """
        if self.mode not in ("distance", "connectivity"):
            raise ValueError(f"mode must be 'distance' or 'connectivity', got {self.mode!r}.")
        if len(X) != len(self.index):
            raise ValueError(f"X has {len(X)} samples, but the index {len(self.index)}: fit takes the indexed ones.")
        self.n_samples_fit_ = len(self.index)
        return self

    def fit_transform(self, X: Tree, y: Tree = None, **fit_params: object) -> csr_matrix:
        """Return the graph (n, n) of the indexed samples, with their own labels."""
        self.fit(X, y)
        return self._graph(ids=np.arange(len(X), dtype=np.int64))

    def transform(self, X: Tree) -> csr_matrix:
        """Return the graph (m, n) of m samples, labelled as the model predicts: float64, rows in ascending order."""
        check_is_fitted(self, "n_samples_fit_")
        return self._graph(x=X)

    def _graph(self, **samples: Tree) -> csr_matrix:
        count = self.n_neighbors + (self.mode == "distance")
        found = self.index.explain(**samples, k=count, rerank=max(count, self.rerank))
        there = found.ordered_indices >= 0
        values = np.maximum(1 - found.scores, 0) if self.mode == "distance" else np.ones(there.shape)
        starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        shape = len(there), self.n_samples_fit_
        return csr_matrix((values[there], found.ordered_indices[there], starts), shape=shape)
