"""Labels: what the model would predict, in the form the dataset's labels have."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Leaf
from gradindex.data.source import is_ragged
from gradindex.data.tensors import as_numpy


def is_one_hot(y: Leaf) -> bool:
    """Whether `y` (n, c) holds rows with a single 1 and zeros elsewhere, c > 1."""
    y = _array(y)
    return bool(
        y is not None and y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()
    )


def as_classes(y: Leaf) -> NDArray[Any] | None:
    """Return labels (n,) for display and filters: classes of one-hot rows, scalars as they are, else None."""
    array = _array(y)
    if array is None:
        return None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if is_one_hot(array):
        classes: NDArray[Any] = array.argmax(axis=1)
        return classes
    return array if array.ndim == 1 and array.dtype.kind in "biuf" else None


def predicted_classes(outputs: NDArray[np.generic] | None) -> NDArray[np.int64] | None:
    """Return the class of the largest output (n,) for outputs (n, c) with c > 1, else None."""
    if outputs is None or outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    classes: NDArray[np.int64] = outputs.argmax(axis=1).astype(np.int64)
    return classes


def from_outputs(
    outputs: NDArray[np.generic],
    like: Leaf,
    losses: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
    class_axis: int,
) -> NDArray[Any]:
    """Turn model outputs into labels of the same form as the training labels `like`.

    Parameters
    ----------
    outputs
        Model outputs, shape (m, c, …).
    like
        A sample of training labels: classes (n,) or (n, 1), one-hot rows (n, c), or several labels at once, rows
        (n, c) of two values such as 0 and 1.
    losses
        ``losses(outputs, y) -> (m,)``. With a single output per sample the predicted label is the one of the
        two training labels with the smaller loss, which is right for logits, probabilities and margins alike.
    class_axis
        Axis of `outputs` that holds the classes.

    Raises
    ------
    ValueError
        If a single-output model has other than two distinct training labels, or labels are not one array; for several
        labels at once, if they have more than two values or the loss does not say from where on one is predicted.
    """
    array = _array(like)
    if array is None or array.dtype.kind not in "biuf":
        raise ValueError("The training labels are not numbers in one array, so none can be predicted. Pass Y.")
    like = array
    parts = int(np.prod(like.shape[1:]))  # of a sample's label
    if parts > 1 and like.shape[1:] == outputs.shape[1:] and outputs.shape[class_axis] == 1:
        return _several(outputs, like, losses)
    if outputs.ndim == 1 or outputs.shape[class_axis] == 1:
        options = np.unique(like)
        if len(options) != 2:
            raise ValueError(
                f"The model has one output and the training labels {len(options)} distinct values, so a predicted "
                "label is not defined. Pass Y."
            )
        shape = (len(outputs), *like.shape[1:])
        tried = [losses(outputs, np.full(shape, option, like.dtype)) for option in options]
        column = options[(tried[1] < tried[0]).astype(int)].reshape(-1, *[1] * (like.ndim - 1))
        return np.broadcast_to(column, shape).copy()
    classes = outputs.argmax(axis=class_axis)
    if like.ndim == outputs.ndim and like.shape[1:] == outputs.shape[1:]:
        if like.any() and not np.allclose(like.sum(axis=class_axis), 1, atol=1e-3):
            return _several(outputs, like, losses)
        one_hot = np.eye(outputs.shape[class_axis], dtype=like.dtype)[classes]
        return np.moveaxis(one_hot, -1, class_axis)
    dtype = like.dtype if like.dtype.kind in "iuf" else np.dtype(np.int64)
    found: NDArray[Any] = classes.astype(dtype)
    return found[:, None] if like.shape[1:] == (1,) else found


def _several(
    outputs: NDArray[Any], like: NDArray[Any], losses: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """Return labels of which any number may hold at once: the larger of two values from a threshold on.

    The threshold is 0 (logits, margins) or one half (probabilities): the one at which the loss of both is the same.
    """
    options = np.unique(like)
    if len(options) == 2:
        for threshold in (0.0, 0.5):
            output = np.full((1, *outputs.shape[1:]), threshold, outputs.dtype)
            low, high = (losses(output, np.full((1, *like.shape[1:]), option, like.dtype)) for option in options)
            if np.isfinite(low).all() and np.allclose(low, high, rtol=1e-5):
                return options[(outputs > threshold).astype(int)]  # type: ignore[no-any-return]
    raise ValueError(
        "The training labels are several at once, and neither 0 nor 0.5 is where the loss turns from one value to the "
        "other, so the predicted ones are not defined. Pass the labels (Y)."
    )


def as_array(value: Leaf) -> NDArray[Any]:
    """Return an array or a tensor as a NumPy array; half precision becomes float32."""
    return np.asarray(as_numpy(value))


def _array(y: Leaf) -> NDArray[Any] | None:
    return None if y is None or isinstance(y, dict | tuple) or is_ragged(y) else as_array(y)
