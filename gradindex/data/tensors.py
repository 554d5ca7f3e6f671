"""Arrays and tensors of any framework, by their type; no framework is imported to find out."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Leaf


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch or TensorFlow tensor (neither package is imported to find out)."""
    tensorflow = sys.modules.get("tensorflow")
    return is_torch(value) or (tensorflow is not None and tensorflow.is_tensor(value))


def is_torch(value: object) -> bool:
    """Whether `value` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_numpy(value: Leaf) -> Leaf:
    """Return a tensor as an array, half precision as single; lists entry by entry, anything else as it is."""
    if is_torch(value):
        value = value.detach().cpu()
        return (value.float() if value.dtype.is_floating_point and value.dtype.itemsize < 4 else value).numpy()
    if isinstance(value, list):
        return [as_numpy(item) for item in value]
    return value.numpy() if is_tensor(value) else value


def like(array: NDArray[np.generic], example: Leaf) -> Leaf:
    """Return an array as what `example` is: a torch tensor of its type, or the array itself."""
    return sys.modules["torch"].from_numpy(array).to(example.dtype) if is_torch(example) else array


def take(leaf: Leaf, rows: slice | NDArray[Any]) -> Leaf:
    """Return the given rows of an array or a tensor."""
    if is_tensor(leaf) and not isinstance(rows, slice):
        return leaf[sys.modules["torch"].as_tensor(rows)]
    return leaf[rows]


def concatenate(parts: list[Leaf]) -> Leaf:
    """Return arrays or tensors of one shape one behind the other: tensors of one device as a tensor, else an array."""
    if all(is_tensor(part) for part in parts) and len({part.device for part in parts}) == 1:
        return sys.modules["torch"].cat(parts)
    return np.concatenate([as_numpy(part) for part in parts])


def are_finite(values: Leaf) -> NDArray[np.bool_]:
    """Return for each entry (n, …) of an array or a torch tensor whether all its numbers are finite, (n,)."""
    if is_tensor(values):
        if not values.is_floating_point():
            return np.ones(values.shape[:1], bool)
        torch = sys.modules["torch"]
        good = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
        found: NDArray[np.bool_] = good.cpu().numpy()
        return found
    if values.dtype.kind not in "fc":
        return np.ones(values.shape[:1], bool)
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
