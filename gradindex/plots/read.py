"""What is drawn: queries, neighbours and class means read from a result and the user's data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.data.labels import as_array, as_classes
from gradindex.plots.rendering import printable
from gradindex.search.answer import found_sides

Picture = NDArray[np.float64] | str
_ONE_LINE = 18  # characters that fit above a picture


class Result(Protocol):
    """What is read of a result, such as `gradindex.Explanation`; see there."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Name and parameters of what explained."""
        ...

    @property
    def data(self) -> Mapping[str, Any]:
        """Scores and ids, and what is known of queries and samples."""
        ...

    @property
    def view(self) -> Any:
        """The job, the inputs of the queries, and their ids or None; None where there is no job."""
        ...


@dataclass(frozen=True)
class _Queries:
    """The m queries: pictures (or none) and classes (None where unknown)."""

    pictures: list[Picture]
    labels: list[Any]
    predictions: list[Any]

    def classes(self, kind: str) -> list[Any]:
        """Return the label or the prediction of each, or the other of the two where it is unknown."""
        known = (self.labels, self.predictions) if kind == "label" else (self.predictions, self.labels)
        return [second if first is None else first for first, second in zip(*known, strict=True)]

    def captions(self, names: Sequence[str] | None, wrap: bool = False) -> list[str]:
        pairs = zip(self.labels, self.predictions, strict=True)
        return _wrapped([_caption(names, *pair) for pair in pairs], wrap)


@dataclass(frozen=True)
class Train:
    """The training pictures, labels and predictions, as far as they were given."""

    pictures: Any
    labels: NDArray[Any] | None
    predictions: NDArray[Any] | None


@dataclass(frozen=True)
class Side:
    """The most or the least similar samples of r queries, (r, k) each; `pictures` row by row, None where missing."""

    title: str
    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    exact: NDArray[np.bool_]
    labels: NDArray[Any] | None
    predictions: NDArray[Any] | None
    pictures: list[Picture | None]

    def label(self, row: int, column: int) -> Any:
        """Return the label of one neighbour, None where unknown."""
        return None if self.labels is None or self.ids[row, column] < 0 else self.labels[row, column]

    def captions(self, names: Sequence[str] | None) -> list[str]:
        """Return r·k captions, row by row."""
        texts = []
        for row, column in np.ndindex(*self.ids.shape):
            prediction = None if self.predictions is None else self.predictions[row, column]
            missing = self.ids[row, column] < 0
            texts.append("" if missing else _caption(names, self.label(row, column), prediction))
        return _wrapped(texts)


@dataclass(frozen=True)
class Chart:
    """Mean scores per class: `classes`, `means` (r, c) and each query's own class (None if unknown)."""

    name: str
    classes: list[NDArray[Any]]
    means: list[NDArray[np.float64]]
    own: list[Any]
    limits: list[tuple[float, float]]


def make_charts(
    result: Result, queries: _Queries, y_train: Any, train_predictions: Any, max_classes: int
) -> list[Chart]:
    """Return the charts by true and, where predictions are known, by predicted class."""
    labels, predictions = read_classes("y_train", y_train), read_classes("train_predictions", train_predictions)
    if labels is None:
        raise ValueError("plot_distributions needs the labels of the training samples: y_train is None.")
    scores = _scores_by_sample(result, len(labels))
    groups = {"true": labels} if predictions is None else {"true": labels, "predicted": predictions}
    for group in groups.values():
        if len(group) != len(labels):
            raise ValueError(f"y_train has {len(labels)} labels but train_predictions has {len(group)}.")
    classes = np.unique(np.concatenate(list(groups.values())))
    means = {name: _class_means(scores, group, classes) for name, group in groups.items()}
    own = {"true": queries.classes("label"), "predicted": queries.classes("prediction")}
    kept = [
        _kept(classes, means["true"][row], [own[name][row] for name in groups], max_classes)
        for row in range(len(scores))
    ]
    limits = [_limits([mean[row, kept[row]] for mean in means.values()]) for row in range(len(scores))]
    if result.meta.get("params", {}).get("sim_fn_name", "") == "grad_cos" and limits:  # comparable between rows
        limits = [(min(low for low, _ in limits), max(high for _, high in limits))] * len(limits)
    return [
        Chart(
            name,
            [classes[columns] for columns in kept],
            [means[name][row, columns] for row, columns in enumerate(kept)],
            own[name],
            limits,
        )
        for name in groups
    ]


