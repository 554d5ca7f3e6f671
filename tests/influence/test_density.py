"""The closed forms against estimators refitted without each sample, and what they say of six clusters."""

import sys

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import spearmanr
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, NearestNeighbors

from gradindex.influence import GMMInfluence, KDEInfluence, KNNInfluence
from tests.influence.clusters import CENTRES, SIZES, K, six_clusters

X, CLUSTER = six_clusters()
Z = np.concatenate([CENTRES + 0.3, X[::40], [[20.0, -20.0]]])
KINDS = ("full", "tied", "diag", "spherical")


def without(i):
    return np.delete(X, i, axis=0)


def refits(loss):
    """IF(x_i, z) by training without each sample in turn; `loss(x, z)` trains on x."""
    return np.stack([loss(without(i), Z) for i in range(len(X))]) - loss(X, Z)


def knn_loss(x, z, k=K):
    near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors(z)[0][:, -1]
    d = x.shape[1]
    return -(np.log(k / len(x)) - d / 2 * np.log(np.pi) + gammaln(d / 2 + 1) - d * np.log(near))


def kde_loss(bandwidth):
    return lambda x, z: -KernelDensity(bandwidth=bandwidth).fit(x).score_samples(z)


def mixture(kind="full", x=X, start=None):
    """A converged mixture; `start` another's, for a refit that does not wander off."""
    options = (
        {}
        if start is None
        else {"weights_init": start.weights_, "means_init": start.means_, "precisions_init": start.precisions_}
    )
    means = options.pop("means_init", CENTRES)
    return GaussianMixture(6, covariance_type=kind, tol=1e-10, max_iter=500, means_init=means, **options).fit(x)


@pytest.mark.parametrize("k", [1, 3, K, len(X) - 1])
def test_knn_is_the_difference_of_two_fits(k):
    if k == 1:  # a training sample's nearest neighbour is itself
        found, z = KNNInfluence(X, k), Z[[0, 1, 2]]
    else:
        found, z = KNNInfluence(X, k), Z
    want = np.stack([knn_loss(without(i), z, k) for i in range(len(X))]) - knn_loss(X, z, k)
    np.testing.assert_allclose(found.influence(z), want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.loss(z), knn_loss(X, z, k), rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 9])
