"""Which path each parameter's gradient takes: factored, else batched, else the loop (the oracle's). Never silently."""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Tree, length, take_rows
from gradindex.gradients import loop
from gradindex.gradients.parameter import Floats
from gradindex.gradients.results import PerSample
from gradindex.gradients.signals import FACTORED, VMAP
from gradindex.runtime.log import log

if TYPE_CHECKING:
    from gradindex.gradients.engine import Engine

LOOP = "loop"
SAMPLES = 8  # compared with the oracle, where their gradients fit the memory; more than one, as models may mix samples
_KNOWN = 3  # samples whose loss is taken with outputs that are zeros
_MEMORY = 1 << 30  # bytes of the gradients that are compared
# Relative errors. A unit within rounding of ReLU's kink may go either way: so one sample in a few may be off by more.
ALL, ONE = 1e-3, 5e-2
_HALF_ALL, _HALF_ONE = 5e-2, 1e-1  # of models in half precision
ROUNDING = 2.0**-23
"""What numbers of order one leave when they cancel: twice the unit of single precision."""


def tolerances(engine: "Engine") -> tuple[float, float]:
    """Return what gradients may be off relative to their length: all of them, and one in a few."""
    return (_HALF_ALL, _HALF_ONE) if engine.is_half else (ALL, ONE)


def agree(errors: NDArray[np.float64], engine: "Engine", least: int = 1) -> bool:
    """Whether relative errors (n,) of the gradients of some samples are those of rounding.

    All but one in sixteen (`least` at least, if there are three or more) are small, and none is large.
    """
    every, one = tolerances(engine)
    excused = max(least, len(errors) // 16) if len(errors) > 2 else 0
    return bool((errors > every).sum() <= excused and (errors <= one).all())


def loss_unit(engine: "Engine", x: Tree, y: Tree) -> float:
    """Return the loss of a model that says nothing, whose outputs are zeros, if that is below 1; else 1.

    Beside it a loss is small, whatever the user multiplies the loss by.
    """
    found = []
    for begin in range(min(_KNOWN, length(x))):
        row = slice(begin, begin + 1)
        try:
            found.append(abs(engine.loss_at_zero(take_rows(x, row), None if y is None else take_rows(y, row))))
        except Exception as error:  # a loss that is not defined there
            log.debug("the loss of outputs that are zeros cannot be told: %s", error)
    return min(1.0, max((loss for loss in found if 0 < loss < math.inf), default=1.0))


def allowance(norm: float, largest: float, loss: float, unit: float = 1.0) -> float:
    """Return what rounding alone may do to a gradient, relative to its norm, in single precision.

    Where numbers of order one cancel (p − 1 of a softmax that is sure), what is left has their rounding: that of the
    largest gradients, which do not cancel, beside this one's norm; or, in a model that is sure of all samples, that
    of a loss of one `unit` (see `loss_unit`) beside one of nearly 0. See `gradindex.gradients.in_double`.
    """
    small = abs(loss) / unit
    share = max(largest / norm, 1 / max(small, 1e-30) if small < 1e-3 else 0.0)
    return ROUNDING * share


def choose(engine: "Engine", x: Tree, y: Tree) -> dict[str, str]:
    """Return the path of each parameter, found by comparing each rung with the oracle on the first samples.

    Warns of parameters that the loss does not depend on, and of what is not as the oracle says and therefore
    takes the next rung. What does not run at all is logged.
    """
    most = int(np.clip(_MEMORY // (3 * engine.size * engine.dtype.itemsize), 2, SAMPLES))
    head = slice(0, min(most, length(x)))
    x, y = take_rows(x, head), None if y is None else take_rows(y, head)
    if "undecided" in engine.paths.values():
        _warn_of_unused(engine, x, y)
    truth = loop.gradients(engine, x, y)
    blocked = engine.blocked
    ruled = frozenset() if FACTORED in blocked else engine.factored_names(x)
    second = LOOP if VMAP in blocked else engine.fast_path
    paths = {p.name: FACTORED if p.name in ruled else second for p in engine.parameters}
    for path, lower in ((FACTORED, second), (engine.fast_path, LOOP)):
        names = [name for name, chosen in paths.items() if chosen == path]
        paths.update(dict.fromkeys(_wrong(engine, path, lower, x, y, names, truth), lower))
    return paths


def _wrong(
    engine: "Engine", path: str, lower: str, x: Tree, y: Tree, names: Sequence[str], truth: PerSample
) -> Sequence[str]:
    """Return which of these parameters' gradients this path does not get right."""
    if not names:
        return []
    try:
        found = engine.by(path, x, y, names)
    except Exception as error:
        log.warning("%s gradients do not work here, using the %s: %s", path, lower, error)
        return names
    wrong = _differing(engine, names, found, truth)
    if wrong:
        # What a batch of gradients misses here, a batch of products may miss for other samples.
        engine.ways.distrusted = True
        few = ", ".join(map(repr, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        warnings.warn(
            f"{path} gradients of {few} differ from the one-sample loop (does the model mix samples of a "
            f"batch?); using the {lower} for {len(wrong)} parameters, which is slower.",
            UserWarning,
            stacklevel=6,
        )
    return wrong


def _differing(engine: "Engine", names: Sequence[str], found: PerSample, truth: PerSample) -> Sequence[str]:
    every, _ = tolerances(engine)
    if not np.allclose(found.losses, truth.losses, rtol=every, atol=every, equal_nan=True):
        return names
    # Some gradients are zero but for rounding: that of attention's key bias, those of samples that a model is sure of.
    with np.errstate(invalid="ignore"):
        lengths = norms(truth.gradients)
        largest = float(np.max(lengths, where=np.isfinite(lengths), initial=0))
        sure = [
            allowance(length, largest, loss, engine.loss_unit) if length else 0.0
            for length, loss in zip(lengths, truth.losses, strict=True)
        ]
        rounding = np.maximum(1e-6, sure) * lengths
    wrong, begin, chosen = [], 0, set(names)
    for parameter, place in engine.slices():
        if parameter.name not in chosen:
            continue
        want = truth.gradients[:, place]
        got = found.gradients[:, begin : begin + parameter.size]
        begin += parameter.size
        finite = np.isfinite(want).all(axis=1)  # others are refused when their block is checked
        want, got = want[finite], got[finite]
        size = norms(want)
        error = np.maximum(norms(got - want) - rounding[finite], 0) / np.where(size > 0, size, 1e-30)
        if not agree(np.nan_to_num(error, nan=np.inf), engine):
            wrong.append(parameter.name)
    return wrong


def norms(rows: Floats) -> NDArray[np.float64]:
    """Return the norms (n,) of rows (n, P), in double precision: squares of tiny or huge numbers do not fit single."""
    found: NDArray[np.float64] = np.sqrt(np.einsum("np,np->n", rows, rows, dtype=np.float64))
    return found


def is_out_of_memory(error: Exception) -> bool:
    """Whether a framework (or Python) says that memory ran out."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}) or (
        "not enough memory" in str(error)  # torch's allocator on the CPU raises a plain RuntimeError
    )


def _warn_of_unused(engine: "Engine", x: Tree, y: Tree) -> None:
    first = slice(0, 1)
    unused = engine.unused(take_rows(x, first), None if y is None else take_rows(y, first))
    if unused:
        warnings.warn(
            f"The loss does not depend on {len(unused)} parameters: {', '.join(unused[:5])}"
            f"{', …' if len(unused) > 5 else ''}. Their gradients count as zeros.",
            UserWarning,
            stacklevel=5,
        )
