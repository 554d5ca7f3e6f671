"""Inverses of the Hessian of the mean training loss and of the Fisher information matrix.

With eigenvalues λ and eigenvectors V of a matrix A, damped by d: apply is (A + d)⁻¹ g, root is (A + d)^(−1/2) g.
A Hessian away from a minimum has negative eigenvalues; their square root is imaginary, and the real part of the
root (what the study's code takes) leaves those directions out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from gradindex.gradients.base import log
from gradindex.job import Job
from gradindex.relevance.base import Options, Rows

RELATIVE_DAMPING = 1e-10
Product = Callable[[Rows], Rows]


class Inverse(ABC):
    """(A + d)⁻¹ for a symmetric matrix A."""

    solver: str
    damping: float

    @abstractmethod
    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g for rows (b, P)."""

    @abstractmethod
    def root(self, rows: Rows) -> Rows:
        """Return the real part of (A + d)^(−1/2) g for rows (b, P)."""


class Spectral(Inverse):
    """By eigenvalues (r,) and orthonormal eigenvectors (P, r); A is zero outside their span."""

    def __init__(self, values: Rows, vectors: Rows, damping: float, solver: str) -> None:
        self.solver = solver
        self.damping = damping
        self._values = values + damping
        self._vectors = vectors

    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g."""
        return self._scaled(rows, _power(self._values, -1), _power(np.array([self.damping]), -1)[0])

    def root(self, rows: Rows) -> Rows:
        """Return the real part of (A + d)^(−1/2) g."""
        positive = np.maximum(self._values, 0)
        return self._scaled(rows, _power(positive, -0.5), _power(np.array([self.damping]), -0.5)[0])

    def _scaled(self, rows: Rows, inside: Rows, outside: float) -> Rows:
        inner = rows @ self._vectors
        found: Rows = (inner * inside) @ self._vectors.T
        if self._vectors.shape[0] > self._vectors.shape[1]:
            found += outside * (rows - inner @ self._vectors.T)
        return found


class Iterative(Inverse):
    """By MINRES, a solution for each row; for models whose matrix is too large to form."""

    def __init__(self, product: Product, size: int, damping: float, options: Options) -> None:
        self.solver = f"MINRES (tolerance {options.tolerance:g})"
        self.damping = damping
        self._product, self._size, self._options = product, size, options

    def apply(self, rows: Rows) -> Rows:
        """Return (A + d)⁻¹ g; a row that does not converge is logged."""
        from scipy.sparse.linalg import LinearOperator, minres

        matrix = LinearOperator(
            (self._size, self._size), matvec=lambda v: self._product(v.reshape(1, -1))[0], dtype=np.float64
        )
        out = np.empty_like(rows)
        for line, row in enumerate(rows):
            # SciPy's `shift` solves (A − shift) v = g.
            out[line], code = minres(
                matrix, row, shift=-self.damping, rtol=self._options.tolerance, maxiter=self._options.iterations
            )
            if code:
                log.warning("MINRES stopped after %d iterations at row %d", self._options.iterations, line)
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
    """Return the inverse of the Hessian of a job's mean training loss, formed where P ≤ `exact_limit`."""
    product, size = _product(job), job.engine.size
    if size > options.exact_limit:
        damping = options.damping
        if damping is None:
            # Hutchinson's estimate of the diagonal would cost more than it is worth at 1e-10 of it.
            signs = np.random.default_rng(0).choice([-1.0, 1.0], (4, size))
            damping = RELATIVE_DAMPING * float(np.abs((signs * product(signs)).mean(axis=0)).mean())
        return Iterative(product, size, damping, options)
    matrix = np.empty((size, size))
    for begin in range(0, size, 64):
        rows = np.zeros((min(64, size - begin), size))
        rows[np.arange(len(rows)), begin + np.arange(len(rows))] = 1
        matrix[begin : begin + len(rows)] = product(rows)
    return decompose((matrix + matrix.T) / 2, options.damping, "eigendecomposition of the Hessian")


def fisher(gradients: Rows, options: Options) -> Inverse:
    """Return the inverse of the Fisher information matrix of training gradients (n, P), exact for any P.

    With P > n the decomposition is that of the n × n Gram matrix.
    """
    if options.fisher == "mean":
        mean = gradients.mean(axis=0)
        norm = float(np.linalg.norm(mean))
        damping = _damping(options.damping, norm**2 / len(mean))
        vectors = (mean / norm if norm > 0 else mean)[:, None]
        return Spectral(np.array([norm**2]), vectors, damping, "rank one (outer product of the mean gradient)")
    n, size = gradients.shape
    if size <= n:
        return decompose(gradients.T @ gradients / n, options.damping, "eigendecomposition of the Fisher matrix")
    values, vectors = _eigh(gradients @ gradients.T / n)
    damping = _damping(options.damping, float(np.einsum("ij,ij->", gradients, gradients)) / n / size)
    keep = values > values[-1] * n * np.finfo(np.float64).eps
    values = values[keep]
    vectors = gradients.T @ (vectors[:, keep] / np.sqrt(values * n))
    return Spectral(values, vectors, damping, "eigendecomposition of the Gram matrix")


def decompose(matrix: Rows, damping: float | None, solver: str) -> Spectral:
    """Return the inverse of a symmetric matrix (P, P)."""
    damping = _damping(damping, float(np.abs(np.diag(matrix)).mean()))
    return Spectral(*_eigh(matrix), damping, solver)


def _damping(given: float | None, scale: float) -> float:
    return RELATIVE_DAMPING * scale if given is None else given


def _eigh(matrix: Rows) -> tuple[Rows, Rows]:
    from scipy.linalg import eigh

    values, vectors = eigh(matrix, driver="evd", overwrite_a=True, check_finite=True)
    return values, vectors


def _power(values: Rows, power: float) -> Rows:
    """Return values ** power with 0 for 0 (the pseudo-inverse)."""
    return np.power(values, power, out=np.zeros_like(values), where=values != 0)


def _product(job: Job) -> Product:
    if job.backend == "torch":
        from gradindex.relevance.products_torch import hessian_product
    else:
        from gradindex.relevance.products_tensorflow import hessian_product
    return hessian_product(job)
