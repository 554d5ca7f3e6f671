"""What one call of a layer leaves behind of a parameter's per-sample gradient.

With the gradient δ of the layer's output known, a weight seen as a matrix (rows × columns, in memory order) has
the per-sample gradient Σ_t r_t c_tᵀ over T positions. A `Use` can `form` that sum, and most can also hand out
the factors r (b, T, rows) and c (b, T, columns), which are far smaller when T is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.compiled.squares import squares as host_squares
from gradindex.gradients.torch import matmul

_SMALL, _LARGE = 1e-7, 1e5  # products of four vectors with such largest numbers are normal in single precision


class Workspace:
    """Working memory that is handed out again and again: fresh pages cost as much as what is written to them."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a tensor of any contents, whose memory the last one of that name had; half precision is widened."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        held, size = self._held.get(name), math.prod(shape)
        if held is None or held.dtype != dtype or held.device != like.device or len(held) < size:
            self._held.pop(name, None)
            held = self._held[name] = like.new_empty(size, dtype=dtype)
        return held[:size].view(*shape)


class Use(ABC):
    """One use of one parameter by a batch of b samples."""

    positions: int | None = None
    """T, if the gradient has factors; else None."""
    form_cost: float = 0.0
    """Multiply-adds to form one sample's gradient."""
    workspace: Workspace | None = None
    """Where working memory comes from, shared with other uses; None: its own."""
    inner: int = 1
    """Of columns (C, inner) in the parameter's memory, `factors` and `form_inner_first` have (inner, C)."""

    @abstractmethod
    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, size) of these samples; may be a reused buffer."""

    def form_inner_first(self, block: slice) -> Tensor:
        """Return what `form` does, with columns in the order of `factors`."""
        return self.form(block)

    def factors(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return row factors (block, T, rows), or (block, T) of row numbers, and column factors."""
        raise NotImplementedError

    def bytes_per_sample(self) -> int:
        """Return how much working memory `factors` and `form` take for a sample, beyond the gradient."""
        return 0

    def form_bytes(self) -> int:
        """Return how much of it `form` takes alone."""
        return self.bytes_per_sample()

    def buffer(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a buffer of any contents, which the next call with that name takes again."""
        if self.workspace is None:
            self.workspace = Workspace()
        return self.workspace.take(name, shape, like)

    def share(self, workspace: Workspace | None) -> None:
        """Take working memory from there; None: share none with other uses."""
        self.workspace = workspace

    def placed(self, begin: int, rows: int) -> "Use":
        """Return the same use of a larger parameter, of `rows` rows, this one's from `begin` on."""
        raise NotImplementedError


class Direct(Use):
    """A gradient that is small, or of no use factored: (b, size), already formed."""

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients.flatten(1)

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, size)."""
        return self.gradients[block]

    def placed(self, begin: int, rows: int) -> "Direct":
        """Return the use of a vector of length `rows`."""
        return Direct(F.pad(self.gradients, (begin, rows - begin - self.gradients.shape[1])))


class Outer(Use):
    """Dense factors: rows (b, T, R) and columns (b, T, C)."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.positions = rows.shape[1]
        self.form_cost = self.positions * rows.shape[2] * columns.shape[2]

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, R·C), in a reused buffer."""
        rows, columns = self.factors(block)
        out = self.buffer("formed", (len(rows), rows.shape[2], columns.shape[2]), rows)
        return matmul.batched(rows.transpose(1, 2), columns, out).flatten(1)

    def factors(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return rows (block, T, R) and columns (block, T, C)."""
        return upcast(self.rows[block]), upcast(self.columns[block])

    def placed(self, begin: int, rows: int) -> "Outer":
        """Return the use of a matrix of `rows` rows."""
        return Outer(F.pad(self.rows, (begin, rows - begin - self.rows.shape[2])), self.columns)


