"""⟨q, g_i⟩ by differentiating twice, where an operation has no forward mode.

With v (b,) the weights of the samples' losses ℓ, G(v) = ∇θ Σ_i v_i ℓ_i is linear in v, and the derivative of
⟨q, G(v)⟩ in v_i is ⟨q, ∇θ ℓ_i⟩: two backward passes for a whole batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradindex.data.source import Tree
from gradindex.gradients.engine import Engine, PathFailed
from gradindex.gradients.parameter import Floats

Along = Callable[[Tree, Tree, Floats], tuple[Floats, Floats]]


def directional(engine: Engine, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
    """Return ⟨direction, g_i⟩ (b,) for a direction (P,) and the losses (b,); see `Engine.directional`.

    Raises
    ------
    PathFailed
        If the engine is none of a framework's own.
    """
    if not hasattr(engine, "_sample_losses"):
        raise PathFailed(f"{type(engine).__name__} has no double backward")
    return (_torch if engine.backend == "torch" else _tensorflow)(engine, x, y, direction)


def _torch(engine: Any, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
    import torch

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


def _tensorflow(engine: Any, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
    import tensorflow as tf

    from gradindex.gradients.tensorflow.state import stateless

    with engine._on_device():
        inputs, targets = engine._ready(x, y)
        engine._looks.refuse("double backward")
        weights = [tf.convert_to_tensor(variable.value) for variable in engine._variables]
        flat = tf.convert_to_tensor(np.asarray(direction, engine.dtype))
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(weights)
                with stateless(engine.model, dict(zip(map(id, engine._variables), weights, strict=True))):
                    losses = engine._sample_losses(engine._run(inputs), targets)
                each = tf.zeros_like(losses)
                outer.watch(each)
                weighted = tf.reduce_sum(each * losses)
            gradients = inner.gradient(weighted, weights)
            total = tf.add_n(
                [
                    tf.reduce_sum(tf.cast(tf.reshape(gradient, [-1]), flat.dtype) * flat[place])
                    for gradient, (_, place) in zip(gradients, engine.slices(), strict=True)
                    if gradient is not None
                ]
            )
        dots = outer.gradient(total, each)
        return dots.numpy(), losses.numpy()
