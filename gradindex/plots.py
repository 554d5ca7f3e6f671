"""Pictures of an explanation: queries beside their neighbours, and mean scores per class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.explanation import Explanation
from gradindex.labels import as_array, as_classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermilion are told apart by every common kind of colour vision, and in print.
_SAME, _OTHER, _NEUTRAL, _PALE = "#0072B2", "#D55E00", "#444444", "#C4C4C4"
_KERNELS = {
    "grad_cos": "gradient cosine",
    "grad_dot": "gradient inner product",
    "grad_asym_dot": "asymmetric gradient product",
}
# In inches: a picture; the space between two, and between groups; a line of text; head and foot of the figure.
_CELL, _GAP, _GROUP_GAP, _LINE, _HEAD, _FOOT = 1.0, 0.2, 0.44, 0.14, 0.3, 0.34
_ONE_LINE = 18  # characters that fit above a picture
_FONT = 8.0


def plot_similar(
    result: Explanation,
    X_query: Any,
    X_train: Any = None,
    y_query: Any = None,
    y_train: Any = None,
    *,
    query_predictions: Any = None,
    train_predictions: Any = None,
    class_names: Sequence[str] | None = None,
    k: int = 5,
    opponents: bool = True,
    cmap: str = "gray",
    figure: "Figure | None" = None,
) -> "Figure":
    """Draw each query beside the training samples most (and least) similar to it, one row a query.

    Above a picture stand its label and prediction, below it the score; ``≈`` marks a score estimated from
    sketches. The frame is solid blue where the sample's label is the query's, dashed orange where it is another,
    thin grey where one of them is unknown.

    Parameters
    ----------
    result
        From `GradientSimilarity.explain` or `Index.explain`, for m queries.
    X_query
        The m queries' pictures, (m, …), or one picture if m is 1. A picture is (h, w), (h, w, 1), (1, h, w),
        (h, w, 3) or (3, h, w), of any range.
    X_train
        The n training pictures that the result's ids are positions in: an array, a tensor, or a sequence of
        pictures or of (picture, label). None: the up to 5 that `GradientSimilarity` put into the result.
    y_query, y_train
        Labels (m,) and (n,), classes or one-hot rows. None: those in the result, if it has them. Where a query
        has no label, its prediction stands for it.
    query_predictions, train_predictions
        Predicted classes (m,) and (n,), or model outputs (m, c) and (n, c). None: those in the result, if any.
    class_names
        Name of class 0, 1, …
    k
        How many samples of each side; fewer if the result has fewer.
    opponents
        Whether to draw the least similar samples too, least first.
    cmap
        Matplotlib's colour map for pictures with one channel.
    figure
        A figure or subfigure to draw into; the drawing is scaled to its size. None: a new one.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig(path)``; pyplot does not know it, so there is nothing to close.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If k < 1; pictures or labels are not as many as the result has queries or ids; a picture has another
        shape than those above; or `X_train` is needed.
    """
    make_figure = _figure_class()
    if k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}.")
    queries = _queries(result, X_query, y_query, query_predictions)
    train = _Train(X_train, _classes("y_train", y_train), _classes("train_predictions", train_predictions))
    sides = [_side(result, train, k, "")]
    if opponents:
        sides.append(_side(result, train, k, "opponent_"))
    groups = [queries.captions(class_names), *(side.captions(class_names) for side in sides)]
    lines = max(text.count("\n") + 1 for group in groups for text in group)
    widths = [1, *(side.ids.shape[1] for side in sides)]
    page = _Page(len(queries.pictures), widths, lines, figure, make_figure)
    shades = _Shades([*queries.pictures, *(p for side in sides for p in side.pictures)], cmap)
    page.title(0, "Query")
    for row, picture in enumerate(queries.pictures):
        axes = page.cell(0, row, 0, f"query {row}")
        shades.draw(axes, picture)
        _annotate(axes, groups[0][row], "", page.font, _NEUTRAL, "solid")
    for group, side in enumerate(sides, 1):
        page.title(group, side.title, _kernel(result))
        _draw_side(page, group, side, groups[group], queries.classes("label"), shades)
    page.legend(sides, queries.classes("label"))
    drawn: Figure = page.figure
    return drawn


def plot_distributions(
    result: Explanation,
    y_train: Any,
    train_predictions: Any = None,
    *,
    X_query: Any = None,
    y_query: Any = None,
    query_predictions: Any = None,
    class_names: Sequence[str] | None = None,
    max_classes: int = 20,
    cmap: str = "gray",
    figure: "Figure | None" = None,
) -> "Figure":
    """Draw each query's mean score with every true and every predicted class of the training set.

    One row a query: its picture if given, then bars for the true classes, then bars for the predicted ones. The
    query's own class (its label in the first chart, its prediction in the second) is blue and bears its mean.

    Parameters
    ----------
    result
        An explanation of m queries that ranks all n training samples, such as `GradientSimilarity.explain` gives
        with ``index=None`` and ``k=None``.
    y_train
        Labels (n,) of the training samples, classes or one-hot rows (n, c).
    train_predictions
        Their predicted classes (n,), or model outputs (n, c); None: no second chart.
    X_query
        The m queries' pictures, as for `plot_similar`; None: none.
    y_query, query_predictions
        The queries' labels (m,) or one-hot rows, and predicted classes (m,) or outputs (m, c). None: those in
        the result, if it has them. Where only one of the two is known it stands for the other.
    class_names
        Name of class 0, 1, …
    max_classes
        If there are more, a row shows those with the highest means, and the query's own.
    cmap
        Matplotlib's colour map for pictures with one channel.
    figure
        A figure or subfigure to draw into, best with ``layout="constrained"``; None: a new one.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig(path)``; pyplot does not know it, so there is nothing to close.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the result does not rank all n samples, or labels, predictions or pictures are not as many as needed.
    """
    make_figure = _figure_class()
    queries = _queries(result, X_query, y_query, query_predictions)
    charts = _charts(result, queries, y_train, train_predictions, max_classes)
    captions = queries.captions(class_names, wrap=True)
    ratios = ([1.0] if queries.pictures else []) + [2.6] * len(charts)
    count = len(charts[0].classes[0])
    if figure is None:
        height = 0.6 + len(captions) * max(1.5, 0.4 + 0.13 * count)
        figure = make_figure(figsize=(1.1 * sum(ratios) + 0.8, height), layout="constrained")
    grid = figure.add_gridspec(len(captions), len(ratios), width_ratios=ratios)
    shades = _Shades(queries.pictures, cmap)
    first = len(ratios) - len(charts)
    for row, caption in enumerate(captions):
        if queries.pictures:
            axes = figure.add_subplot(grid[row, 0], label=f"query {row}")
            shades.draw(axes, queries.pictures[row])
            _annotate(axes, caption, "", _FONT, _NEUTRAL, "solid")
        for column, chart in enumerate(charts, first):
            axes = figure.add_subplot(grid[row, column], label=f"{chart.name} {row}")
            _draw_bars(axes, chart, row, class_names, named=column == first)
            if not queries.pictures and column == first:
                axes.set_ylabel(caption, fontsize=_FONT, rotation=0, ha="right", va="center", labelpad=8)
            if row == 0:
                axes.set_title(f"Mean {_kernel(result)}, by {chart.name} class", fontsize=_FONT + 1)
    return figure


@dataclass(frozen=True)
class _Queries:
    """The m queries: pictures (or none) and classes (None where unknown)."""

    pictures: list[NDArray[np.float64]]
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
class _Train:
    """The training pictures, labels and predictions, as far as they were given."""

    pictures: Any
    labels: NDArray[Any] | None
    predictions: NDArray[Any] | None


@dataclass(frozen=True)
class _Side:
    """The most or the least similar samples of r queries, (r, k) each; `pictures` row by row, None where missing."""

    title: str
    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    exact: NDArray[np.bool_]
    labels: NDArray[Any] | None
    predictions: NDArray[Any] | None
    pictures: list[NDArray[np.float64] | None]

    def label(self, row: int, column: int) -> Any:
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
class _Chart:
    """Mean scores per class: `classes`, `means` (r, c) and each query's own class (None if unknown)."""

    name: str
    classes: list[NDArray[Any]]
    means: list[NDArray[np.float64]]
    own: list[Any]
    limits: list[tuple[float, float]]