class Touched(Use):
    """Rows of an embedding: numbers (b, T) of the touched rows, and their gradients (b, T, C)."""

    def __init__(self, numbers: Tensor, columns: Tensor, rows: int) -> None:
        self.numbers, self.columns, self.rows = numbers, columns, rows
        self.positions = numbers.shape[1]
        self.form_cost = self.positions * columns.shape[2] + rows * columns.shape[2] / 8

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, rows·C), mostly zeros."""
        numbers, columns = self.factors(block)
        out = columns.new_zeros(len(columns), self.rows, columns.shape[2])
        return out.scatter_add_(1, numbers[:, :, None].expand_as(columns), columns).flatten(1)

    def factors(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return row numbers (block, T) and columns (block, T, C)."""
        return self.numbers[block], upcast(self.columns[block])


def upcast(tensor: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def squares(vectors: Tensor) -> Tensor:
    """Return squared norms (b,) in float64 of (b, n)."""
    if vectors.device.type == "cpu":
        return torch.from_numpy(host_squares(vectors.detach().numpy()))
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square_()


def squared_norms(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return ‖Σ_t r_t c_tᵀ‖² (b,) in float64 from factors alone: Σ_{t,u} ⟨r_t, r_u⟩⟨c_t, c_u⟩.

    The ghost norm of Li et al. (2022), https://arxiv.org/abs/2110.05679, for any mix of dense factors and
    embeddings (whose r_t are one-hot), so that tied weights and layers called twice need no formed gradient.
    """
    total = torch.zeros(len(parts[0][1]), dtype=torch.float64, device=parts[0][1].device)
    for i, (rows, columns) in enumerate(parts):
        if columns.shape[1] == 1 and rows.dim() == 3:
            total += squares(rows[:, 0]) * squares(columns[:, 0])
        else:
            total += _overlap(rows, columns, rows, columns)
        for other_rows, other_columns in parts[i + 1 :]:
            total += 2 * _overlap(rows, columns, other_rows, other_columns)
    return total.clamp_(min=0)


def _overlap(rows: Tensor, columns: Tensor, other_rows: Tensor, other_columns: Tensor) -> Tensor:
    """Return Σ_{t,u} ⟨r_t, r'_u⟩⟨c_t, c'_u⟩ (b,), the vectors scaled first where the products might vanish."""
    factors = rows, columns, other_rows, other_columns
    dense = [values for values in factors if values.dim() == 3 and values.shape[1] * values.shape[2]]
    # The largest numbers: as good as norms, and nothing is copied for them. With itself, once.
    largest = {id(values): values for values in dense}
    most = {key: torch.maximum(one.amax((1, 2)), -one.amin((1, 2))).double() for key, one in largest.items()}
    lengths = [most[id(values)] for values in dense]
    sizes = torch.ones(len(columns), dtype=torch.float64, device=columns.device)
    if not all(bool(((length > _SMALL) & (length < _LARGE)).all()) for length in lengths):
        scaled = []
        for values, length in zip(dense, lengths, strict=True):
            length = length.where(length > 0, 1)
            sizes *= length
            scaled.append((values / length[:, None, None]).to(values.dtype))
        left = iter(scaled)
        rows, columns, other_rows, other_columns = (
            next(left) if values.dim() == 3 and values.shape[1] * values.shape[2] else values for values in factors
        )
    return sizes * _scaled_overlap(rows, columns, other_rows, other_columns)


def _scaled_overlap(rows: Tensor, columns: Tensor, other_rows: Tensor, other_columns: Tensor) -> Tensor:
    inner = torch.bmm(columns, other_columns.transpose(1, 2))
    if rows.dim() == 3 and other_rows.dim() == 3:
        inner *= torch.bmm(rows, other_rows.transpose(1, 2))
    elif rows.dim() == 2 and other_rows.dim() == 2:
        inner *= rows[:, :, None] == other_rows[:, None, :]
    elif rows.dim() == 3:
        inner *= rows.gather(2, other_rows[:, None, :].expand(-1, rows.shape[1], -1))
    else:
        inner *= other_rows.gather(2, rows[:, None, :].expand(-1, other_rows.shape[1], -1)).transpose(1, 2)
    return inner.sum((1, 2), dtype=torch.float64)
