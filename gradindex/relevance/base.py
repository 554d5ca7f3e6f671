"""A relevance metric: a feature map and one of three similarities."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import metric_names
from gradindex.data.names import Tree
from gradindex.defaults import FISHER, NEIGHBOURS, SEED, SOLVER

if TYPE_CHECKING:
    from gradindex.relevance.features import Space

Rows = NDArray[np.float64]
SOLVERS = ("auto", "exact", "ekfac", "kfac", "minres", "cg")
STUDY = "study"
"""The word for the damping of the published study."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the metrics are computed.

    Parameters
    ----------
    damping
        Number added to the diagonal of Hessian or Fisher matrix. None: a tenth of the mean of its eigenvalues' sizes,
        those below a millionth of the largest left out. ``"study"``: 1e-10 times its mean |diagonal|, as in Hanawa et
        al. (2021).
    fisher
        ``"true"``: mean over samples of g gᵀ. ``"mean"``: ḡ ḡᵀ of the mean gradient ḡ, a matrix of rank one,
        which is what the study's published code inverts.
    layers
        Names of hidden layers whose outputs are h_all (the last of them h_last). None: what every layer with
        parameters receives, the first one excepted.
    exact_limit
        Up to this many parameters (for the Fisher matrix, or samples) matrices are formed and decomposed.
    solver
        ``"auto"``: by size, and above `exact_limit` EKFAC; of IF with a loss for which no labels can be drawn, MINRES
        (SciPy's, of the Hessian itself, for which the cosine and ℓ2 forms are not to be had). ``"exact"``,
        ``"ekfac"``, ``"kfac"``, ``"minres"`` and, of IF, ``"cg"`` choose: conjugate gradients with the Gauss-Newton
        matrix, which EKFAC preconditions.
    samples
        Of EKFAC and K-FAC for IF: labels drawn from the model for a sample.
    tolerance, iterations
        Of MINRES (None: 1e-8, 1,000) and conjugate gradients (None: 1e-3, 100).
    seed
        Of drawn labels and of MINRES's own damping.
    """

    damping: float | str | None = None
    fisher: str = FISHER
    layers: tuple[str, ...] | None = None
    exact_limit: int = 8192
    solver: str = SOLVER
    samples: int = 1
    tolerance: float | None = None
    iterations: int | None = None
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.fisher not in ("true", "mean"):
            raise ValueError(f"Unknown fisher {self.fisher!r}. Expected one of: 'true' | 'mean'.")
        if self.solver not in SOLVERS:
            raise ValueError(f"Unknown solver {self.solver!r}. Expected one of: {' | '.join(map(repr, SOLVERS))}.")
        for name, least in (("exact_limit", 0), ("samples", 1), ("seed", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer of {least} or more, got {getattr(self, name)!r}.")
        given = self.damping
        if given is not None and given != STUDY and (isinstance(given, str) or not given >= 0):
            raise ValueError(f"damping must be None, {STUDY!r} or a number of at least 0, got {given!r}.")


class Metric:
    """One metric on one job; made by `gradindex.relevance.metric`."""

    def __init__(self, name: str, space: "Space") -> None:
        self.name = name
        self.similarity, self.feature = metric_names.parse(name)
        self.space = space

    @property
    def solver(self) -> str:
        """How the matrix of the metric is inverted; ``"none"`` where there is none."""
        return self.space.inverse(self.feature).solver if self.feature in ("IF", "FK") else "none"

    @property
    def remark(self) -> str | None:
        """What the matrix of IF is not, in a sentence: definite, or the Hessian; None where there is nothing to say."""
        if self.feature not in ("IF", "FK"):
            return None
        inverse = self.space.inverse(self.feature)
        if inverse.stands_for_hessian:
            return "The Gauss-Newton matrix, which has no negative eigenvalue, stands for the Hessian."
        if not inverse.negative:
            return None
        told = f"{inverse.negative} of the Hessian's damped eigenvalues are negative"
        if self.similarity == "dot":
            return f"{told}: along their directions samples that are alike count as opposed."
        return f"{told}: their root is imaginary, and the real part leaves those directions out."

    def scores(self, X: Tree, y: Tree = None) -> Rows:
        """Return the scores (m, n) float64 of queries against all training samples; larger is more relevant.

        Parameters
        ----------
        X
            Inputs of m queries.
        y
            Their labels; None: the model's own predictions.
        """
        if self.similarity == "dot" and self.feature in ("IF", "FK"):
            found: Rows = self.query_rows(X, y) @ self.keys().T
            return found
        dots, queries, keys = self.space.products(self.feature, X, y)
        if self.similarity == "dot":
            return dots.copy()
        if self.similarity == "l2":
            return 2 * dots - (queries[:, None] ** 2 + keys**2)
        lengths = np.outer(queries, keys)
        return np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)

    def top(self, X: Tree, y: Tree = None, k: int = NEIGHBOURS) -> tuple[NDArray[np.int64], Rows]:
        """Return the ids and scores (m, k) of the most relevant samples, best first; ties by id.

        Raises
        ------
        ValueError
            If k is less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        scores = self.scores(X, y)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return ids, np.take_along_axis(scores, ids, axis=1)

    def keys(self) -> Rows:
        """Return the training side (n, d): for dot and cos, scores are inner products with `query_rows`."""
        if self.similarity == "dot":
            return self.space.train("grad" if self.feature in ("IF", "FK") else self.feature)
        rows = self._roots(None, None)
        return unit(rows) if self.similarity == "cos" else rows

    def query_rows(self, X: Tree, y: Tree = None) -> Rows:
        """Return the query side (m, d); for dot with a matrix it carries the inverse, M q."""
        if self.similarity == "dot":
            if self.feature in ("IF", "FK"):
                return self.space.inverse(self.feature).apply(self.space.of("grad", X, y))
            return self.space.of(self.feature, X, y)
        rows = self._roots(X, y)
        return unit(rows) if self.similarity == "cos" else rows

    def _roots(self, X: Tree, y: Tree) -> Rows:
        matrix = self.feature in ("IF", "FK")
        if X is None:
            return self.space.train_root(self.feature) if matrix else self.space.train(self.feature)
        rows = self.space.of("grad" if matrix else self.feature, X, y)
        return self.space.inverse(self.feature).root(rows) if matrix else rows


def unit(rows: Rows) -> Rows:
    """Return rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return found
