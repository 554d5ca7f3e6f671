"""What users hand over as samples, in the forms that trees are made of: dicts, tuples, lists, arrays and tensors."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Leaf, Tensor, Tree
from gradindex.data.tensors import as_numpy, is_tensor, is_torch

_NUMBERS = "biufc"  # the kinds of dtype that frameworks compute with
_DOUBLE = {np.dtype(np.longdouble): np.dtype(np.float64), np.dtype(np.clongdouble): np.dtype(np.complex128)}
_EXPECTED = "expected an array, a tensor, a list with an entry for each sample, or a dict or tuple of these"


def rebuilt(like: tuple[Any, ...], parts: Sequence[Any]) -> tuple[Any, ...]:
    """Return `parts` as a tuple, a named one if `like` is."""
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def is_pair(sample: Tree) -> bool:
    """Whether a sample is a list ``[x, y]``, as some datasets have in the place of a tuple, and no list of numbers."""
    if not isinstance(sample, list) or len(sample) != 2:
        return False
    nested = [isinstance(part, list) for part in sample]
    numbers = [isinstance(part, int | float | complex | np.generic) for part in sample]
    return not all(nested) and not all(numbers)


def native(leaf: Leaf) -> Leaf:
    """Return an array in this machine's byte order, of forward strides and at most double precision; others as is."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    dtype = leaf.dtype.newbyteorder("=")
    dtype = _DOUBLE.get(dtype, dtype)
    leaf = leaf.astype(dtype, copy=False)
    return np.ascontiguousarray(leaf) if any(stride < 0 for stride in leaf.strides) else leaf


def as_columns(value: Tree, name: str = "The input") -> Tree:
    """Return inputs or labels given as whole columns in the form of a tree.

    Parameters
    ----------
    value
        An array (or what NumPy makes one of, such as a DataFrame), a tensor, a list with an entry for each sample, or
        a mapping or tuple of these. Lists of numbers or arrays become arrays, TensorFlow's tensors NumPy's, any mapping
        a dict. Arrays are of the machine's byte order then, unless they are memory-mapped.
    name
        What errors call it.

    Raises
    ------
    TypeError
        If a part is something else, such as a set, a sparse tensor or dates.
    ValueError
        If a part is None, or has no data.
    """
    if isinstance(value, Mapping):
        return {key: as_columns(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple):
        return rebuilt(value, [as_columns(part, f"{name}[{i}]") for i, part in enumerate(value)])
    if value is None:
        raise ValueError(f"{name} is None: {_EXPECTED}. Give one, or leave this part out.")
    if isinstance(value, list):
        return column(value, name)
    return _tensor(value, name) if is_tensor(value) else _array(value, name)


def stack(samples: Sequence[Tree], name: str = "The sample") -> Tree:
    """Collate samples: equal-shaped arrays are stacked, mappings and tuples by part, the rest stays a list.

    Raises
    ------
    ValueError
        If mappings or tuples differ in their parts.
    TypeError
        As `as_columns`.
    """
    first = samples[0] if samples else None
    if not isinstance(first, Mapping | tuple):
        return column(samples, name)
    form = describe(first)
    if other := next((describe(sample) for sample in samples if describe(sample) != form), None):
        raise ValueError(f"{name} is {other}, but {form} in others. Give all samples the same parts.")
    if isinstance(first, Mapping):
        return {key: stack([sample[key] for sample in samples], f"{name}[{key!r}]") for key in first}
    return rebuilt(first, [stack(part, f"{name}[{i}]") for i, part in enumerate(zip(*samples, strict=True))])


def column(samples: Sequence[Tree], name: str = "The sample") -> Tree:
    """Return one part of several samples: an array or tensor where their shapes agree, else a list."""
    if any(is_tensor(sample) for sample in samples):
        return _stacked_tensors(samples, name)
    if samples and isinstance(samples[0], Mapping | tuple | str | bytes):
        return list(samples)
    if samples and _holds_tensors(samples[0]):
        samples = [as_numpy(sample) for sample in samples]
    try:
        stacked = np.asarray(samples)
    except ValueError:
        return _ragged(samples)
    if stacked.dtype == object and stacked.size and all(isinstance(number, int) for number in stacked.flat):
        raise ValueError(f"{name} holds integers of more than 64 bits, such as {max(stacked.flat, key=abs)}.")
    if stacked.dtype == object and stacked.ndim > 1:
        gone = [i for i, sample in enumerate(stacked) if any(one is None for one in sample.flat)]
        if gone:
            raise ValueError(
                f"{name} holds None within entries {gone[:10]}: expected numbers. Leave these samples out."
            )
    return native(stacked) if stacked.dtype.kind in _NUMBERS else list(samples)


def describe(value: Tree) -> str:
    """Return the kind of a part and its own parts, for comparisons and messages."""
    if isinstance(value, Mapping):
        return f"a dict of {sorted(map(str, value))}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"


def missing(leaf: Leaf) -> NDArray[np.bool_]:
    """Return which entries of a list of objects are missing: None or pandas's NA."""
    return np.array([one is None or type(one).__name__ in ("NAType", "NaTType") for one in leaf], bool)


def check_present(ids: NDArray[np.int64], what: str, path: str, leaf: Leaf) -> None:
    """Raise ValueError naming the ids whose entries of a list are missing; all labels may be, for a loss without."""
    gone = missing(leaf) if isinstance(leaf, list) else np.zeros(0, bool)
    if not gone.any() or (path == "Y" and gone.all()):
        return
    hint = f"Leave {path} out." if gone.all() else "Give it, or leave these samples out."
    raise ValueError(
        f"The {what} of samples {ids[gone][:10].tolist()} is None (in {path}): expected one for every sample. {hint}"
    )


def _holds_tensors(sample: Tree) -> bool:
    while isinstance(sample, list) and sample:
        sample = sample[0]
    return is_tensor(sample)


def _stacked_tensors(samples: Sequence[Tree], name: str) -> Tensor:
    """Return tensors stacked if their shapes agree, else as a list; as arrays where some are no tensors."""
    samples = [_tensor(sample, name) if is_tensor(sample) else sample for sample in samples]
    if not all(map(is_torch, samples)):
        return column([as_numpy(sample) for sample in samples], name)
    if len({tuple(sample.shape) for sample in samples}) > 1:
        return samples
    return sys.modules["torch"].stack(samples)


def _ragged(samples: Sequence[Leaf]) -> list[Leaf]:
    """Return samples of several shapes as arrays of one dtype, if they are numbers; else as they are."""
    try:
        arrays = [np.asarray(sample) for sample in samples]
    except ValueError:
        return list(samples)
    if any(array.dtype.kind not in _NUMBERS or array.ndim == 0 for array in arrays):
        return list(samples)
    dtype = np.result_type(*{array.dtype for array in arrays if array.size})  # an empty list would be of floats
    return [native(array.astype(dtype, copy=False)) for array in arrays]


def _tensor(value: Leaf, name: str) -> Tensor:
    """Return a dense tensor of torch without its history, or TensorFlow's as an array; raises like `as_columns`."""
    if not is_torch(value):
        if hasattr(value, "dense_shape"):
            raise TypeError(f"{name} is a {type(value).__name__}: expected a dense tensor. Give tf.sparse.to_dense(…).")
        if hasattr(value, "nested_row_splits"):
            return column([row.numpy() for row in value], name)
        if not hasattr(value, "numpy"):
            raise TypeError(f"{name} is a symbolic tensor without values: {_EXPECTED}.")
        return _array(value.numpy(), name)
    torch = sys.modules["torch"]
    if value.is_nested:
        return column(list(value.unbind()), name)
    if value.layout is not torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}: expected a dense tensor. Give its .to_dense().")
    if value.is_meta:
        raise ValueError(f"{name} is a tensor on the device 'meta', which holds no values. Give one that has them.")
    return value.detach() if value.requires_grad else value


