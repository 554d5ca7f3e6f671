"""CountSketch where the gradients are: torch operations on any device, from the same hash tables.

Sums in another order than on the CPU, so equal to about 1e-6 and not to the bit.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradindex.gradients.parameter import Parameter

if TYPE_CHECKING:
    from gradindex.sketch.countsketch import CountSketchProjector

Side = tuple[Tensor, Tensor]  # buckets (n,) int64 and signs (n,) float32


class TorchCountSketch:
    """The torch twin of a `CountSketchProjector`, on one device."""

    def __init__(self, projector: "CountSketchProjector", device: torch.device) -> None:
        self.dim = projector.dim
        self._sides: dict[str, tuple[Side, Side]] = {}
        for name, t in projector.tables.items():
            rows = torch.from_numpy(t.row_buckets.astype("int64")), torch.from_numpy(t.row_signs)
            columns = torch.from_numpy(t.column_buckets.astype("int64")), torch.from_numpy(t.column_signs)
            self._sides[name] = (
                (rows[0].to(device), rows[1].to(device)),
                (columns[0].to(device), columns[1].to(device)),
            )

    def add_measured(self, out: Tensor, parameter: Parameter, gradients: Tensor) -> Tensor:
        """Add the sketch of formed gradients (b, size) to `out` (b, dim); return squared norms (b,) float64."""
        (rows, row_signs), (columns, column_signs) = self._sides[parameter.name]
        buckets = (rows[:, None] + columns).remainder_(self.dim).flatten()
        matrix = gradients.float().view(len(gradients), *parameter.matrix_shape)
        signed = matrix * row_signs[:, None] * column_signs
        out.index_add_(1, buckets, signed.flatten(1))
        return torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).square_()

    def add_factors(self, out: Tensor, parameter: Parameter, rows: Tensor, columns: Tensor) -> None:
        """Add the sketch of Σ_t r_t c_tᵀ to `out`; rows (b, T, R), or (b, T) row numbers; columns (b, T, C)."""
        row_side, column_side = self._sides[parameter.name]
        if rows.dim() == 2:
            buckets = (row_side[0][rows][:, :, None] + column_side[0]).remainder_(self.dim)
            signed = columns.float() * row_side[1][rows][:, :, None] * column_side[1]
            out.scatter_add_(1, buckets.flatten(1), signed.flatten(1))
            return
        if not len(out):  # torch transforms no empty batch
            return
        spectra = self._spectra(rows, row_side) * self._spectra(columns, column_side)
        out += torch.fft.irfft(spectra.sum(1), self.dim)

    def _spectra(self, values: Tensor, side: Side) -> Tensor:
        counts = values.new_zeros((*values.shape[:2], self.dim), dtype=torch.float32)
        return torch.fft.rfft(counts.index_add_(2, side[0], values.float() * side[1]))
