"""One batched forward and one backward pass; every parameter is dealt with as soon as its δ has arrived.

The backward pass computes gradients of layers' outputs only: parameters are detached, the input needs no
gradient, and a layer's activations and δ are let go of once they are sketched, so memory stays that of a
training step.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.gradients.torch import rules  # noqa: F401  (they register themselves)
from gradindex.gradients.torch.capture import Call, Capture, Known, layouts
from gradindex.gradients.torch.use import Touched, Use, Workspace, squared_norms, squares, upcast

_BLOCK_BYTES = 8 << 20  # working memory of formed gradients: less means more, smaller parallel steps
_ROUNDS = 8  # of planning: how deep a computation on parameters alone is followed
_PER_NS = 100.0  # multiply-adds in a nanosecond of a batched matrix product

Finish = Callable[[str, Sequence[Use]], None]


@dataclass(frozen=True)
class Plan:
    """What the calls of a forward pass looked like, and which parameters have rules."""

    known: Known
    factored: frozenset[str]
    captured: int
    """Numbers of a sample's layer outputs."""


def plan(
    forward: Callable[[int], Tree], reads: Callable[[Tree], Sequence[Tensor]], named: Mapping[str, Tensor]
) -> Plan:
    """Return the plan found by running `forward` on 3 samples and on 2; `reads` are the tensors the loss reads of it.

    A call whose result is as large for 3 as for 2 computes something that all samples share; what is computed
    from that comes into view in the next round.
    """
    names = {id(value): name for name, value in named.items()}
    known = Known((), {})
    for _ in range(_ROUNDS):
        three, two = (_watch(forward, samples, Capture(names, known, None, samples)) for samples in (3, 2))
        shared = {key: shapes for key, shapes in three.results.items() if two.results.get(key) == shapes}
        known, before = Known(layouts(three.shapes, two.shapes, three.minor), shared), known.shared
        if shared == before:
            break
    again = Capture(names, known, lambda call, g: None, 2)
    with torch.enable_grad(), again:
        output = forward(2)
    alike = {name for part in reads(output) for name in again.names(part)}  # read as it is, with no sample's rows
    return Plan(known, frozenset(named) - again.without_rule - alike, two.captured // 2)


def _watch(forward: Callable[[int], Tree], samples: int, capture: Capture) -> Capture:
    with torch.enable_grad(), capture:
        forward(samples)
    return capture


def backward(
    forward: Callable[[], Tree],
    losses_of: Callable[[Tree], Tensor],
    named: Mapping[str, Tensor],
    samples: int,
    wanted: Collection[str],
    known: Plan,
    finish: Finish,
    workspace: Workspace,
) -> tuple[Tree, Tensor]:
    """Run both passes; call `finish` with each wanted parameter's name and uses. Returns outputs and losses (b,).

    `named` holds all selected parameters, as for `plan`, so that calls are counted alike.
    """
    pending: defaultdict[str, list[Use]] = defaultdict(list)

    def receive(call: Call, gradient: Tensor) -> None:
        for name, use in call(gradient):
            if expected[name] > 1:  # several will be at work together
                use.share(None)
            pending[name].append(use)
            if len(pending[name]) == expected[name]:
                finish(name, pending.pop(name))

    capture = Capture(
        {id(value): name for name, value in named.items()}, known.known, receive, samples, wanted, workspace
    )
    expected = capture.expected  # `receive` must not know `capture`, which knows it: a cycle would hold all gradients
    with torch.enable_grad():
        with capture:
            output = forward()
        losses = losses_of(output)
        if losses.requires_grad:
            starts = [*capture.anchors.values(), *capture.starts]
            torch.autograd.grad(losses.sum(), starts, allow_unused=True)
    for name, uses in pending.items():  # a call whose output the loss does not depend on
        finish(name, uses)
    return output, losses.detach()


class Rows:
    """Collects formed gradients (b, P) of the given parameters."""

    def __init__(self, samples: int, parameters: Sequence[Parameter], dtype: DTypeLike) -> None:
        self.gradients: Floats = np.zeros((samples, sum(parameter.size for parameter in parameters)), dtype)
        self._places: dict[str, slice] = {}
        begin = 0
        for parameter in parameters:
            self._places[parameter.name] = slice(begin, begin + parameter.size)
            begin += parameter.size

    def __call__(self, name: str, uses: Sequence[Use]) -> None:
        """Take the uses of one parameter."""
        out = self.gradients[:, self._places[name]]
        if all(isinstance(use, Touched) for use in uses):  # most rows of a table stay as they are, and cost nothing
            for use in uses:
                numbers, columns = (part.cpu().numpy() for part in use.factors(slice(None)))
                tables = out.reshape(len(out), -1, columns.shape[2])
                np.add.at(tables, (np.arange(len(out))[:, None], numbers), columns)
            return
        for block in _blocks(len(out), _formed_bytes(out.shape[1], uses)):
            out[block] = _formed(uses, block).cpu().numpy()


class _OnHost:
    """A NumPy projector that takes torch tensors."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector

    def add_measured(self, out: Tensor, parameter: Parameter, gradients: Tensor) -> Tensor:
        squares = self._projector.add_measured(out.numpy(), parameter, gradients.cpu().numpy())
        return torch.from_numpy(squares).to(gradients.device)

    def add_factors(self, out: Tensor, parameter: Parameter, rows: Tensor, columns: Tensor) -> Tensor | None:
        squares = self._projector.add_factors(out.numpy(), parameter, rows.cpu().numpy(), columns.cpu().numpy())
        return None if squares is None else torch.from_numpy(squares).to(columns.device)


class Sketches:
    """Collects sketches (b, k) and squared norms (b,), by each parameter's cheaper path."""

    def __init__(
        self, samples: int, parameters: Sequence[Parameter], projector: Projector, device: torch.device
    ) -> None:
        self._squares = torch.zeros(samples, dtype=torch.float64, device=device)
        self._parameters = {parameter.name: parameter for parameter in parameters}
        self._costs = projector
        twin = None if device.type == "cpu" else projector.on_device(device)
        self._projector: Any = _OnHost(projector) if twin is None else twin
        self._sketches = torch.zeros(samples, projector.dim, device="cpu" if twin is None else device)

    @property
    def sketches(self) -> NDArray[np.float32]:
        """The sketches (b, k)."""
        found: NDArray[np.float32] = self._sketches.cpu().numpy()
        return found

    @property
    def norms(self) -> NDArray[np.float64]:
        """The norms (b,)."""
        found: NDArray[np.float64] = self._squares.sqrt().cpu().numpy()
        return found

    def __call__(self, name: str, uses: Sequence[Use]) -> None:
        """Take the uses of one parameter."""
        parameter = self._parameters[name]
        by_factors, ghost = self._cheapest(parameter, uses)
        inner = {use.inner for use in uses}
        as_it_lies = len(inner) == 1 and self._costs.any_order
        if as_it_lies and inner != {1}:
            parameter = parameter.inner_first(*inner)
        elif inner != {1}:
            by_factors = False
        formed = _formed_as_it_lies if as_it_lies else _formed
        needed = 0
        if by_factors:
            needed = sum(use.bytes_per_sample() for use in uses)
            needed += sum(use.positions or 0 for use in uses) * self._costs.dim * 16
        own = self._costs.own_norms and max(use.positions or 2 for use in uses) == 1  # of one position none is formed
        if not (by_factors and (ghost or own)):
            needed += _formed_bytes(parameter.size, uses)
        for block in _blocks(len(self._squares), needed):
            out, squared = self._sketches[block], self._squares[block]
            if not by_factors:
                squared += self._projector.add_measured(out, parameter, formed(uses, block))
                continue
            parts = [use.factors(block) for use in uses]
            if self._costs.own_norms:
                squared += self._projector.add_factors(out, parameter, *_side_by_side(parts))
                continue
            for rows, columns in parts:
                self._projector.add_factors(out, parameter, rows, columns)
            squared += squared_norms(parts) if ghost else squares(formed(uses, block))

    def _cheapest(self, parameter: Parameter, uses: Sequence[Use]) -> tuple[bool, bool]:
        """Return whether the sketch, and whether the norm, had better come from the factors."""
        positions = [use.positions for use in uses]
        if None in positions:
            return False, False
        count = sum(positions)  # type: ignore[arg-type]
        rows, columns = parameter.matrix_shape
        form = sum(use.form_cost for use in uses) / _PER_NS + parameter.size * 0.2
        norm = parameter.size * 0.1
        dense = any(not isinstance(use, Touched) for use in uses)  # numbers of rows are only compared
        ghost = count * count * ((rows if dense else 0) + columns) / _PER_NS + count * count * 0.5
        sketch = sum(self._costs.factor_cost(parameter, use.positions or 0, isinstance(use, Touched)) for use in uses)
        if self._costs.own_norms:
            together = len({isinstance(use, Touched) for use in uses}) == 1
            return together and sketch < form + self._costs.cost(parameter), False
        formed = form + norm + self._costs.cost(parameter)
        ghost_is_cheaper = ghost < form + norm
        return (True, ghost_is_cheaper) if sketch + min(ghost, form + norm) < formed else (False, False)


def _side_by_side(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the factors of several uses as one, with all their positions."""
    if len(parts) == 1:
        return parts[0]
    rows, columns = zip(*parts, strict=True)
    return torch.cat(rows, 1), torch.cat(columns, 1)


def _formed_bytes(size: int, uses: Sequence[Use]) -> int:
    return 4 * size + sum(use.form_bytes() for use in uses)


def _blocks(samples: int, bytes_per_sample: int) -> list[slice]:
    """Return slices of as many samples as fit the working memory, a multiple of 8 where that is possible."""
    size = max(1, _BLOCK_BYTES // max(1, bytes_per_sample))
    size = size // 8 * 8 if size >= 8 else size
    return [slice(begin, min(begin + size, samples)) for begin in range(0, samples, size)]


def _formed_as_it_lies(uses: Sequence[Use], block: slice) -> Tensor:
    total = upcast(uses[0].form_inner_first(block))
    for use in uses[1:]:
        total = total + use.form_inner_first(block)
    return total


def _formed(uses: Sequence[Use], block: slice) -> Tensor:
    total = upcast(uses[0].form(block))
    for use in uses[1:]:
        total = total + use.form(block)
    return total
