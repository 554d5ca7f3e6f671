"""Results of several batches as those of one."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Result = TypeVar("_Result")


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
