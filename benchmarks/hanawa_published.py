"""IF and FK with the matrices of the study's published code: `hanawa.py --published`.

There the Hessian and the Fisher matrix, which is the rank-one ḡ ḡᵀ, have entries in single precision; 1e-10 times their
mean absolute entry is added to the diagonal and `numpy.linalg.inv` inverts, both in double precision; cosine and ℓ2
forms multiply with the real part of `scipy.linalg.sqrtm` of the inverse. Rounding the entries leaves eigenvalues of up
to 1e-8 of the largest, of either sign, where the matrix is singular: far more than the damping, so there the inverse
is one of rounding errors. Above FORMED parameters eigenvectors of the symmetric part stand for sqrtm.
"""

from contextlib import contextmanager
from functools import cached_property
from unittest import mock

import numpy as np
import scipy.linalg
import torch

from gradindex.relevance import curvature
from gradindex.relevance.inverse import Inverse

FORMED = 2000
EXACT = 8192  # parameters up to which the Hessian is formed; above, the Gauss-Newton matrix


class Published(Inverse):
    """The inverse of a matrix whose entries are in single precision, and its root."""

    def __init__(self, matrix, what):
        self.damping = 1e-10 * float(np.abs(matrix).mean())
        self.solver = f"inv and {'sqrtm' if len(matrix) <= FORMED else 'eigenvectors'} of {what} in float32"
        self._matrix = matrix

    @cached_property
    def _inverse(self):
        return np.linalg.inv(self._matrix + self.damping * np.identity(len(self._matrix)))

    @cached_property
    def _root(self):
        return scipy.linalg.sqrtm(self._inverse).real

    @cached_property
    def _spectral(self):
        matrix = self._matrix.astype(np.float64)
        return curvature.decompose((matrix + matrix.T) / 2, self.damping, self.solver)

    def apply(self, rows):
        return rows @ self._inverse.T

    def root(self, rows):
        return rows @ self._root.T if len(self._matrix) <= FORMED else self._spectral.root(rows)


def hessian(job, options):
    size = job.engine.size
    if size > EXACT:
        return Published(gauss_newton(job), "the Gauss-Newton matrix")
    product = curvature._product(job)
    matrix = np.empty((size, size), np.float32)
    for begin in range(0, size, 64):
        rows = np.zeros((min(64, size - begin), size))
        rows[np.arange(len(rows)), begin + np.arange(len(rows))] = 1
        matrix[begin : begin + len(rows)] = product(rows)
    return Published(matrix, "the Hessian")


def gauss_newton(job, block=64):
    """Return the mean over samples of Jᵀ (diag p − p pᵀ) J (P, P) float32, J the Jacobian of the outputs."""
    model = job.engine.model
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def outputs(weights, x):
        found = torch.func.functional_call(model, weights, (x[None],))[0]
        return found, found

    jacobian = torch.func.vmap(torch.func.jacrev(outputs, has_aux=True), in_dims=(None, 0))
    matrix = torch.zeros(job.engine.size, job.engine.size)
    for batch in job.source.blocks(block):
        rows, logits = jacobian(weights, torch.as_tensor(batch.x))
        rows = torch.cat([part.flatten(2) for part in rows.values()], dim=2)
        p = logits.softmax(dim=1)
        root = p.sqrt()[:, :, None] * (torch.eye(p.shape[1]) - p[:, None, :])  # rootᵀ root = diag p − p pᵀ
        rows = (root @ rows).flatten(0, 1)
        matrix.addmm_(rows.T, rows)
    return (matrix / len(job.source)).numpy()


def fisher(job, options, gradients):
    mean = gradients().astype(np.float32).mean(axis=0)
    return Published(np.outer(mean, mean), "the rank-one matrix")


@contextmanager
def published():
    """Within it, IF and FK use the published code's matrices."""
    with mock.patch.object(curvature, "hessian", hessian), mock.patch.object(curvature, "fisher", fisher):
        yield
