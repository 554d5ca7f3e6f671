"""Inverses of the Hessian of the mean training loss and of the Fisher information matrix.

With eigenvalues λ and eigenvectors V of a matrix A, damped by d: apply is (A + d)⁻¹ g, root is (A + d)^(−1/2) g.
A Hessian away from a minimum has negative eigenvalues; their square root is imaginary, and the real part of the
root (what the study's code takes) leaves those directions out.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.curvature import NoDistribution
from gradindex.job import Job
from gradindex.relevance.base import Options, Rows
from gradindex.relevance.ekfac import Conjugate, Kronecker
from gradindex.relevance.inverse import Inverse, damping_of
from gradindex.runtime.log import log

_BATCH = 1024
_TOLERANCE, _ITERATIONS = 1e-8, 1000
Product = Callable[[Rows], Rows]


class Spectral(Inverse):
    """By eigenvalues (r,) and orthonormal eigenvectors (P, r); A is zero outside their span."""

    def __init__(self, values: Rows, vectors: Rows, damping: float, solver: str) -> None:
        self.solver = solver
        self.damping = damping
        self._values = values + damping
        self._vectors = vectors
        self.negative = int((self._values < 0).sum())

    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g."""
        return self._scaled(rows, _power(self._values, -1), _power(np.array([self.damping]), -1)[0])

    def root(self, rows: Rows) -> Rows:
        """Return the real part of (A + d)^(−1/2) g."""
        positive = np.maximum(self._values, 0)
        return self._scaled(rows, _power(positive, -0.5), _power(np.array([self.damping]), -0.5)[0])

    def halves(self, rows: Rows, *, query: bool) -> Rows:
        """Return |A + d|^(−1/2) g, of a query with the signs of the eigenvalues.

        Sides of equal length leave the least error to a sketch of them.
        """
        inside = _power(np.abs(self._values), -0.5) * (np.sign(self._values) if query else 1)
        return self._scaled(rows, inside, _power(np.array([self.damping]), -0.5)[0])

    def _scaled(self, rows: Rows, inside: Rows, outside: float) -> Rows:
        inner = rows @ self._vectors
        found: Rows = (inner * inside) @ self._vectors.T
        if self._vectors.shape[0] > self._vectors.shape[1]:
            found += outside * (rows - inner @ self._vectors.T)
        return found


class Iterative(Inverse):
    """By MINRES, a solution for each row; for models whose matrix is too large to form."""

    def __init__(self, product: Product, size: int, damping: float, options: Options) -> None:
        self._tolerance = _TOLERANCE if options.tolerance is None else options.tolerance
        self._iterations = _ITERATIONS if options.iterations is None else options.iterations
        self.solver = f"MINRES (tolerance {self._tolerance:g})"
        self.damping = damping
        self._product, self._size = product, size

    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g; a row that does not converge is logged."""
        from scipy.sparse.linalg import LinearOperator, minres

        matrix = LinearOperator(
            (self._size, self._size), matvec=lambda v: self._product(v.reshape(1, -1))[0], dtype=np.float64
        )
        out = np.empty_like(rows)
        for line, row in enumerate(rows):
            # SciPy's `shift` solves (A − shift) v = g.
            out[line], code = minres(matrix, row, shift=-self.damping, rtol=self._tolerance, maxiter=self._iterations)
            if code:
                log.warning("MINRES stopped after %d iterations at row %d", self._iterations, line)
        return out

    def root(self, rows: Rows) -> Rows:
        """Refuse: an iteration gives no root.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            f"The cosine and ℓ2 forms need the root of the inverse Hessian, which is not formed for {self._size} "
            "parameters. Raise exact_limit, or select fewer parameters in the job."
        )


def hessian(job: Job, options: Options) -> Inverse:
    """Return the inverse of the Hessian of a job's mean training loss, or of what stands for it.

    Up to `exact_limit` parameters the Hessian is formed. Above, it is the Gauss-Newton matrix as EKFAC (see
    `gradindex.gradients.curvature`), or MINRES iterates with the Hessian itself where the loss is none of which labels
    can be drawn.

    Raises
    ------
    ValueError
        If a solver is asked for that needs drawn labels, and there are none for this loss.
    """
    size = job.engine.size
    exact = options.solver == "exact" or (options.solver == "auto" and size <= options.exact_limit)
    if options.solver == "cg":
        return Conjugate(job, options)
    if not exact and options.solver != "minres":
        try:
            return Kronecker(job, options, "kfac" if options.solver == "kfac" else "ekfac")
        except NoDistribution as error:
            if options.solver != "auto":
                raise ValueError(f"The Gauss-Newton matrix cannot be had: {error} Leave solver out.") from error
            log.warning("MINRES takes the place of EKFAC: %s", error)
    product = _product(job)
    if not exact:
        # Four signs are a rough estimate of the diagonal, of which the damping is a share.
        signs = np.random.default_rng(options.seed).choice([-1.0, 1.0], (4, size))
        known = isinstance(options.damping, int | float)
        scale = 0.0 if known else float(np.abs((signs * product(signs)).mean(axis=0)).mean())
        return Iterative(product, size, damping_of(options.damping, scale), options)
    matrix = np.empty((size, size))
    for begin in range(0, size, 64):
        rows = np.zeros((min(64, size - begin), size))
        rows[np.arange(len(rows)), begin + np.arange(len(rows))] = 1
        matrix[begin : begin + len(rows)] = product(rows)
    return decompose((matrix + matrix.T) / 2, options.damping, "eigendecomposition of the Hessian")


