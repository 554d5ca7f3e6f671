"""Second derivatives, PyTorch: the Hessian's products with vectors, and ⟨q, g_i⟩ by differentiating twice."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad, jvp, vmap

from gradindex.data.source import Tree
from gradindex.gradients.parameter import Floats

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
