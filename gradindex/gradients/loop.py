"""The oracle: one sample, one backward pass. Slow and obviously right; every faster path is tested against it."""

from typing import TYPE_CHECKING

import numpy as np

from gradindex.data.source import Tree, length, take_rows
from gradindex.gradients.results import PerSample

if TYPE_CHECKING:
    from gradindex.gradients.engine import Engine


def gradients(engine: "Engine", x: Tree, y: Tree) -> PerSample:
    """Return per-sample gradients (b, P), losses and outputs of a batch, one sample at a time."""
    rows = [slice(i, i + 1) for i in range(length(x))]
    parts = [engine.sample_gradient(take_rows(x, row), None if y is None else take_rows(y, row)) for row in rows]
    outputs = [part.outputs for part in parts]
    whole = all(out is not None and out.shape == outputs[0].shape for out in outputs)  # type: ignore[union-attr]
    if not parts:
        return PerSample(np.empty((0, engine.size), engine.dtype), np.empty(0, engine.dtype), None)
    return PerSample(
        np.concatenate([part.gradients for part in parts]),
        np.concatenate([part.losses for part in parts]),
        np.concatenate(outputs) if whole else None,  # type: ignore[arg-type]
    )