def _scores_by_sample(result: Result, n: int) -> NDArray[np.float64]:
    """Return scores (m, n) by training position, undoing the ranking."""
    scores, order = np.asarray(result.data["scores"]), np.asarray(result.data["ordered_indices"])
    if order.shape[1] < n:
        raise ValueError(
            f"A class mean needs the score of every training sample, but the result holds only the top "
            f"{order.shape[1]} of {n}: explain with GradientSimilarity(..., index=None) and without k."
        )
    if order.shape[1] > n or not (np.sort(order, axis=1) == np.arange(n)).all():
        raise ValueError(
            f"y_train has {n} labels but the result ranks other samples, {order.shape[1]} a query: pass the "
            "labels of the training set that was explained."
        )
    out = np.empty(scores.shape)
    np.put_along_axis(out, order, scores, 1)
    return out


def _class_means(
    scores: NDArray[np.float64], groups: NDArray[np.generic], classes: NDArray[np.generic]
) -> NDArray[np.float64]:
    """Return the mean of scores (m, n) over each class's samples, (m, c); NaN for a class without samples."""
    out = np.full((len(scores), len(classes)), np.nan)
    for column, one in enumerate(classes):
        members = groups == one
        if members.any():
            out[:, column] = scores[:, members].mean(axis=1)
    return out


def _kept(
    classes: NDArray[np.generic], means: NDArray[np.float64], own: Sequence[object], limit: int
) -> NDArray[np.int64]:
    """Return the columns of a row's classes to draw: its own and those with the highest means, in class order."""
    is_own = np.array([any(one is not None and one == c for one in own) for c in classes])
    order = np.lexsort((-np.nan_to_num(means, nan=-np.inf), ~is_own))
    return np.sort(order[: max(limit, 1)])


