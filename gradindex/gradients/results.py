"""What an engine says of a batch: gradients or embeddings, losses, outputs; and several batches as one."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradindex.gradients.parameter import Floats

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PerSample:
    """Per-sample results of one batch of b samples.

    `gradients` (b, P), `losses` (b,), `outputs` (b, …) of the model in inference mode (None where the model's
    output is not one array).
    """

    gradients: Floats
    losses: Floats
    outputs: Floats | None


@dataclass(frozen=True)
class Embedded:
    """Per-sample embeddings of one batch of b samples.

    `sketches` (b, k) float32, not normalised; `norms` (b,) float64, exact ‖g‖ of the unprojected gradients;
    `losses` (b,) and `outputs` (b, …) as in `PerSample`.
    """

    sketches: NDArray[np.float32]
    norms: NDArray[np.float64]
    losses: Floats
    outputs: Floats | None


def joined(parts: Sequence[tuple[NDArray[np.intp], _Result]]) -> _Result:
    """Return dataclasses of arrays (b, …), each given with the places of its rows, as one.

    What differs in shape after the first axis, as the outputs for texts of several lengths may, becomes None.
    """
    kind: Any = type(parts[0][1])
    found: _Result = kind(**{field.name: _join(field.name, parts) for field in fields(kind)})
    return found


def _join(name: str, parts: Sequence[tuple[NDArray[np.intp], Any]]) -> NDArray[Any] | None:
    values: list[Any] = [getattr(part, name) for _, part in parts]
    if any(value is None for value in values) or len({value.shape[1:] for value in values}) > 1:
        return None
    whole = np.empty((sum(len(rows) for rows, _ in parts), *values[0].shape[1:]), values[0].dtype)
    for (rows, _), value in zip(parts, values, strict=True):
        whole[rows] = value
    return whole
