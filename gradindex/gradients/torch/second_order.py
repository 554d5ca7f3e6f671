"""Second derivatives, PyTorch: products with the Hessian and the Gauss-Newton matrix, and ⟨q, g_i⟩."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad, jvp, vjp, vmap

from gradindex.data.source import Tree, length
from gradindex.gradients.parameter import Floats
from gradindex.gradients.torch.outputs import is_smooth

if TYPE_CHECKING:
    from gradindex.gradients.torch.engine import TorchEngine


def directional_twice(engine: "TorchEngine", x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
    """Return ⟨direction, g_i⟩ (b,) and losses (b,) by two backward passes over the batch."""
    inputs, targets = engine._tensors(x), engine._targets(y)
    engine._look(inputs, targets)
    with engine._inference(), torch.enable_grad():
        weights = {name: value.requires_grad_() for name, value in engine._weights().items()}
        losses = engine._sample_losses(weights, inputs, targets)
        each = torch.zeros_like(losses, requires_grad=True)
        gradients = torch.autograd.grad(losses, list(weights.values()), each, create_graph=True, allow_unused=True)
        flat = torch.as_tensor(direction, device=engine.device)
        total = sum(
            (gradient.flatten() * flat[place]).sum()
            for gradient, (_, place) in zip(gradients, engine.slices(), strict=True)
            if gradient is not None
        )
        (dots,) = torch.autograd.grad(total, each)
    return dots.detach().cpu().numpy(), losses.detach().cpu().numpy()


def hessian_product(engine: "TorchEngine", x: Tree, y: Tree, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the products of vectors (k, P) with the Hessian of the batch's summed loss: forward over reverse mode."""
    vectors = torch.as_tensor(rows.astype(engine.dtype), device=engine.device)
    inputs, targets = engine._tensors(x), engine._targets(y)
    engine._look(inputs, targets)
    with engine._inference(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own
        weights = engine._weights()

        def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return engine._sample_losses(values, inputs, targets).sum()

        def one(vector: torch.Tensor) -> torch.Tensor:
            tangents = {
                p.name: vector[place].reshape(p.shape).to(weights[p.name].dtype) for p, place in engine.slices()
            }
            _, change = jvp(grad(loss), (weights,), (tangents,))
            return torch.cat([change[p.name].flatten() for p in engine.parameters])

        found: NDArray[np.float64] = vmap(one)(vectors).double().cpu().numpy()
        return found


def gauss_newton_product(engine: "TorchEngine", x: Tree, y: Tree, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the products of vectors (k, P) with the Gauss-Newton matrix of the batch's summed loss: Jᵀ H J v."""
    vectors = torch.as_tensor(rows.astype(engine.dtype), device=engine.device)
    inputs, targets, samples = engine._tensors(x), engine._targets(y), length(x)
    engine._look(inputs, targets)
    with engine._inference(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own
        weights = engine._weights()
        output = engine._call_batch(weights, inputs)
        read = engine._losses.rows(output, samples)
        kinds = [is_smooth(part) for part in read]
        values = tuple(part for part in read if is_smooth(part))

        def outputs(weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            found = engine._losses.rows(engine._call_batch(weights, inputs), samples)
            return tuple(part for part in found if is_smooth(part))

        def loss(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
            left, others = iter(values), iter([part for part in read if not is_smooth(part)])
            parts = [next(left if kind else others) for kind in kinds]
            return engine._losses.of_rows(parts, output, targets, samples).sum()

        _, back = vjp(outputs, weights)

        def one(vector: torch.Tensor) -> torch.Tensor:
            tangents = {
                p.name: vector[place].reshape(p.shape).to(weights[p.name].dtype) for p, place in engine.slices()
            }
            _, change = jvp(outputs, (weights,), (tangents,))
            _, bent = jvp(grad(loss), (values,), (change,))
            (found,) = back(bent)
            return torch.cat([found[p.name].flatten() for p in engine.parameters])

        product: NDArray[np.float64] = vmap(one)(vectors).double().cpu().numpy()
        return product
