"""The inverse of a large PyTorch model's Gauss-Newton matrix, as EKFAC."""

from typing import TYPE_CHECKING, cast

from gradindex.gradients.torch.ekfac import EKFAC
from gradindex.job import Job
from gradindex.relevance.base import Options, Rows
from gradindex.relevance.inverse import RELATIVE_DAMPING, Inverse

if TYPE_CHECKING:
    from gradindex.gradients.torch.engine import TorchEngine


class Kronecker(Inverse):
    """(G + d)⁻¹ for the EKFAC G of a job's mean training loss; see `gradindex.gradients.torch.ekfac`.

    Parameters
    ----------
    job
        A PyTorch job of those that `EKFAC` takes.
    options
        `damping`, and `samples` with `seed`: labels drawn from the model for a sample, 0 for the exact expectation.
    empirical
        Whether labels are those of the data: then G is the Fisher information as the study has it, mean g gᵀ.

    Raises
    ------
    Unsupported
        If the job is not such a one, or curvlinops is not installed.
    """

    def __init__(self, job: Job, options: Options, *, empirical: bool = False) -> None:
        engine = cast("TorchEngine", job.engine)
        self._matrix = EKFAC(engine, job.loss_fn, job.source, options.samples, options.seed, empirical)
        own = RELATIVE_DAMPING * self._matrix.trace / engine.size
        self.damping = own if options.damping is None else options.damping
        kind = "Fisher" if empirical else "Gauss-Newton"
        drawn = f", {options.samples} drawn label(s) a sample" if options.samples and not empirical else ""
        self.solver = f"EKFAC of the {kind} matrix{drawn} (curvlinops {self._matrix.version})"

    def apply(self, rows: Rows) -> Rows:
        """Return (G + d)⁻¹ g."""
        return self._matrix.power(rows, self.damping, -1.0)

    def root(self, rows: Rows) -> Rows:
        """Return (G + d)^(−1/2) g."""
        return self._matrix.power(rows, self.damping, -0.5)

    def halves(self, rows: Rows, *, query: bool) -> Rows:
        """Return the root for both sides."""
        return self.root(rows)
