"""An index in a scikit-learn pipeline."""

import tempfile

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, issparse
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator, parametrize_with_checks

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
    with pytest.raises(ValueError, match=r"shape \(63,\) but the training data has shape \(64,\)"):
        GradientNeighborsTransformer(index).fit(x[:, 1:])
    with pytest.raises(TypeError, match="Sparse input is not supported"):
        GradientNeighborsTransformer(index).fit(csr_matrix(x))


def test_columns_have_names(index):
    transformer = GradientNeighborsTransformer(index).fit(digits()[0])
    names = transformer.get_feature_names_out()
    assert len(names) == ROWS and names[3] == "gradientneighborstransformer3" and transformer.n_features_in_ == 64


class IndexedAnew(GradientNeighborsTransformer):
    """Builds an index of what it is fitted to, so that checks with data of their own have one."""

    def __init__(self, *, n_neighbors=5, mode="distance", rerank=50):
        self.n_neighbors, self.mode, self.rerank = n_neighbors, mode, rerank

    @property
    def index(self):
        return self.index_

    def fit(self, X, y=None):
        if issparse(X):
            raise TypeError("Sparse input is not supported.")
        x = np.array(X, np.float32, ndmin=2)
        labels = np.zeros(len(x), np.int64) if y is None else np.unique(np.asarray(y), return_inverse=True)[1].ravel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], max(2, labels.max() + 1)))
            torch.nn.init.normal_(model[0].weight, std=1e-3)  # some checks have inputs around 100
        folder = tempfile.mkdtemp()
        self.index_ = gradindex.build(gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, labels)), f"{folder}/i")
        return super().fit(x, labels)

    def fit_transform(self, X, y=None):
        self.fit(X, y)
        return self._graph(ids=np.arange(self.n_samples_fit_))

    def _checked(self, X):
        return super()._checked(X if issparse(X) else np.asarray(X, np.float32))


CANNOT = {
    "check_transformer_general": "fit_transform has the samples' labels, transform those that the model predicts",
    "check_methods_subset_invariance": "float32 gradients are 1e-6 apart in other batches, and it asks for 1e-7",
}


@parametrize_with_checks([IndexedAnew()], expected_failed_checks=lambda _: CANNOT)
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_what_cannot_apply_is_said_and_does_fail():
    for estimator, check in estimator_checks_generator(IndexedAnew()):
        if check.func.__name__ in CANNOT:
            with pytest.raises(AssertionError, match=r"not consistent|not invariant"):
                check(estimator)
            assert check.func.__name__ in GradientNeighborsTransformer.__doc__


def test_an_index_of_other_samples_is_all_that_fails(index):
    found = check_estimator(GradientNeighborsTransformer(index), on_fail=None, on_skip=None)
    failed = [one for one in found if one["status"] == "failed"]
    assert len(found) - len(failed) > 15
    for one in failed:
        error = one["exception"]
        assert "X has samples of shape" in f"{error} {error.__cause__}", one["check_name"]


def test_answers_are_the_same_in_any_batch(index):
    x, _ = digits(ROWS + 20)
    transformer = GradientNeighborsTransformer(index).fit(x[:ROWS])
    before = dict(vars(transformer))
    graph = transformer.transform(x[ROWS:]).toarray()
    assert vars(transformer) == before
    parts = [transformer.transform(x[ROWS + begin : ROWS + begin + 5]).toarray() for begin in range(0, 20, 5)]
    np.testing.assert_allclose(np.concatenate(parts), graph, atol=1e-5)
