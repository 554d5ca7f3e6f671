"""An index in a scikit-learn pipeline."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import gradindex
from gradindex.interop.sklearn import GradientNeighborsTransformer
from tests.jobs import ROWS, digits, digits_job


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("neighbors") / "i")


def test_a_pipeline_classifies_by_gradient_neighbours(index):
    x, y = digits(ROWS + 60)
    steps = GradientNeighborsTransformer(index, n_neighbors=6), KNeighborsClassifier(5, metric="precomputed")
    pipeline = make_pipeline(*steps).fit(x[:ROWS], y[:ROWS])
    assert (pipeline.predict(x[ROWS:]) == y[ROWS:]).mean() > 0.75
    assert clone(pipeline)[0].index is index
    assert pipeline.set_params(gradientneighborstransformer__n_neighbors=8)[0].n_neighbors == 8


def test_the_graph_is_that_of_kneighbors(index):
    x, y = digits()
    transformer = GradientNeighborsTransformer(index, n_neighbors=4)
    graph = transformer.fit_transform(x)
    assert graph.shape == (ROWS, ROWS)
    assert (graph.getnnz(axis=1) == 5).all()  # each sample is its own
    assert graph.diagonal().max() < 1e-5
    distances, ids = index.kneighbors(x[:7], 5, y=y[:7])
    np.testing.assert_array_equal(graph[:7].indices.reshape(7, 5), ids)
    np.testing.assert_allclose(graph[:7].data.reshape(7, 5), distances, atol=1e-6)
    ones = GradientNeighborsTransformer(index, n_neighbors=4, mode="connectivity").fit(x).transform(x[:3])
    assert ones.shape == (3, ROWS)
    assert ones.sum() == 12


def test_mistakes(index):
    x, _ = digits()
    with pytest.raises(ValueError, match="X has 5 samples, but the index 240"):
        GradientNeighborsTransformer(index).fit(x[:5])
    with pytest.raises(ValueError, match="mode must be"):
        GradientNeighborsTransformer(index, mode="x").fit(x)
