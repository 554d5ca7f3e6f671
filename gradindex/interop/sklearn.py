"""An index as a step of a scikit-learn pipeline."""

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gradindex.compute.queries import match_shapes
from gradindex.data.names import Tree
from gradindex.data.source import length
from gradindex.defaults import RERANK
from gradindex.index.index import Index

if TYPE_CHECKING:
    from sklearn.utils import Tags


class GradientNeighborsTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn samples into the sparse graph of their gradient neighbours, as ``KNeighborsTransformer`` does.

    What follows in a pipeline takes precomputed distances: ``KNeighborsClassifier(metric="precomputed")``. The
    distance is 1 − cos of the loss gradients, exact, from 0 to 2.

    It follows scikit-learn's conventions but for one: the model is trained and the index built before, so `fit` takes
    the indexed samples and no others. With an index of the samples that they fit, all checks of
    ``sklearn.utils.estimator_checks`` pass but two: ``check_transformer_general``, as `fit_transform` has the samples'
    labels and `transform` those that the model predicts, and ``check_methods_subset_invariance``, as gradients in
    float32 are some 1e-6 apart in batches of other sizes, and it asks for 1e-7. What X looks like is the model's matter
    (the tag ``no_validation``): pictures, dicts of arrays, texts.

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
        """Check that X has as many samples as were indexed, of the same shape: the index is already built.

        Raises
        ------
        ValueError
            If it has not, or `mode` is unknown.
        TypeError
            If X is sparse.
        """
        if self.mode not in ("distance", "connectivity"):
            raise ValueError(f"mode must be 'distance' or 'connectivity', got {self.mode!r}.")
        x = self._checked(X)
        if length(x, "X") != len(self.index):
            raise ValueError(
                f"X has {length(x, 'X')} samples, but the index {len(self.index)}: fit takes the indexed ones."
            )
        self.n_samples_fit_ = len(self.index)
        if getattr(x, "ndim", 0) == 2:
            self.n_features_in_ = x.shape[1]
        return self

    def fit_transform(self, X: Tree, y: Tree = None, **fit_params: object) -> csr_matrix:
        """Return the graph (n, n) of the indexed samples, with their own labels."""
        self.fit(X, y)
        return self._graph(ids=np.arange(self.n_samples_fit_, dtype=np.int64))

    def transform(self, X: Tree) -> csr_matrix:
        """Return the graph (m, n) of m samples, labelled as the model predicts: float64, rows in ascending order."""
        check_is_fitted(self, "n_samples_fit_")
        return self._graph(x=self._checked(X))

    def __sklearn_tags__(self) -> "Tags":
        """Return what scikit-learn is told: the form of X is the model's matter, and the graph is float64."""
        tags = super().__sklearn_tags__()
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.n_samples_fit_)

    def _checked(self, X: Tree) -> Tree:
        if issparse(X):
            raise TypeError("Sparse input is not supported: type X.toarray().")
        return match_shapes(X, None, self.index.example)[0]

    def _graph(self, **samples: Tree) -> csr_matrix:
        count = self.n_neighbors + (self.mode == "distance")
        found = self.index.explain(**samples, k=count, rerank=max(count, self.rerank))
        there = found.ordered_indices >= 0
        values = np.maximum(1 - found.scores, 0) if self.mode == "distance" else np.ones(there.shape)
        starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        shape = len(there), self.n_samples_fit_
        return csr_matrix((values[there], found.ordered_indices[there], starts), shape=shape)