def _limits(means: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the range of an axis that holds zero, all bars, and a number at the end of the longest."""
    values = np.concatenate([*means, [0.0]])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.2 * (high - low) or 1.0
    return (low - room if low < 0 else 0.0), high + room if high > 0 else 0.0


def read_queries(result: Result, pictures: object, y: object, predictions: object) -> _Queries:
    """Return the queries with pictures, labels and predictions, given or from the result."""
    m = len(result.data["scores"])
    columns: list[list[Any]] = []
    for name, given, stored in (("y_query", y, "query_labels"), ("query_predictions", predictions, None)):
        found = read_classes(name, result.data.get(stored or name) if given is None else given)
        if found is not None and len(found) != m:
            raise ValueError(f"{name} has {len(found)} entries but the result has {m} queries.")
        columns.append([None] * m if found is None else list(found))
    drawn = [] if pictures is None else [_picture(one) for one in _query_pictures(pictures, m)]
    return _Queries(drawn, *columns)


def _query_pictures(pictures: Any, m: int) -> Sequence[Any]:
    shape = tuple(getattr(pictures, "shape", (len(pictures),)))
    if m == 1 and (len(shape) == 2 or (len(shape) == 3 and shape[0] != 1)):
        return [pictures]
    if shape[0] != m:
        raise ValueError(f"X_query has {shape[0]} pictures but the result has {m} queries.")
    return [pictures[row] for row in range(m)]


def read_side(result: Result, train: Train, k: int, least: bool = False) -> Side:
    """Return the most similar samples, or the least similar."""
    data, sides = result.data, found_sides(result.data)
    side, turn = sides[-1 if least else 0], slice(None, k)
    if least and len(sides) == 1:  # all samples are ranked: the last are the least similar
        side, turn = replace(side, exact=None, labels=None, predictions=None), slice(None, -k - 1, -1)
    scores, ids = np.asarray(side.scores)[:, turn], np.asarray(side.ids)[:, turn]
    stored = data.get("least_similar" if least else "most_similar")
    if train.pictures is None:
        if stored is None:
            raise ValueError("This result holds ids, not pictures: pass the training pictures as X_train.")
        scores, ids = scores[:, : len(stored[0])], ids[:, : len(stored[0])]
        pictures = [_picture(stored[row][column]) for row, column in np.ndindex(*ids.shape)]
    else:
        pictures = [_training_picture(train.pictures, max(int(i), 0)) for i in ids.ravel()]
    columns = slice(None, ids.shape[1])
    return Side(
        "Least similar" if least else "Most similar",
        ids,
        scores,
        np.ones(ids.shape, bool) if side.exact is None else np.asarray(side.exact)[:, columns],
        _of_samples("y_train", train.labels, ids, side.labels),
        _of_samples("train_predictions", train.predictions, ids, side.predictions),
        [None if i < 0 else picture for i, picture in zip(ids.ravel(), pictures, strict=True)],
    )


def _of_samples(
    name: str, given: NDArray[np.generic] | None, ids: NDArray[np.int64], stored: object
) -> NDArray[Any] | None:
    if given is None:
        return None if stored is None else np.asarray(stored)[:, : ids.shape[1]]
    if ids.max() >= len(given):
        raise ValueError(f"{name} has {len(given)} entries but the result names sample {ids.max()}.")
    return np.asarray(given[ids])


def _training_picture(pictures: Any, i: int) -> Picture:
    if i >= len(pictures):
        raise ValueError(
            f"X_train has {len(pictures)} pictures but the result names sample {i}: pass the training set that "
            "was explained."
        )
    item = pictures[i]
    return _picture(item[0] if isinstance(item, tuple) else item)


def _picture(value: object) -> Picture:
    """Return a picture as float64, (h, w) or (h, w, 3); a text as it is, and named values as lines."""
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_brief(entry)}" for name, entry in value.items())
    if isinstance(value, str):
        return value
    array = as_array(value)
    if array.dtype.kind in "biuf":
        array = array.astype(np.float64)
        if array.ndim == 2:
            return array
        if array.ndim == 3:
            if array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
                array = np.moveaxis(array, 0, -1)
            if array.shape[-1] in (1, 3):
                return array[..., 0] if array.shape[-1] == 1 else array
    raise ValueError(
        f"Expected pictures of shape (h, w), (h, w, 1), (1, h, w), (h, w, 3) or (3, h, w), got {array.shape} of "
        f"{array.dtype}: reshape them first, such as X.reshape(-1, 28, 28)."
    )


def _brief(value: object) -> str:
    return short_number(value) if isinstance(value, float) else str(value)


def read_classes(name: str, values: object) -> NDArray[Any] | None:
    """Return classes (n,) from classes, one-hot rows, or, for predictions, model outputs (n, c)."""
    if values is None:
        return None
    array = as_array(values)
    found = as_classes(array) if array.dtype.kind in "biuf" else None
    if found is not None:
        return found
    if array.ndim == 2 and array.shape[1] > 1 and name.endswith("predictions"):
        return np.asarray(array.argmax(axis=1))
    if array.ndim != 1:
        raise ValueError(f"{name} must be classes (n,) or one-hot rows (n, c), got shape {array.shape}.")
    return array


def _caption(names: Sequence[str] | None, label: object, prediction: object) -> str:
    parts = []
    if label is not None:
        name = class_name(names, label)
        parts.append(name if names is not None or isinstance(label, str) else f"label {name}")
    if prediction is not None:
        parts.append(f"pred. {class_name(names, prediction)}")
    return ", ".join(parts)


def _wrapped(captions: list[str], wrap: bool = False) -> list[str]:
    """Return captions with label and prediction on lines of their own if one of them is long; cut what still is."""
    wrap = wrap or any(len(caption) > _ONE_LINE for caption in captions)
    if not wrap:
        return captions
    lines = [caption.replace(", pred. ", "\npred. ").split("\n") for caption in captions]
    return ["\n".join(line if len(line) <= _ONE_LINE else line[: _ONE_LINE - 1] + "…" for line in one) for one in lines]


def class_name(names: Sequence[str] | None, value: Any) -> str:
    """Return the name of a class; its number where it has none (there are fewer names, or −1 stands for no class)."""
    integral = not isinstance(value, str) and float(value).is_integer()
    if names is not None and integral and 0 <= int(value) < len(names):
        return printable(str(names[int(value)]))
    return str(int(value)) if integral else printable(str(value))


def short_number(value: float) -> str:
    """Return a score with three digits and a proper minus sign."""
    text = f"{value:.3f}" if 0.0005 <= abs(value) < 10 else f"{value:.3g}"
    return text.replace("-", "−")


def kernel_title(result: Result) -> str:
    """Return the name of the result's kernel in words."""
    params = result.meta.get("params", {})
    name = params.get("sim_fn_name", params.get("kernel", "score"))
    return kernels.title(str(name))
