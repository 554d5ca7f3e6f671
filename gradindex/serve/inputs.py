"""Raw inputs of a request, JSON, in the form of the training samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data import tensors
from gradindex.data.labels import as_array
from gradindex.data.source import Tree, is_ragged


class BadInput(ValueError):
    """What a request holds cannot be a query; the message says what was expected."""


def parse_inputs(samples: list[Any], example: Tree, name: str = "inputs") -> Tree:
    """Return m samples as a tree like the training inputs `example`.

    Parameters
    ----------
    samples
        One entry a sample: nested lists of numbers for an array, a string or anything else for an object, an object
        by part for inputs that are dicts, a list by part for tuples.
    example
        Some training inputs.
    name
        What errors call it.

    Raises
    ------
    BadInput
        If a sample has another form, shape or type, or holds NaN or infinity.
    """
    if isinstance(example, dict):
        for sample in samples:
            if not isinstance(sample, dict) or set(sample) != set(map(str, example)):
                raise BadInput(f"{name}: expected an object with {', '.join(map(str, example))} for every sample.")
        return {
            key: parse_inputs([s[str(key)] for s in samples], part, f"{name}.{key}") for key, part in example.items()
        }
    if isinstance(example, tuple):
        for sample in samples:
            if not isinstance(sample, list) or len(sample) != len(example):
                raise BadInput(f"{name}: expected a list of {len(example)} parts for every sample.")
        parts = enumerate(example)
        return tuple(parse_inputs([s[i] for s in samples], part, f"{name}[{i}]") for i, part in parts)
    if is_ragged(example):
        first = as_array(example[0])
        return [_array(sample, first.dtype, name, (None, *first.shape[1:])) for sample in samples]
    if isinstance(example, list):
        wanted = type(example[0])
        if not all(isinstance(sample, wanted) for sample in samples):
            raise BadInput(f"{name}: expected a {wanted.__name__} for every sample.")
        return samples
    like = as_array(example[:1])
    arrays = np.stack([_array(sample, like.dtype, name, like.shape[1:]) for sample in samples])
    return tensors.like(arrays, example)


def parse_labels(labels: list[Any], example: Tree) -> Tree:
    """Return labels as an array like the training labels `example`; raises BadInput."""
    if example is None or isinstance(example, dict | tuple | list):
        raise BadInput("labels: the training labels are not one array, so queries cannot have them here.")
    like = as_array(example[:1])
    arrays = [_array(label, like.dtype, "labels", like.shape[1:], scalar=True) for label in labels]
    stacked = np.stack(arrays)
    return tensors.like(stacked.reshape(-1, *like.shape[1:]), example)


def _array(
    value: object, dtype: np.dtype[Any], name: str, shape: tuple[int | None, ...], scalar: bool = False
) -> NDArray[Any]:
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError, RecursionError):
        raise BadInput(f"{name}: expected numbers of shape {_shape(shape)}, got lists of unequal lengths.") from None
    if found.dtype.kind not in "biuf" or found.ndim > 16:
        raise BadInput(f"{name}: expected numbers of shape {_shape(shape)}, got something else.")
    one = scalar and found.shape == () and shape in ((), (1,))
    same = len(found.shape) == len(shape) and all(
        want in (None, got) for want, got in zip(shape, found.shape, strict=True)
    )
    if not (one or same):
        raise BadInput(f"{name}: expected numbers of shape {_shape(shape)}, got {found.shape}.")
    if not np.isfinite(found).all():
        raise BadInput(f"{name}: NaN or infinity.")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(dtype)
    if dtype.kind in "iub" and not (cast == found).all():
        raise BadInput(f"{name}: expected {dtype} numbers.")
    if not np.isfinite(cast).all():
        raise BadInput(f"{name}: a number is too large for {dtype}.")
    return cast


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def concatenate(trees: list[Tree]) -> Tree:
    """Return the samples of several such trees, in order."""
    first = trees[0]
    if len(trees) == 1:
        return first
    if isinstance(first, dict):
        return {key: concatenate([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        return tuple(concatenate(list(parts)) for parts in zip(*trees, strict=True))
    if isinstance(first, list):
        return [sample for tree in trees for sample in tree]
    return tensors.concatenate(trees)
