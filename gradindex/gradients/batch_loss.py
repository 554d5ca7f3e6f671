"""Whether the loss of a batch is made of its samples' losses: if not, the gradient of ONE sample has no meaning."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from gradindex.data.source import Tree, take_rows
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from gradindex.gradients.engine import Engine

_SAMPLES = 4


def of(engine: "Engine", x: Tree, y: Tree) -> Callable[[Sequence[int]], float | None]:
    """Return what gives the loss of some samples of a batch together, by their rows, for `check`.

    The model is called with one sample at a time, and once with each. The loss is None if it is no single number, or
    fails.
    """
    output = cache(lambda row: engine.output_of_one(take_rows(x, slice(row, row + 1))))

    def loss(rows: Sequence[int]) -> float | None:
        try:
            return engine.loss_of(list(map(output, rows)), None if y is None else take_rows(y, np.array(rows)))
        except Exception as error:  # outputs that cannot be joined, a loss that takes batches of one alone
            log.debug("the loss of a batch cannot be told: %s", error)
            return None

    return loss


def check_same(first: float, again: float) -> None:
    """Refuse a loss that has two values for the same output and label.

    Raises
    ------
    ValueError
        If they differ by more than rounding.
    """
    if not np.isclose(first, again, rtol=1e-4, atol=0, equal_nan=True):
        raise ValueError(
            f"The loss of one sample is {first:.6g} at first, then {again:.6g}: it draws random numbers, or remembers "
            "what it saw, so its gradients are others each time. Leave noise and dropout out of it (in torch "
            "loss_fn.eval()), and keep what it remembers in variables or attributes of the loss, which are put back."
        )


def check(loss_of: Callable[[Sequence[int]], float | None], samples: int, tolerance: float = 1e-3) -> None:
    """Refuse a loss that compares samples with each other, such as a contrastive one.

    The losses of pairs are compared with those of their samples. They may be a sum or a mean of these, up to a constant
    (a penalty on the weights), or lie between them (a mean with weights, such as the numbers of tokens). Or a pair's
    loss is a part for each of its samples, whatever they are alone (a sum of one term and the mean of another).

    Parameters
    ----------
    loss_of
        Returns the loss of some samples as one batch; None if it gives no single number, or fails.
    samples
        How many there are to try.
    tolerance
        What rounding may do to a loss, relative to the largest.

    Raises
    ------
    ValueError
        If the loss of pairs is neither.
    """
    alone = []
    for i in range(min(samples, _SAMPLES)):
        first, again = loss_of([i]), loss_of([i])  # at once: it may read what hooks keep of the model's last call
        if first is not None and again is not None:
            check_same(first, again)
        alone.append(first)
    if len(alone) < 3 or any(loss is None or not np.isfinite(loss) for loss in alone):
        return
    pairs = list(combinations(range(len(alone)), 2))
    together = [loss_of(pair) for pair in pairs]
    if any(loss is None or not np.isfinite(loss) for loss in together):
        return
    single, both = np.array(alone, np.float64), np.array(together, np.float64)
    ones = np.array([[single[a], single[b]] for a, b in pairs])
    room = tolerance * max(np.abs(single).max(), np.abs(both).max())
    between = ((both >= ones.min(axis=1) - room) & (both <= ones.max(axis=1) + room)).all()
    constant = min(float(np.ptp(both - made)) for made in (ones.sum(axis=1), ones.mean(axis=1)))
    # The pairs (0, 1), (0, 2), (0, 3) and their counterparts (2, 3), (1, 3), (1, 2): parts of samples add up alike.
    parts = len(alone) == _SAMPLES and float(np.ptp(both[:3] + both[:2:-1])) <= room
    if not between and not parts and constant > room:
        (a, b), value = pairs[0], both[0]
        raise ValueError(
            f"The loss of a batch is not made of the losses of its samples: the first two have {value:.4g} "
            f"together, alone {single[a]:.4g} and {single[b]:.4g}. Does it compare samples with each other (a "
            "contrastive loss, a correlation)? The gradient of ONE sample has no meaning then. Give a loss of one "
            "sample, such as one that compares it with a fixed set of others."
        )
