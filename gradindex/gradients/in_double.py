"""Losses in double precision, and how far rounding may still turn a gradient then.

The gradient of a cross-entropy at the model's outputs is p − y. For a sample that the model is sure of, p and y nearly
cancel, and what single precision leaves of the difference is mostly rounding. Computed in double precision from the
same outputs, it is as right as the outputs are, whatever its size.
"""

import copy
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import LossFunction, Tensor
from gradindex.data.source import Tree, take_rows
from gradindex.data.text import TokenLoss
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from gradindex.job import Job

COLUMN = "rounding"
"""Name of the column that says how far each row's direction may be off."""
_FORWARD = 2.0**-20  # error of an output over the sample's largest one: eight times what passes were seen to differ by
_DRAWS = 3
_AT_ONCE = 1 << 20  # numbers of outputs moved at once: a language model has many
_SAFETY = 2.0
_ROUNDS = 2.0**-24 / 0.05  # a number near 1 is off by up to 2⁻²⁴: 5 % of this


class InDouble:
    """A loss that is evaluated in double precision, from the outputs of a model in single precision.

    Gradients of samples that the model is sure of are then right to about 1e-5 instead of being mostly rounding, and
    certified answers need not evaluate all of them (`Landmark`, ``certify=True``). They differ from those of the same
    loss in single precision by what those are wrong. Give it the logits: a softmax inside the model has cancelled
    already, and so has a loss that a Hugging Face model computes itself.

    Parameters
    ----------
    loss_fn
        ``loss_fn(output, y)`` for torch, ``loss_fn(y, output)`` for Keras. A torch module and a Keras loss are copied
        and their own numbers, such as class weights, made double.

    Examples
    --------
    >>> job = gradindex.Job(model, gradindex.InDouble(torch.nn.CrossEntropyLoss()), (x, y))  # doctest: +SKIP
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}.")
        self.loss_fn = _made_double(loss_fn)
        if isinstance(self.loss_fn, TokenLoss):
            self.per_token = partial(_tokens_in_double, self.loss_fn)

    def __call__(self, first: Tree, second: Tree) -> Tensor:
        """Return the loss, in double precision; arguments as the loss itself takes them."""
        return self.loss_fn(_double(first), _double(second))


def _tokens_in_double(loss: TokenLoss, first: Tree, second: Tree) -> Tensor:
    return loss.per_token(_double(first), _double(second))


def is_double(engine: Engine) -> bool:
    """Whether an engine's loss is evaluated in double precision from outputs in single."""
    return isinstance(getattr(engine, "loss_fn", None), InDouble)


def directions(engine: Engine, outputs: Floats | None, y: Tree) -> NDArray[np.float32] | None:
    """Return how far rounding may turn the gradients of some samples, relative to their norms (b,).

    Outputs (b, …) are taken to be right to 2⁻²⁰ of a sample's largest one. Moved by that much with signs drawn at
    random, they move the loss's derivative by some share of itself: twice the largest of three. NaN where outputs look
    like those of a softmax, a sigmoid or a tanh, or their logarithms, behind which the loss cannot see; None if the
    loss is not `InDouble`, or sees more than one array.
    """
    if not is_double(engine) or not engine.plain_outputs or outputs is None or not len(outputs):
        return None
    size = max(1, _AT_ONCE // outputs[0].size)
    parts = [slice(at, at + size) for at in range(0, len(outputs), size)]
    return np.concatenate([_turned(engine, outputs[some], None if y is None else take_rows(y, some)) for some in parts])


def _turned(engine: Engine, outputs: Floats, y: Tree) -> NDArray[np.float32]:
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    size = np.abs(flat).max(axis=1, keepdims=True)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_DRAWS, flat.shape[1]))
    moved = np.concatenate([flat, *(flat + _FORWARD * size * each for each in signs)]).astype(outputs.dtype)
    rows = np.tile(np.arange(len(flat)), 1 + _DRAWS)
    found = engine.output_gradients(moved.reshape(-1, *outputs.shape[1:]), None if y is None else take_rows(y, rows))
    here, *there = found.reshape(1 + _DRAWS, len(flat), -1).astype(np.float64)
    change = np.max([np.linalg.norm(one - here, axis=1) for one in there], axis=0)
    length = np.linalg.norm(here, axis=1)
    share = np.divide(change, length, out=np.where(change > 0, np.inf, 0.0), where=length > 0)
    hidden = (size[:, 0] <= 1) | (flat <= 0).all(axis=1)
    return np.where(hidden, np.nan, _SAFETY * share).astype(np.float32)


def share_rounded(job: "Job", losses: NDArray[np.generic], batch_size: int) -> float:
    """Return the share of samples whose gradients are off by more than 5 % because the loss is single precision.

    Of the first 256 samples of a job, the loss's derivative at their outputs is compared with that of the same loss in
    double precision; outputs of a softmax are off where 1 − p is that near the rounding of p. Looked at only if 5 % of
    the `losses` (n,) are below 1e-6, where cross-entropies round so much; 0 for others, for rows that are no gradients
    of one model, outputs that are objects, `InDouble`, and a loss that fails in double.
    """
    engine = job.engine
    plain = job.metric is None and job.checkpoints is None and engine.dtype == np.float32 and engine.plain_outputs
    if is_double(engine) or not plain or not len(losses) or np.mean(np.abs(losses) < 1e-6) < 0.05:
        return 0.0
    off = []
    try:
        exact = replace(job, loss_fn=InDouble(job.loss_fn)).engine
        for batch in job.source.blocks(batch_size, 0, min(len(losses), 256)):
            outputs = engine.outputs(batch.x)
            if _is_softmax(outputs):
                off.append((1 - outputs.max(axis=-1) < _ROUNDS).reshape(len(outputs), -1).all(axis=1))
                continue
            single, double = (
                one.output_gradients(outputs, batch.y).reshape(len(outputs), -1).astype(np.float64)
                for one in (engine, exact)
            )
            off.append(np.linalg.norm(single - double, axis=1) > 0.05 * np.linalg.norm(double, axis=1))
    except Exception as error:  # the loss is the user's, and this is a remark only
        log.debug("whether gradients are rounding cannot be told: %s", error)
        return 0.0
    return float(np.mean(np.concatenate(off)))


def _is_softmax(outputs: Floats) -> bool:
    return outputs.shape[-1] > 1 and bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=-1), 1, atol=1e-4))


def _made_double(loss_fn: LossFunction) -> LossFunction:
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if torch is not None and isinstance(loss_fn, torch.nn.Module):
        double: LossFunction = copy.deepcopy(loss_fn).double()
        return double
    if keras is not None and isinstance(loss_fn, keras.losses.Loss):
        found: Any = copy.copy(loss_fn)
        found._dtype_policy = keras.dtype_policies.get("float64")  # not all of Keras's losses have it in their config
        found._dtype = "float64"
        loss_fn = found
    return loss_fn


def _double(value: Tree) -> Tree:
    """Return outputs or labels with floating tensors in double precision."""
    if (tensorflow := sys.modules.get("tensorflow")) is not None:
        from gradindex.gradients.tensorflow import outputs as tensorflow_outputs

        if any(tensorflow.is_tensor(part) for part in tensorflow.nest.flatten(value)):
            return tensorflow_outputs.in_double(value)
    if "torch" in sys.modules:
        from gradindex.gradients.torch import outputs as torch_outputs

        return torch_outputs.map_tensors(lambda one: one.double() if one.is_floating_point() else one, value)
    return value