class _Shades:
    """One range of values for all pictures of a figure, so that equal values look equal."""

    def __init__(self, pictures: Iterable[NDArray[np.float64] | None], cmap: str) -> None:
        ranges = [(np.nanmin(p), np.nanmax(p)) for p in pictures if p is not None]
        low, high = min((r[0] for r in ranges), default=0.0), max((r[1] for r in ranges), default=1.0)
        if low >= 0:  # the usual ranges of pictures as they are; anything else from its least to its greatest
            low, high = 0.0, 1.0 if 0.5 < high <= 1 else 255.0 if 128 < high <= 255 else float(high) or 1.0
        self.low, self.high = low, high
        self.cmap = cmap

    def draw(self, axes: "Axes", picture: NDArray[np.float64]) -> None:
        if picture.ndim == 3:
            scaled = np.clip((picture - self.low) / (self.high - self.low), 0, 1)
            axes.imshow(scaled, interpolation="nearest")
        else:
            axes.imshow(picture, cmap=self.cmap, vmin=self.low, vmax=self.high, interpolation="nearest")


class _Page:
    """Where things stand on a figure of `plot_similar`: groups of square cells, one row a query, no overlaps."""

    def __init__(self, rows: int, widths: Sequence[int], lines: int, figure: Any, make_figure: Any) -> None:
        self._above = _LINE * lines + 0.06
        self._pitch = self._above + _CELL + _LINE + 0.14
        spans = [width * _CELL + (width - 1) * _GAP for width in widths]
        starts = np.cumsum([_GAP, *(span + _GROUP_GAP for span in spans)])
        self._starts, self._spans = starts.tolist(), spans
        self._width = starts[-1] - _GROUP_GAP + _GAP
        self._height = _HEAD + rows * self._pitch + _FOOT
        self.figure = make_figure(figsize=(self._width, self._height)) if figure is None else figure
        box = self.figure.bbox
        scale = min(box.width / self._width, box.height / self._height) / self.figure.dpi
        self.font = _FONT * float(scale)
        for start in self._starts[1:-1]:
            self._rule(start - _GROUP_GAP / 2)

    def cell(self, group: int, row: int, column: int, label: str) -> "Axes":
        left = self._starts[group] + column * (_CELL + _GAP)
        bottom = self._height - _HEAD - row * self._pitch - self._above - _CELL
        place = (*self._fraction(left, bottom), *self._fraction(_CELL, _CELL))
        axes: Axes = self.figure.add_axes(place, label=label)
        return axes

    def title(self, group: int, text: str, detail: str = "") -> None:
        x, y = self._fraction(self._starts[group] + self._spans[group] / 2, self._height - 0.08)
        if detail and self._spans[group] > 2.9:
            text = f"{text} ({detail})"
        self.figure.text(x, y, text, ha="center", va="top", fontsize=self.font * 1.2, fontweight="bold")

    def legend(self, sides: Sequence[_Side], own: Sequence[Any]) -> None:
        """Explain the frames and marks that the figure has."""
        from matplotlib.patches import Patch

        places = [(side, *place) for side in sides for place in np.ndindex(*side.ids.shape)]
        used = {_frame(side.label(row, column), own[row]) for side, row, column in places}
        texts = {_SAME: "label of the query", _OTHER: "another label"}
        handles = [
            Patch(facecolor="none", edgecolor=colour, linestyle=style, linewidth=1.6, label=texts[colour])
            for colour, style in sorted(used)
            if colour in texts
        ]
        if any((~side.exact & (side.ids >= 0)).any() for side in sides):
            handles.append(Patch(facecolor="none", edgecolor="none", label="≈ estimated score"))
        if handles:
            self.figure.legend(
                handles=handles,
                loc="lower center",
                ncols=len(handles),
                frameon=False,
                fontsize=self.font,
                borderpad=0.2,
            )

    def _fraction(self, x: float, y: float) -> tuple[float, float]:
        return x / self._width, y / self._height

    def _rule(self, x: float) -> None:
        from matplotlib.lines import Line2D

        (x, top), (_, bottom) = self._fraction(x, self._height - 0.1), self._fraction(x, _FOOT)
        transform = getattr(self.figure, "transSubfigure", None)
        self.figure.add_artist(Line2D([x, x], [bottom, top], color=_PALE, linewidth=1, transform=transform))


