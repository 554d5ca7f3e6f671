"""Adam's preconditioner: the factor of every coordinate of the gradient in a step, read from an optimiser.

A step of Adam moves a weight by −η m̂ / (√v̂ + ε). With the moments as they are, a sample's own part of it is its
gradient times 1/(√v̂ + ε), so the loss of z changes by −η ⟨g(x), g(z) / (√v̂ + ε)⟩ to first order. LESS (Xia et al.
2024, https://arxiv.org/abs/2402.04333) also puts the sample's gradient into both moments; that is not linear in it,
so no inner product, and left out here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Model, Optimizer
from gradindex.gradients import backend_of
from gradindex.words import Backend

Floats = NDArray[np.float32]


def read_preconditioner(model: Model, optimizer: Optimizer) -> list[Floats]:
    """Return 1/(√v̂ + ε) for each trainable parameter of a model, in its order and shape; 0 where v̂ is 0.

    A coordinate that no gradient has reached has no second moment yet, and would have an arbitrary weight.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` or a Keras model.
    optimizer
        Its Adam or AdamW (torch: also under Accelerate; Keras: ``model.optimizer``), after at least one step.

    Raises
    ------
    TypeError
        If the optimiser keeps no second moment.
    ValueError
        If it has made no step yet.
    """
    return _of_torch(model, optimizer) if backend_of(model) is Backend.TORCH else _of_keras(model, optimizer)


def check_preconditioner(given: Any, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    """Return preconditioners as float32 arrays, after comparing them with the trainable parameters' shapes.

    Raises
    ------
    ValueError
        If they are of other shapes, negative, or not finite.
    """
    arrays = [np.asarray(one, np.float32) for one in given]
    if [array.shape for array in arrays] != list(shapes):
        found = [array.shape for array in arrays]
        raise ValueError(f"its preconditioner has shapes {found}, the trainable parameters {list(shapes)}")
    if any(not np.isfinite(array).all() or (array < 0).any() for array in arrays):
        raise ValueError("its preconditioner holds negative numbers, NaN or infinity")
    return arrays


def trainable_shapes(model: Model) -> list[tuple[int, ...]]:
    """Return the shapes of a model's trainable parameters in its order."""
    if backend_of(model) is Backend.TORCH:
        return [tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad]
    return [tuple(variable.shape) for variable in model.trainable_variables]


def _of_torch(model: Model, optimizer: Optimizer) -> list[Floats]:
    """Follow ``torch.optim.Adam``: v̂ = v / (1 − β₂ᵗ), with AMSGrad its running maximum."""
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state, group = optimizer.state.get(parameter, {}), options.get(id(parameter), {})
        if group and not {"betas", "eps"} <= group.keys():
            raise TypeError(f"{type(optimizer).__name__} keeps no second moment: expected Adam or AdamW.")
        if not state:  # no gradient has ever reached it
            found.append(np.zeros(tuple(parameter.shape), np.float32))
            continue
        second = state.get("max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
        if second is None:
            raise TypeError(f"{type(optimizer).__name__} keeps no second moment of {name}: expected Adam or AdamW.")
        share = 1 - group["betas"][1] ** float(state["step"])
        found.append(_inverse(second.detach().float().cpu().numpy() / share, group["eps"]))
    if not any(array.any() for array in found):
        raise ValueError("The optimiser has made no step yet: record after one.")
    return found


def _of_keras(model: Model, optimizer: Optimizer) -> list[Floats]:
    """Follow ``keras.optimizers.Adam``, whose ε is added to √v before the correction by √(1 − β₂ᵗ)."""
    if not {"beta_2", "amsgrad"} <= vars(optimizer).keys():
        raise TypeError(f"{type(optimizer).__name__} keeps no second moment: expected Adam or AdamW.")
    steps = int(optimizer.iterations.numpy())
    if steps == 0:
        raise ValueError("The optimiser has made no step yet: record after one.")
    velocities = optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities
    by_path = {v.path: s.numpy() for v, s in zip(optimizer._trainable_variables, velocities, strict=True)}
    share = 1 - optimizer.beta_2**steps
    return [
        _inverse(by_path[v.path] / share, optimizer.epsilon / share**0.5)
        if v.path in by_path
        else np.zeros(tuple(v.shape), np.float32)
        for v in model.trainable_variables
    ]


def _inverse(second: NDArray[Any], epsilon: float) -> Floats:
    """Return 1/(√v̂ + ε), 0 where v̂ is 0."""
    found = np.zeros(second.shape, np.float32)
    np.divide(1, np.sqrt(second) + epsilon, out=found, where=second > 0, casting="same_kind")
    return found
