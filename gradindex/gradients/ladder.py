"""Which path each parameter's gradient takes: factored, else batched, else the loop. Never silently."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradindex.batches import Tree, index, length
from gradindex.gradients import loop

if TYPE_CHECKING:
    from gradindex.gradients.base import Engine, PerSample

FACTORED, LOOP = "factored", "loop"
_SAMPLES = 3  # compared with the loop; more than one, so that a model that mixes samples is found out
# Relative errors. A unit within rounding of ReLU's kink may go either way: one sample is allowed more than all.
_ALL, _ONE = 1e-3, 5e-2


def choose(engine: "Engine", x: Tree, y: Tree) -> dict[str, str]:
    """Return the path of each parameter, found by comparing each rung with the loop on the first samples.

    Warns of parameters that the loss does not depend on, and of what is not as the loop says and therefore
    takes the next rung. What does not run at all is logged.
    """
    head = slice(0, min(_SAMPLES, length(x)))
    x, y = index(x, head), None if y is None else index(y, head)
    if "undecided" in engine.paths.values():
        _warn_of_unused(engine, x, y)
    truth = loop.gradients(engine, x, y)
    ruled = engine.factored_names(x)
    paths = {p.name: FACTORED if p.name in ruled else engine.fast_path for p in engine.parameters}
    for path, lower in ((FACTORED, engine.fast_path), (engine.fast_path, LOOP)):
        names = [name for name, chosen in paths.items() if chosen == path]
        paths.update(dict.fromkeys(_wrong(engine, path, lower, x, y, names, truth), lower))
    return paths


def _wrong(
    engine: "Engine", path: str, lower: str, x: Tree, y: Tree, names: Sequence[str], truth: "PerSample"
) -> Sequence[str]:
    """Return which of these parameters' gradients this path does not get right."""
    from gradindex.gradients.base import log

    if not names:
        return []
    try:
        found = engine.by(path, x, y, names)
    except Exception as error:
        log.warning("%s gradients do not work here, using the %s: %s", path, lower, error)
        return names
    wrong = _differing(engine, names, found, truth)
    if wrong:
        few = ", ".join(map(repr, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        warnings.warn(
            f"{path} gradients of {few} differ from the one-sample loop (does the model mix samples of a "
            f"batch?); using the {lower} for {len(wrong)} parameters, which is slower.",
            UserWarning,
            stacklevel=6,
        )
    return wrong


def _differing(engine: "Engine", names: Sequence[str], found: "PerSample", truth: "PerSample") -> Sequence[str]:
    allowed_all, allowed_one = (_ONE, 2 * _ONE) if engine.is_half else (_ALL, _ONE)
    if not np.allclose(found.losses, truth.losses, rtol=allowed_all, atol=allowed_all, equal_nan=True):
        return names
    # Some gradients are zero but for rounding, such as that of attention's key bias.
    rounding = 1e-6 * np.linalg.norm(truth.gradients, axis=1)
    wrong, begin, chosen = [], 0, set(names)
    for parameter, place in engine.slices():
        if parameter.name not in chosen:
            continue
        want = truth.gradients[:, place]
        got = found.gradients[:, begin : begin + parameter.size]
        begin += parameter.size
        size = np.linalg.norm(want, axis=1)
        error = np.maximum(np.linalg.norm(got - want, axis=1) - rounding, 0) / np.where(size > 0, size, 1e-30)
        near = error.max() <= allowed_one and error.min() <= allowed_all
        if np.isfinite(want).all() and not near:
            wrong.append(parameter.name)
    return wrong


def is_out_of_memory(error: Exception) -> bool:
    """Whether a framework (or Python) says that memory ran out."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}) or (
        "not enough memory" in str(error)  # torch's allocator on the CPU raises a plain RuntimeError
    )


def _warn_of_unused(engine: "Engine", x: Tree, y: Tree) -> None:
    first = slice(0, 1)
    unused = engine.unused(index(x, first), None if y is None else index(y, first))
    if unused:
        warnings.warn(
            f"The loss does not depend on {len(unused)} parameters: {', '.join(unused[:5])}"
            f"{', …' if len(unused) > 5 else ''}. Their gradients count as zeros.",
            UserWarning,
            stacklevel=5,
        )
