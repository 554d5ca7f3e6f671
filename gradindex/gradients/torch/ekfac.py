"""The Gauss-Newton matrix of a large PyTorch model as EKFAC, by curvlinops.

EKFAC (George et al. 2018, https://arxiv.org/abs/1806.03884) writes a layer's block of the matrix as
(B ⊗ A) diag(λ) (B ⊗ A)ᵀ with orthogonal A and B, so that any function of the matrix is that of λ. For a softmax the
Gauss-Newton matrix is the Fisher information under the model's own labels, and the Hessian where the model is linear
in its parameters; it has no negative eigenvalues.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradindex.data.names import LossFunction, Tree
from gradindex.data.source import Source
from gradindex.errors import missing

if TYPE_CHECKING:
    from curvlinops import EKFACLinearOperator

    from gradindex.gradients.torch.engine import TorchEngine

_BATCH = 512
_LOSSES: dict[Any, type[nn.Module]] = {
    nn.functional.cross_entropy: nn.CrossEntropyLoss,
    nn.functional.mse_loss: nn.MSELoss,
    nn.functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}


class Unsupported(Exception):
    """The model or the loss is none that curvlinops' EKFAC takes; says which."""


class EKFAC:
    """The EKFAC G of an engine's mean loss over a dataset.

    Parameters
    ----------
    engine
        Its selected parameters belong to Linear and Conv2d layers, and inputs and outputs are one tensor each.
    loss_fn
        Cross-entropy, binary cross-entropy of logits or the squared error.
    source
        The samples.
    samples
        Labels drawn from the model for a sample, by `seed`; 0 for the exact expectation.
    seed
        Of the drawn labels.
    empirical
        Whether labels are those of the data: then G is mean g gᵀ.

    Raises
    ------
    Unsupported
        If model, loss or samples are not such ones, or curvlinops is not installed.
    """

    def __init__(
        self, engine: "TorchEngine", loss_fn: LossFunction, source: Source, samples: int, seed: int, empirical: bool
    ) -> None:
        with _ready(engine.model):
            self._operator = _operator(engine, loss_fn, source, samples, seed, empirical)
            self._operator.compute_eigenvalue_correction()
        self._layers: dict[str, Any] = self._operator.state_dict()["corrected_eigenvalues"]
        # curvlinops' own trace needs the Kronecker factors, which are gone by now.
        self.trace = sum(float(values.sum()) for values in _leaves(self._layers))
        self.version = version("curvlinops-for-pytorch")

    def power(self, rows: NDArray[np.float64], damping: float, power: float) -> NDArray[np.float64]:
        """Return (G + damping) ** power times rows (b, P)."""
        # load_state_dict would do, and write the model's weights again.
        self._operator._corrected_eigenvalues = _map(self._layers, lambda v: _power(v, damping, power))
        columns = torch.as_tensor(
            np.ascontiguousarray(rows.T), dtype=self._operator.dtype, device=self._operator.device
        )
        with torch.no_grad():
            found: NDArray[np.float64] = (self._operator @ columns).T.double().cpu().numpy()
        return found


def _power(values: torch.Tensor, damping: float, power: float) -> torch.Tensor:
    """Return (λ + d) ** power, 0 for 0 (the pseudo-inverse)."""
    damped = values.clamp(min=0) + damping
    return torch.where(damped > 0, damped, torch.inf) ** power


def _map(values: Tree, function: Callable[[torch.Tensor], torch.Tensor]) -> Tree:
    if isinstance(values, dict):
        return {name: _map(part, function) for name, part in values.items()}
    return function(values)


def _leaves(values: Tree) -> Iterator[torch.Tensor]:
    for part in values.values():
        if isinstance(part, dict):
            yield from _leaves(part)
        else:
            yield part


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Put every submodule into inference mode, and back; and torch's random state, too."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _operator(
    engine: "TorchEngine", loss_fn: LossFunction, source: Source, samples: int, seed: int, empirical: bool
) -> "EKFACLinearOperator":
    try:
        from curvlinops import EKFACLinearOperator, FisherType
    except ImportError:
        raise Unsupported(str(missing("curvlinops", "gradindex[curvature]"))) from None
    weights = dict(engine.model.named_parameters())
    names = [parameter.name for parameter in engine.parameters]
    for name in names:
        layer = engine.model.get_submodule(name.rpartition(".")[0])
        if type(layer) not in (nn.Linear, nn.Conv2d) or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
            raise Unsupported(f"parameter {name!r} belongs to a {type(layer).__name__}")
    drawn = samples > 0 and not empirical
    try:
        return EKFACLinearOperator(
            engine.model,
            _loss(loss_fn),
            [weights[name] for name in names],
            _Batches(engine, source),
            check_deterministic=False,
            seed=seed,
            fisher_type=FisherType.EMPIRICAL if empirical else FisherType.MC if drawn else FisherType.TYPE2,
            mc_samples=samples if drawn else 1,
            separate_weight_and_bias=False,
            num_data=len(source),
            num_per_example_loss_terms=1,
        )
    except (NotImplementedError, ValueError) as error:
        raise Unsupported(str(error)) from error


def _loss(loss_fn: object) -> nn.Module:
    """Return a loss as the module with reduction 'mean' that curvlinops knows."""
    if loss_fn in _LOSSES:
        return _LOSSES[loss_fn]()
    if type(loss_fn) in _LOSSES.values():
        plain = type(loss_fn)()
        # The loss of one sample of cross-entropy is the same with any reduction.
        ignored = {"training", "reduction"} if isinstance(plain, nn.CrossEntropyLoss) else {"training"}
        kept = {name: value for name, value in vars(loss_fn).items() if name not in ignored}
        if all(_same(value, getattr(plain, name, None)) for name, value in kept.items()):
            return plain
    raise Unsupported(f"the loss is {getattr(loss_fn, '__name__', loss_fn)}")


def _same(one: Tree, other: Tree) -> bool:
    return one is other or (not isinstance(one, torch.Tensor) and bool(one == other))


class _Batches:
    """The samples as pairs of tensors, as often as they are asked for."""

    def __init__(self, engine: "TorchEngine", source: Source) -> None:
        self._engine, self._source = engine, source

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._source.blocks(_BATCH):
            x, y = self._engine._tensors(batch.x), self._engine._targets(batch.y)
            if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
                raise Unsupported("inputs or labels are not one tensor")
            yield x, y