def test_knn_is_exact_where_distances_tie_and_samples_repeat(k):
    """A grid, of which some points are there two and three times; test samples between its points, and its points."""
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
    x = np.r_[grid, grid[[3, 3, 7]]]
    z = np.array([[0.3, 0.2], [2.5, 2.5], [2.5, 1.0], [-1, 0.5], [7, 7]])
    z = np.r_[z, x] if k > 3 else z  # fewer neighbours of the point that is there three times lie at distance 0
    want = np.stack([knn_loss(np.delete(x, i, axis=0), z, k) for i in range(len(x))]) - knn_loss(x, z, k)
    found = KNNInfluence(x, k)
    np.testing.assert_allclose(found.influence(z), want, rtol=0, atol=1e-10)
    if k > 3:
        np.testing.assert_allclose(found.self_influence(), np.diagonal(want[:, 5:]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("bandwidth", [0.05, 0.5, 30])
def test_kde_is_the_difference_of_two_fits(bandwidth):
    z = Z if bandwidth > 1 else Z[:-1]  # far away from all samples scikit-learn's tree loses its digits
    want = np.stack([kde_loss(bandwidth)(without(i), z) for i in range(len(X))]) - kde_loss(bandwidth)(X, z)
    found = KDEInfluence(X, bandwidth)
    np.testing.assert_allclose(found.influence(z), want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.loss(z), kde_loss(bandwidth)(X, z), rtol=0, atol=1e-10)


def test_the_influence_of_a_lonely_sample_on_itself_is_finite_and_right():
    x = np.array([[0.0], [1.0], [2.0], [102.0]])
    # Without the last one its density is that of a neighbour 100 bandwidths away: exp(-5000) is no number.
    want = np.log(3 / 4) + 100**2 / 2
    assert KDEInfluence(x, 1.0).self_influence()[3] == pytest.approx(want, rel=1e-12)
    assert KDEInfluence(x, 1.0).influence(x[3:])[3, 0] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mixture_ranks_samples_as_refits_do(kind):
    fitted = mixture(kind)
    base = fitted.score_samples(Z[:6])
    some = np.arange(0, len(X), 3)
    refitted = np.stack([base - mixture(kind, without(i), fitted).score_samples(Z[:6]) for i in some])
    found = GMMInfluence(X, fitted).influence(Z[:6])[some]
    for column in range(6):
        # Samples of other clusters tie, but for 1e-13 of rounding in the refits.
        assert spearmanr(found[:, column].round(9), refitted[:, column].round(9)).statistic >= 0.9
        own = CLUSTER[some] == column
        assert np.corrcoef(found[own, column], refitted[own, column])[0, 1] > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_the_mixture_is_the_derivative_of_a_weighted_step(kind):
    """Overlapping clusters: responsibilities of all kinds. One step of EM in which x_i counts for 1 - t."""
    random = np.random.default_rng(1)
    x, z = random.standard_normal((50, 3)) + np.arange(50)[:, None] % 2, random.standard_normal((7, 3))
    fitted = GaussianMixture(2, covariance_type=kind, reg_covar=0, tol=1e-13, max_iter=5000, random_state=0).fit(x)
    r = fitted.predict_proba(x)

    def log_density(weights):
        share = r * weights[:, None]
        n = share.sum(axis=0)
        means = share.T @ x / n[:, None]
        scatter = np.stack([(share[:, k, None] * (x - means[k])).T @ (x - means[k]) for k in range(2)])
        covariances = scatter / n[:, None, None]
        if kind == "tied":
            covariances = np.broadcast_to(scatter.sum(axis=0) / n.sum(), covariances.shape)
        if kind == "diag":
            covariances = covariances * np.eye(3)
        if kind == "spherical":
            covariances = np.trace(covariances, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
        dev = z[:, None] - means
        maha = np.einsum("mki,kij,mkj->mk", dev, np.linalg.inv(covariances), dev)
        logs = np.log(n / n.sum()) - (maha + np.linalg.slogdet(2 * np.pi * covariances)[1]) / 2
        return np.log(np.exp(logs).sum(axis=1))

    np.testing.assert_allclose(log_density(np.ones(50)), fitted.score_samples(z), atol=1e-5)
    t, want = 1e-5, np.empty((50, 7))
    for i in range(50):
        up, down = np.ones(50), np.ones(50)
        up[i] += t
        down[i] -= t
        want[i] = (log_density(up) - log_density(down)) / (2 * t)
    np.testing.assert_allclose(GMMInfluence(x, fitted).influence(z), want, rtol=1e-3, atol=2e-5)


def test_spherical_mixtures_give_the_form_of_the_study():
    fitted = mixture("spherical")
    found = GMMInfluence(X, fitted).influence(Z[:6])
    for k in range(6):
        x, n_k, d = X[k == CLUSTER], SIZES[k], 2
        mean = x.mean(axis=0)
        var = np.square(x - mean).mean()
        far_z, far_x = np.square(Z[k] - mean).sum(), np.square(x - mean).sum(axis=1)
        apart = np.square(x - Z[k]).sum(axis=1)
        want = (d + 2) / (2 * n_k) + (far_z * far_x / (d * var) - apart) / (2 * n_k * var) - 1 / len(X)
        np.testing.assert_allclose(found[k == CLUSTER, k], want, atol=1e-4)
        np.testing.assert_allclose(found[k != CLUSTER, k], -1 / len(X), atol=1e-4)


@pytest.mark.parametrize("estimator", [KNNInfluence(X, K), KDEInfluence(X, 0.5), GMMInfluence(X, mixture())])
def test_self_influence_is_the_diagonal(estimator):
    want = np.diagonal(estimator.influence(X))
    np.testing.assert_allclose(estimator.self_influence(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", [KNNInfluence(X, K), KDEInfluence(X, 0.5)])
def test_strongest_proponents_are_exactly_the_nearest_neighbours(estimator):
    nearest = np.argsort(np.linalg.norm(X - Z[:, None], axis=2), axis=1)[:, :K]
    (scores, rows), _ = estimator.top(Z, K)
    assert (scores[:6, 0] > 0).all()
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.sort(nearest, axis=1))


def test_under_knn_the_cluster_of_k_points_influences_itself_most():
    order = np.argsort(-KNNInfluence(X, K).self_influence())
    assert set(CLUSTER[order[:K]]) == {5}


def test_under_kde_sparse_samples_influence_themselves_most():
    estimator = KDEInfluence(X, 0.5)
    assert spearmanr(estimator.self_influence(), estimator.loss(X)).statistic > 0.999


def test_under_a_mixture_some_opponents_lie_in_the_same_cluster():
    estimator = GMMInfluence(X, mixture())
    for k in range(5):
        _, (scores, rows) = estimator.top(Z[k : k + 1], 1)
        assert CLUSTER[rows[0, 0]] == k
        assert scores[0, 0] < -2 / len(X)
    far = np.linalg.norm(X - mixture().means_[CLUSTER], axis=1)
    own = estimator.self_influence()
    for k in range(6):
        assert spearmanr(own[k == CLUSTER], far[k == CLUSTER]).statistic > 0.8


@pytest.mark.parametrize("estimator", [KNNInfluence(X, K), KDEInfluence(X, 0.5), GMMInfluence(X, mixture())])
def test_top_sorts_the_whole_matrix_and_blocks_change_nothing(estimator, monkeypatch):
    matrix = estimator.influence(Z).T
    own = estimator.self_influence()
    monkeypatch.setattr("gradindex.influence.density.BLOCK_BYTES", 4000)
    monkeypatch.setattr("gradindex.influence.mixture._BLOCK", 7)
    np.testing.assert_allclose(estimator.influence(Z).T, matrix, rtol=1e-12)
    np.testing.assert_allclose(estimator.self_influence(), own, rtol=1e-9, atol=1e-12)
    (high, best), (low, worst) = estimator.top(Z, 7)
    np.testing.assert_allclose(high, -np.sort(-matrix, axis=1)[:, :7], rtol=1e-12)
    np.testing.assert_allclose(low, np.sort(matrix, axis=1)[:, :7], rtol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(matrix, best, 1), high, rtol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(matrix, worst, 1), low, rtol=1e-12)
    assert best.dtype == worst.dtype == np.int64


def test_wide_samples_far_from_the_origin_are_exact():
    """Brute force search expands the square, which loses what a large offset leaves of a distance."""
    random = np.random.default_rng(2)
    x, z = 1e6 + random.standard_normal((60, 30)), 1e6 + random.standard_normal((4, 30))
    near = KNNInfluence(x, 3).influence(z)
    np.testing.assert_allclose(near, KNNInfluence(x - 1e6, 3).influence(z - 1e6), atol=1e-8)
    np.testing.assert_allclose(
        KDEInfluence(x, 1.0).influence(z), KDEInfluence(x - 1e6, 1.0).influence(z - 1e6), atol=1e-6
    )


@pytest.mark.parametrize("estimator", [KNNInfluence(X, K), KDEInfluence(X, 0.5), GMMInfluence(X, mixture())])
def test_no_test_samples_give_empty_answers(estimator):
    assert estimator.influence(np.empty((0, 2))).shape == (len(X), 0)
    (scores, rows), _ = estimator.top(np.empty((0, 2)), 3)
    assert scores.shape == rows.shape == (0, 3)


def broken(value):
    bad = X.copy()
    bad[3, 1] = value
    return bad


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KDEInfluence(broken(np.nan), 1), ValueError, r"x holds NaN or infinity in rows \[3\]"),
        (lambda: KNNInfluence(broken(np.inf), 2), ValueError, r"x holds NaN or infinity in rows \[3\]"),
        (lambda: KDEInfluence(X, 1).influence([[np.nan, 0]]), ValueError, r"z holds NaN or infinity in rows \[0\]"),
        (lambda: KDEInfluence(X, 1).influence(np.zeros((2, 3))), ValueError, "z has 3 columns.*samples have 2"),
        (lambda: KDEInfluence(X, 1).loss(np.zeros(2)), ValueError, r"z must be a matrix.*got shape \(2,\)"),
        (lambda: KDEInfluence(X[:, 0], 1), ValueError, r"x must be a matrix \(samples, features\)"),
        (lambda: KDEInfluence(X[:1], 1), ValueError, "at least 2 rows.*got 1"),
        (lambda: KDEInfluence([["a"], ["b"]], 1), TypeError, "x must hold numbers"),
        (lambda: KDEInfluence(X, 0), ValueError, "bandwidth must be positive and finite, got 0"),
        (lambda: KDEInfluence(X, np.nan), ValueError, "bandwidth must be positive and finite, got nan"),
        (lambda: KDEInfluence(X, "scott"), TypeError, "bandwidth must be a number, got 'scott'.*bandwidth_"),
        (lambda: KDEInfluence(X, 1).top(Z, 0), ValueError, "k must be between 1 and 240.*got 0"),
        (lambda: KDEInfluence(X, 1).top(Z, 2.0), TypeError, "k must be an integer, got 2.0"),
        (lambda: KNNInfluence(X, len(X)), ValueError, "k must be between 1 and 239.*got 240"),
        (lambda: KNNInfluence(X, True), TypeError, "k must be an integer, got True"),
        (lambda: KNNInfluence(X, 1).self_influence(), ValueError, "distance 0, where the density is infinite"),
        (lambda: GMMInfluence(X, KernelDensity()), TypeError, "must be a sklearn.*, got KernelDensity"),
        (lambda: GMMInfluence(X, GaussianMixture(2)), ValueError, r"not fitted: call mixture.fit\(x\) first"),
        (lambda: GMMInfluence(np.c_[X, X], mixture()), ValueError, "x has 4 columns.*fitted to 2"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_scikit_learn_that_is_missing_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn.*Type: pip install scikit-learn"):
        KNNInfluence(X, 2).loss(Z)
