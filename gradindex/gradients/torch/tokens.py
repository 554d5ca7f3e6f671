"""Derivatives of single tokens' losses along directions of the weights, PyTorch: forward mode as far as the outputs."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jvp, vmap

from gradindex.data.source import Tree, length
from gradindex.gradients.inputs import per_token
from gradindex.gradients.parameter import Floats
from gradindex.gradients.torch.outputs import Moved, forward_mode, is_smooth, moved
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from gradindex.gradients.torch.engine import TorchEngine

_SHIFTS = 1, 0  # of a causal model, whose output at j − 1 predicts token j, and of one that is given the gaps


def token_products(
    engine: "TorchEngine", x: Tree, y: Tree, directions: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the derivative of each token's loss along directions (P,) or (n, P), and these losses (b, t)."""
    per_token(engine.loss_fn)
    inputs, targets, samples = engine._tensors(x), engine._targets(y), length(x)
    engine._look(inputs, targets)
    flat = torch.as_tensor(np.atleast_2d(directions), device=engine.device)
    with engine._inference():
        change = _along_all(engine, inputs, flat)
        products, losses = _products(
            change, lambda rows: engine._losses.tokens_of_rows(rows, change.output, targets, samples)
        )
    found: NDArray[np.float64] = products.cpu().numpy()
    each: NDArray[np.float64] = losses.detach().double().cpu().numpy()
    return (found[0] if np.ndim(directions) == 1 else found), each


def _along_all(engine: "TorchEngine", inputs: Tree, flat: Tensor) -> Moved:
    """Return how outputs change along each direction, (n, b, …); the model runs once for all that do not."""
    samples, weights = length(inputs), engine._weights()

    def rows(weights: dict[str, Tensor]) -> tuple[list[Tensor], Tree]:
        output = engine._call_batch(weights, inputs)
        return engine._losses.rows(output, samples), output

    def tangents(one: Tensor) -> dict[str, Tensor]:
        return {p.name: one[place].reshape(p.shape).to(weights[p.name].dtype) for p, place in engine.slices()}

    def change(one: Tensor) -> tuple[Tensor, ...]:
        def smooth(weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(part for part in rows(weights)[0] if is_smooth(part))

        found: tuple[Tensor, ...] = jvp(smooth, (weights,), (tangents(one),))[1]
        return found

    if len(flat) > 1:
        try:
            with forward_mode():
                changes = list(vmap(change)(flat))
            read, output = rows(weights)
            kinds = [is_smooth(part) for part in read]
            values, others = ([part for part in read if is_smooth(part) == smooth] for smooth in (True, False))
            return Moved(values, changes, kinds, others, output)
        except RuntimeError as error:  # an operation that vmap does not know
            log.info("directions are followed one by one: %s", error)
    each = [moved(rows, weights, tangents(one)) for one in flat]
    changes = [torch.stack(parts) for parts in zip(*(one.changes for one in each), strict=True)]
    return Moved(each[0].values, changes, each[0].kinds, each[0].others, each[0].output)


def _products(change: Moved, losses_of: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the derivatives (n, b, t) float64 of tokens' losses along changes of the outputs, and the losses (b, t).

    Where each token reads one place of the outputs, by the losses' derivatives there, which gradients are made of, too
    (see `gradindex.gradients.torch.outputs.along`); else forward mode goes on through the loss.
    """
    with torch.enable_grad():
        values = change.leaves()
        losses = losses_of(change.rows(values))
        slopes = _slopes(losses, values)
    if slopes is None:
        found = [
            jvp(lambda *some: losses_of(change.rows(some)), tuple(change.values), tuple(one))[1].double()
            for one in zip(*change.changes, strict=True)
        ]
        return torch.stack(found), losses
    slope, shift = slopes
    at_places = (slope.conj() * change.changes[0]).real.flatten(3).sum(3, dtype=torch.float64)
    products = torch.zeros((len(at_places), *losses.shape), dtype=torch.float64, device=losses.device)
    places = min(at_places.shape[2], losses.shape[1] - shift)
    products[:, :, shift : shift + places] = at_places[:, :, :places]
    return products, losses


def _slopes(losses: Tensor, values: list[Tensor]) -> tuple[Tensor, int] | None:
    """Return the derivatives (b, s, …) of a batch's losses at the outputs, and by how much tokens are behind places.

    None unless each token's loss is seen to depend on one place alone, j − shift: with weights that differ between
    tokens, each place's derivative changes by one of them.
    """
    if len(values) != 1 or values[0].dim() < 3:
        return None
    tokens = losses.shape[1]
    # Powers of two, which rounding leaves alone: 1 or 4 at even tokens, 2 or 8 at odd ones, so that neighbours differ.
    drawn = np.random.default_rng(0).integers(0, 2, tokens) * 2 + np.arange(tokens) % 2
    weights = torch.as_tensor(2.0**drawn, dtype=losses.dtype, device=losses.device)
    (slope,) = torch.autograd.grad(losses.sum(), values, retain_graph=True)
    (weighted,) = torch.autograd.grad((losses * weights).sum(), values)
    places = slope.shape[1]
    for shift in _SHIFTS:
        by_place = torch.zeros(places, dtype=slope.dtype, device=slope.device)
        count = max(0, min(places, tokens - shift))
        by_place[:count] = weights[shift : shift + count].to(slope.dtype)
        by_place = by_place.reshape(1, places, *[1] * (slope.dim() - 2))
        off = (weighted - by_place * slope).abs().flatten(2).amax(2)
        if (off <= 1e-3 * slope.abs().flatten(2).amax(2)).all():
            return slope, shift
    return None