def _draw_side(
    page: _Page, group: int, side: _Side, captions: Sequence[str], own: Sequence[Any], shades: _Shades
) -> None:
    columns = side.ids.shape[1]
    for row, column in np.ndindex(*side.ids.shape):
        place = row * columns + column
        axes = page.cell(group, row, column, f"{side.title.lower()} {row} {column}")
        picture = side.pictures[place]
        if picture is None:
            axes.set_box_aspect(1)
            axes.text(0.5, 0.5, "none", ha="center", va="center", fontsize=page.font, color=_NEUTRAL)
            _annotate(axes, "", "", page.font, _PALE, "dotted")
            continue
        shades.draw(axes, picture)
        mark = "" if side.exact[row, column] else "≈"
        score = mark + _number(float(side.scores[row, column]))
        _annotate(axes, captions[place], score, page.font, *_frame(side.label(row, column), own[row]), width=2.2)


def _annotate(axes: "Axes", above: str, below: str, font: float, colour: str, style: str, width: float = 0.8) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(above, fontsize=font, pad=4, linespacing=1.1)
    axes.set_xlabel(below, fontsize=font, labelpad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=style, linewidth=0.8 if colour == _NEUTRAL else width)


def _draw_bars(axes: "Axes", chart: _Chart, row: int, names: Sequence[str] | None, named: bool) -> None:
    classes, means = chart.classes[row], chart.means[row]
    own = classes == chart.own[row] if chart.own[row] is not None else np.zeros(len(classes), bool)
    places = np.arange(len(classes))
    axes.barh(places, means, height=0.78, color=np.where(own, _SAME, _PALE))
    axes.axvline(0, color=_NEUTRAL, linewidth=0.6)
    for place in np.flatnonzero(own & ~np.isnan(means)):
        value, side = float(means[place]), -1 if means[place] < 0 else 1
        axes.annotate(
            _number(value),
            (value, place),
            (2 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=_FONT - 1,
            color=_SAME,
            fontweight="bold",
        )
    axes.set_yticks(places, [_name(names, c) for c in classes] if named else [""] * len(places))
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlim(*chart.limits[row])
    axes.tick_params(labelsize=_FONT - 1, length=0, axis="y", pad=2)
    axes.tick_params(labelsize=_FONT - 1, length=2, axis="x", pad=2)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if named:
        for label, bold in zip(axes.get_yticklabels(), own, strict=True):
            label.set_fontweight("bold" if bold else "normal")


def _charts(
    result: Explanation, queries: _Queries, y_train: Any, train_predictions: Any, max_classes: int
) -> list[_Chart]:
    labels, predictions = _classes("y_train", y_train), _classes("train_predictions", train_predictions)
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
        _Chart(
            name,
            [classes[columns] for columns in kept],
            [means[name][row, columns] for row, columns in enumerate(kept)],
            own[name],
            limits,
        )
        for name in groups
    ]