def _array(value: Leaf, name: str) -> Leaf:
    """Return anything else as an array, or a list if it holds objects; raises like `as_columns`."""
    if isinstance(value, str | bytes | Set | Iterator):
        hint = "" if isinstance(value, str | bytes) else " Give a list of it."
        raise TypeError(f"{name} is a {type(value).__name__}: {_EXPECTED}.{hint}")
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries: expected numbers everywhere. Give its .filled(…).")
    array: NDArray[Any] = np.asarray(value)
    kind = array.dtype.kind
    if kind in _NUMBERS:
        return array if isinstance(value, np.memmap) else native(array)
    if kind in "US":
        texts: list[Any] = array.tolist()
        return texts
    if kind == "O" and array.ndim:
        found = column(list(array) if array.ndim == 1 else array.tolist(), name)
        if array.ndim == 1 or not isinstance(found, list):
            return found
    if kind == "O" and array.ndim == 0:
        hint = " Give its .toarray()." if hasattr(value, "toarray") else ""
        raise TypeError(f"{name} is a {type(value).__name__}: {_EXPECTED}.{hint}")
    hint = f" Give its fields {', '.join(map(repr, array.dtype.names))} by name." if array.dtype.names else ""
    if kind == "O":
        kinds = ", ".join(sorted({type(one).__name__ for one in array.flat}))
        hint = f" It holds {kinds}; leave out or encode what is no number."
    raise TypeError(f"{name} holds entries of dtype {array.dtype}: expected numbers.{hint}")


def refuse_dataset(dataset: object) -> None:
    """Raise TypeError for what has a length and entries, but not one for each sample in a fixed order."""
    if isinstance(dataset, Mapping) and 0 not in dataset:
        names = ", ".join(map(repr, itertools.islice(dataset, 5)))
        raise unreadable(dataset, f" Its keys are {names}: give entries as (X, Y), or one entry, if that is a split.")
    if isinstance(dataset, str | bytes | Set):
        raise unreadable(dataset)
    if type(dataset).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        apart = "(table[inputs], table[label])"
        raise unreadable(
            dataset, f" Say what its columns are, Job.from_table(…, x=…, y=…), or give them apart: {apart}."
        )
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(dataset, keras.utils.PyDataset):
        raise unreadable(dataset, " Its entries are batches: give what they are made of.")


def unreadable(dataset: object, hint: str = "") -> TypeError:
    """Return the error for what is no dataset."""
    return TypeError(
        f"Cannot read a dataset of type {type(dataset).__name__}. Expected (X, Y) arrays, a torch Dataset or "
        f"DataLoader, a tf.data.Dataset, or a sequence of (x, y) samples.{hint}"
    )
