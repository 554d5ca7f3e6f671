"""Inverses of a job's curvature: by EKFAC or K-FAC, and by conjugate gradients that EKFAC preconditions."""

from gradindex.gradients.curvature import Curvature
from gradindex.job import Job
from gradindex.relevance.base import STUDY, Options, Rows
from gradindex.relevance.inverse import Inverse, damping_of
from gradindex.runtime.log import log

_BATCH = 256
_TOLERANCE, _ITERATIONS = 1e-3, 100  # of the residual; gradients in single precision allow no more than about 1e-5


class Kronecker(Inverse):
    """(G + d)⁻¹ for the EKFAC or K-FAC G of a job's loss; see `gradindex.gradients.curvature`.

    Parameters
    ----------
    job
        Of either framework.
    options
        `damping`, and `samples` with `seed`: labels drawn from the model for a sample.
    kind
        ``"ekfac"`` or ``"kfac"``.
    empirical
        Whether labels are those of the data: then G is the Fisher information as the study has it, mean g gᵀ.

    Raises
    ------
    NoDistribution
        If labels are to be drawn, and the loss does not say how.
    """

    def __init__(self, job: Job, options: Options, kind: str, *, empirical: bool = False) -> None:
        labels = "data" if empirical else "model"
        self.curvature = Curvature.fit(
            job.engine, job.source, kind, labels=labels, samples=options.samples, seed=options.seed
        )
        own = self.curvature.damping
        if options.damping == STUDY:
            own = damping_of(STUDY, self.curvature.trace / self.curvature.size)
        self.damping = own if options.damping in (None, STUDY) else float(options.damping or 0)
        title = {"ekfac": "EKFAC", "kfac": "K-FAC"}[kind]
        drawn = "" if empirical else f", {options.samples} drawn label(s) a sample"
        self.stands_for_hessian = not empirical
        self.solver = f"{title} of the {'Fisher' if empirical else 'Gauss-Newton'} matrix{drawn}"

    def apply(self, rows: Rows) -> Rows:
        """Return (G + d)⁻¹ g."""
        return self.curvature.apply(rows, self.damping)

    def root(self, rows: Rows) -> Rows:
        """Return (G + d)^(−1/2) g."""
        return self.curvature.root(rows, self.damping)

    def halves(self, rows: Rows, *, query: bool) -> Rows:
        """Return the root for both sides."""
        return self.root(rows)


class Conjugate(Inverse):
    """(G + d)⁻¹ for the Gauss-Newton matrix G itself, by conjugate gradients; EKFAC's inverse is the preconditioner.

    G has no negative eigenvalue, as a Hessian may, so that the iteration is sound. Every iteration is a pass over the
    samples for each row. Parameters and what is raised are those of `Kronecker`; `tolerance` and `iterations` of the
    options end it.
    """

    def __init__(self, job: Job, options: Options) -> None:
        self._near = Kronecker(job, options, "ekfac")
        self._job = job
        self._tolerance = _TOLERANCE if options.tolerance is None else options.tolerance
        self._iterations = _ITERATIONS if options.iterations is None else options.iterations
        self.damping = self._near.damping
        self.stands_for_hessian = True
        self.solver = f"conjugate gradients (tolerance {self._tolerance:g}), preconditioned by {self._near.solver}"

    def apply(self, rows: Rows) -> Rows:
        """Return (G + d)⁻¹ g; a row that does not converge is logged."""
        from scipy.sparse.linalg import LinearOperator, cg

        shape = (rows.shape[1], rows.shape[1])
        matrix = LinearOperator(shape, matvec=lambda v: self._damped(v.reshape(1, -1))[0], dtype=rows.dtype)
        near = LinearOperator(shape, matvec=lambda v: self._near.apply(v.reshape(1, -1))[0], dtype=rows.dtype)
        out, start = rows.copy(), self._near.apply(rows)
        for line, row in enumerate(rows):
            out[line], code = cg(matrix, row, x0=start[line], rtol=self._tolerance, maxiter=self._iterations, M=near)
            if code:
                log.warning("conjugate gradients stopped after %d iterations at row %d", code, line)
        return out

    def root(self, rows: Rows) -> Rows:
        """Refuse: an iteration gives no root.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("The cosine and ℓ2 forms need a root, which conjugate gradients do not give. Use 'ekfac'.")

    def _damped(self, rows: Rows) -> Rows:
        total = self.damping * rows * len(self._job.source)
        for batch in self._job.source.blocks(_BATCH):
            total += self._job.engine.gauss_newton_product(batch.x, batch.y, rows)
        found: Rows = total / len(self._job.source)
        return found
