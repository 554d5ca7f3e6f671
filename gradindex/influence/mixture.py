"""Influence of training samples on a Gaussian mixture, to first order."""

import numpy as np
from numpy.typing import ArrayLike

from gradindex.data.names import Tree
from gradindex.influence.density import DensityInfluence, Matrix, require_sklearn

_BLOCK = 256  # samples whose self-influence is found at once


class GMMInfluence(DensityInfluence):
    """A Gaussian mixture fitted by scikit-learn's ``GaussianMixture``, of any covariance type.

    Leaving out x_i takes its share r_ik / n_k out of component k's weight, mean and covariance, where r_ik are its
    responsibilities and n_k their sums. To first order in 1/n_k, with the other samples' responsibilities as they
    were (clusters well apart) and ``reg_covar`` small beside the covariances::

        IF(x_i, z) = −1/n + Σ_k ρ_k(z) r_ik/n_k [(d + 2)/2 − ‖z − x_i‖²_k/2 + c_k(x_i, z)/2]

    with ρ_k(z) the responsibilities of z and ‖·‖_k the Mahalanobis norm of component k. With u, v the whitened
    deviations of x_i and z from its mean, c is ‖u‖²‖v‖²/d for ``spherical`` covariances (the study's form),
    Σ_j u_j² v_j² for ``diag``, (u·v)² for ``full``; with ``tied`` ones, deviations from every mean change the one
    covariance, by their share r_ik / n of it. Where clusters overlap, a refit moves responsibilities too, which this
    leaves out: strong influences keep their place there, the order of weak ones may not.

    Parameters
    ----------
    x
        Training samples, (n, d), those the mixture was fitted to.
    mixture
        The fitted ``sklearn.mixture.GaussianMixture``. Its EM should have converged (a small ``tol``): the form is
        that of its fixed point.

    Raises
    ------
    TypeError
        If `x` holds no numbers, or `mixture` is no ``GaussianMixture``.
    ValueError
        For bad `x`, a mixture that is not fitted, or one of another width.
    """

    def __init__(self, x: Tree, mixture: object) -> None:
        super().__init__(x)
        if not isinstance(mixture, require_sklearn("mixture").GaussianMixture):
            raise TypeError(f"mixture must be a sklearn.mixture.GaussianMixture, got {type(mixture).__name__}.")
        if not hasattr(mixture, "means_"):
            raise ValueError("The mixture is not fitted: call mixture.fit(x) first.")
        d = mixture.means_.shape[1]
        if self.x.shape[1] != d:
            raise ValueError(f"x has {self.x.shape[1]} columns, but the mixture was fitted to {d}.")
        self.mixture = mixture
        self._responsibilities: Matrix = mixture.predict_proba(self.x)
        counts = self._responsibilities.sum(axis=0)
        self._shares: Matrix = self._responsibilities / np.where(counts > 0, counts, 1)

    def loss(self, z: ArrayLike) -> Matrix:
        """Return the negative log likelihood (m,) of test samples z (m, d)."""
        found: Matrix = -self.mixture.score_samples(self._test(z))
        return found

    def self_influence(self) -> Matrix:
        """Return IF(x_i, x_i) of every training sample, (n,)."""
        out = np.empty(len(self))
        for begin in range(0, len(self), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            out[rows] = np.diagonal(self._pairs(rows, self.x[rows]))
        return out

    def _influence(self, z: Matrix) -> Matrix:
        return self._pairs(slice(None), z)

    def _pairs(self, rows: slice, z: Matrix) -> Matrix:
        """Return the influence (b, c) of some training samples on z (c, d)."""
        x, of_z = self.x[rows], self.mixture.predict_proba(z)
        components = range(of_z.shape[1])
        deviations = [self._whiten(x, k) for k in components]
        out = np.full((len(x), len(z)), -1 / len(self))
        for k in components:
            v = self._whiten(z, k)
            share = self._shares[rows, k][:, None]
            change = share * (1 + deviations[k] @ v.T)  # of the weight, and of the mean
            if self.mixture.covariance_type == "tied":
                change += (z.shape[1] - _squares(v)) / (2 * len(self))
                parts = [(j, self._responsibilities[rows, j][:, None] / (2 * len(self))) for j in components]
            else:
                change += share / 2 * (z.shape[1] - _squares(v))
                parts = [(k, share / 2)]
            for j, weight in parts:  # of the covariance
                change += weight * (self._crossed(deviations[j], v) - _squares(deviations[j])[:, None])
            out += of_z[:, k] * change
        return out

    def _whiten(self, x: Matrix, k: int) -> Matrix:
        """Return deviations (b, d) from the mean of component k, in units of its standard deviations."""
        factor, kind = self.mixture.precisions_cholesky_, self.mixture.covariance_type
        factor = factor if kind == "tied" else factor[k]
        deviation = x - self.mixture.means_[k]
        found: Matrix = deviation @ factor if kind in ("tied", "full") else deviation * factor
        return found

    def _crossed(self, u: Matrix, v: Matrix) -> Matrix:
        """Return c (b, c): how much of the spread along v the deviations u account for."""
        kind = self.mixture.covariance_type
        found: Matrix
        if kind == "spherical":
            found = np.outer(_squares(u), _squares(v)) / u.shape[1]
        else:
            found = np.square(u) @ np.square(v).T if kind == "diag" else np.square(u @ v.T)
        return found


def _squares(rows: Matrix) -> Matrix:
    found: Matrix = np.square(rows).sum(axis=1)
    return found