def fisher(job: Job, options: Options, gradients: Callable[[], Rows]) -> Inverse:
    """Return the inverse of a job's Fisher information matrix.

    `gradients` returns those of the training samples (n, P). Exact where P or n is at most `exact_limit`, with
    P > n by the n × n Gram matrix; above, EKFAC of the matrix with the data's labels.
    """
    if options.fisher == "mean":
        mean = gradients().mean(axis=0)
        norm = float(np.linalg.norm(mean))
        values = np.array([norm**2])
        damping = damping_of(options.damping, norm**2 / len(mean), values)
        vectors = (mean / norm if norm > 0 else mean)[:, None]
        return Spectral(values, vectors, damping, "rank one (outer product of the mean gradient)")
    small = min(job.engine.size, len(job.source)) <= options.exact_limit
    if options.solver in ("ekfac", "kfac") or (options.solver == "auto" and not small):
        return Kronecker(job, options, "kfac" if options.solver == "kfac" else "ekfac", empirical=True)
    return exact_fisher(gradients(), options.damping)


def exact_fisher(gradients: Rows, damping: float | str | None) -> Spectral:
    """Return the inverse of mean g gᵀ for gradients (n, P), by the smaller of the P × P and the n × n matrix."""
    n, size = gradients.shape
    used = np.flatnonzero(np.einsum("ij,ij->j", gradients, gradients))
    if len(used) <= n:
        scale = float(np.einsum("ij,ij->", gradients, gradients)) / n / size
        small = gradients[:, used]
        values, vectors = _eigh(small.T @ small / n)
        return Spectral(
            values,
            _spread(vectors, used, size),
            damping_of(damping, scale, values),
            "eigendecomposition of the Fisher matrix",
        )
    values, vectors = _eigh(gradients @ gradients.T / n)
    damping = damping_of(damping, float(np.einsum("ij,ij->", gradients, gradients)) / n / size, values)
    keep = values > values[-1] * n * np.finfo(np.float64).eps
    values = values[keep]
    vectors = gradients.T @ (vectors[:, keep] / np.sqrt(values * n))
    return Spectral(values, vectors, damping, "eigendecomposition of the Gram matrix")


def decompose(matrix: Rows, damping: float | str | None, solver: str) -> Spectral:
    """Return the inverse of a symmetric matrix (P, P)."""
    size, diagonal = len(matrix), float(np.abs(np.diag(matrix)).mean())
    used = np.flatnonzero(matrix.any(axis=0))  # inputs that are always 0, such as the margins of digits
    values, vectors = _eigh(matrix if len(used) == size else matrix[np.ix_(used, used)])
    return Spectral(values, _spread(vectors, used, size), damping_of(damping, diagonal, values), solver)


def _spread(vectors: Rows, used: NDArray[np.intp], size: int) -> Rows:
    """Return vectors (r, r) of the parameters `used` as vectors (size, r) of all."""
    if len(used) == size:
        return vectors
    out = np.zeros((size, len(used)))
    out[used] = vectors
    return out


def _eigh(matrix: Rows) -> tuple[Rows, Rows]:
    from scipy.linalg import eigh

    values, vectors = eigh(matrix, driver="evd", overwrite_a=True, check_finite=True)
    return values, vectors


def _power(values: Rows, power: float) -> Rows:
    """Return values ** power with 0 for 0 (the pseudo-inverse)."""
    return np.power(values, power, out=np.zeros_like(values), where=values != 0)


def _product(job: Job) -> Product:
    """Return the function (k, P) -> (k, P) that multiplies rows with the Hessian of the mean training loss."""

    def product(rows: Rows) -> Rows:
        total = np.zeros(rows.shape)
        for batch in job.source.blocks(_BATCH):
            total += job.engine.hessian_product(batch.x, batch.y, rows)
        return total / len(job.source)

    return product
