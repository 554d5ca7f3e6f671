"""Rule of a mixture's experts: a sample's gradient has the rows that it sent to each."""

from collections.abc import Callable

import torch
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.torch.capture import Capture, Layout, NoRule, plain, rule
from gradindex.gradients.torch.experts import expert_products
from gradindex.gradients.torch.use import Use, upcast


class Sent(Use):
    """Factors of one matrix an expert: the expert (b, T) of each of T positions, rows (b, T, R), columns (b, T, C)."""

    def __init__(self, numbers: Tensor, rows: Tensor, columns: Tensor, experts: int) -> None:
        self.numbers, self.rows, self.columns, self.experts = numbers, rows, columns, experts
        self.form_cost = numbers.shape[1] * rows.shape[2] * columns.shape[2]

    def form(self, block: slice) -> Tensor:
        """Return the per-sample gradients (block, E·R·C), zeros for experts that a sample did not choose."""
        numbers, rows, columns = self.numbers[block], upcast(self.rows[block]), upcast(self.columns[block])
        samples = len(numbers)
        out = self.buffer("experts", (samples * self.experts, rows.shape[2], columns.shape[2]), rows).zero_()
        places = (numbers + torch.arange(samples, device=numbers.device)[:, None] * self.experts).flatten()
        order = torch.argsort(places)
        filled, counts = torch.unique_consecutive(places[order], return_counts=True)
        parts = (values.flatten(0, 1)[order].split(counts.tolist()) for values in (rows, columns))
        for place, left, right in zip(filled.tolist(), *parts, strict=True):
            torch.mm(left.t(), right, out=out[place])
        return out.view(samples, -1)


@rule("x, weight, numbers, transposed=", expert_products)
def experts(capture: Capture, function: Callable[..., Tensor], call: dict[str, Tree]) -> Tensor:
    """y_s = x_s W_eᵀ: ∇W_e = Σ δ_s x_sᵀ over the rows s of expert e."""
    x, weight, numbers, transposed = call["x"], call["weight"], call["numbers"], bool(call["transposed"])
    if x in capture.shared or numbers in capture.shared:
        raise NoRule
    a = x.detach()

    def sent(g: Tensor, at: Layout) -> Sent:
        sides = at.positions(g), at.positions(a)
        return Sent(at.positions(numbers, 0), *(sides[::-1] if transposed else sides), len(weight))

    return capture.tap(function(x, plain(weight), numbers, transposed), {weight: sent}, [a, numbers])