def _scores_by_sample(result: Explanation, n: int) -> NDArray[np.float64]:
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


def _class_means(scores: NDArray[np.float64], groups: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of scores (m, n) over each class's samples, (m, c); NaN for a class without samples."""
    out = np.full((len(scores), len(classes)), np.nan)
    for column, one in enumerate(classes):
        members = groups == one
        if members.any():
            out[:, column] = scores[:, members].mean(axis=1)
    return out


def _kept(classes: NDArray[Any], means: NDArray[np.float64], own: Sequence[Any], limit: int) -> NDArray[np.int64]:
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


def _queries(result: Explanation, pictures: Any, y: Any, predictions: Any) -> _Queries:
    m = len(result.data["scores"])
    columns: list[list[Any]] = []
    for name, given, stored in (("y_query", y, "query_labels"), ("query_predictions", predictions, None)):
        found = _classes(name, result.data.get(stored or name) if given is None else given)
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


def _side(result: Explanation, train: _Train, k: int, prefix: str) -> _Side:
    """Return the most similar samples, or with prefix ``opponent_`` the least similar."""
    data = result.data
    names, turn = ("scores", "ordered_indices"), slice(None, k)
    if prefix and "opponent_indices" in data:
        names = ("opponent_scores", "opponent_indices")
    elif prefix:  # all samples are ranked: the last are the least similar
        turn = slice(None, -k - 1, -1)
    scores, ids = (np.asarray(data[name])[:, turn] for name in names)
    stored = data.get("least_similar" if prefix else "most_similar")
    if train.pictures is None:
        if stored is None:
            raise ValueError("This result holds ids, not pictures: pass the training pictures as X_train.")
        scores, ids = scores[:, : len(stored[0])], ids[:, : len(stored[0])]
        pictures = [_picture(stored[row][column]) for row, column in np.ndindex(*ids.shape)]
    else:
        pictures = [_training_picture(train.pictures, max(int(i), 0)) for i in ids.ravel()]
    columns = slice(None, ids.shape[1])
    return _Side(
        "Least similar" if prefix else "Most similar",
        ids,
        scores,
        np.asarray(data.get(f"{prefix}exact", np.ones(ids.shape, bool)))[:, columns],
        _of_samples("y_train", train.labels, ids, data.get(f"{prefix}labels")),
        _of_samples("train_predictions", train.predictions, ids, data.get(f"{prefix}predictions")),
        [None if i < 0 else picture for i, picture in zip(ids.ravel(), pictures, strict=True)],
    )


def _of_samples(name: str, given: NDArray[Any] | None, ids: NDArray[np.int64], stored: Any) -> NDArray[Any] | None:
    if given is None:
        return None if stored is None else np.asarray(stored)[:, : ids.shape[1]]
    if ids.max() >= len(given):
        raise ValueError(f"{name} has {len(given)} entries but the result names sample {ids.max()}.")
    return np.asarray(given[ids])


def _training_picture(pictures: Any, i: int) -> NDArray[np.float64]:
    if i >= len(pictures):
        raise ValueError(
            f"X_train has {len(pictures)} pictures but the result names sample {i}: pass the training set that "
            "was explained."
        )
    item = pictures[i]
    return _picture(item[0] if isinstance(item, tuple) else item)


def _picture(value: Any) -> NDArray[np.float64]:
    """Return a picture as float64, (h, w) or (h, w, 3)."""
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


def _classes(name: str, values: Any) -> NDArray[Any] | None:
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


def _frame(label: Any, own: Any) -> tuple[str, str]:
    """Return colour and line style of the frame of a sample with `label` for a query of class `own`."""
    if label is None or own is None:
        return _NEUTRAL, "solid"
    return (_SAME, "solid") if label == own else (_OTHER, "dashed")


def _caption(names: Sequence[str] | None, label: Any, prediction: Any) -> str:
    parts = []
    if label is not None:
        name = _name(names, label)
        parts.append(name if names is not None or isinstance(label, str) else f"label {name}")
    if prediction is not None:
        parts.append(f"pred. {_name(names, prediction)}")
    return ", ".join(parts)


def _wrapped(captions: list[str], wrap: bool = False) -> list[str]:
    """Return captions with label and prediction on lines of their own if one of them is long; cut what still is."""
    wrap = wrap or any(len(caption) > _ONE_LINE for caption in captions)
    if not wrap:
        return captions
    lines = [caption.replace(", pred. ", "\npred. ").split("\n") for caption in captions]
    return ["\n".join(line if len(line) <= _ONE_LINE else line[: _ONE_LINE - 1] + "…" for line in one) for one in lines]


def _name(names: Sequence[str] | None, value: Any) -> str:
    integral = not isinstance(value, str) and float(value).is_integer()
    if names is not None and integral and 0 <= int(value) < len(names):
        return str(names[int(value)])
    return str(int(value)) if integral else str(value)


def _number(value: float) -> str:
    """Return a score with three digits and a proper minus sign."""
    text = f"{value:.3f}" if 0.0005 <= abs(value) < 10 else f"{value:.3g}"
    return text.replace("-", "−")


def _kernel(result: Explanation) -> str:
    params = result.meta.get("params", {})
    name = params.get("sim_fn_name", params.get("kernel", "score"))
    return _KERNELS.get(name, str(name))


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib, which is not installed: pip install 'gradindex[plots]'."
        ) from error
    return Figure
