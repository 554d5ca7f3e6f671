"""Pictures of an explanation: queries beside their neighbours, and mean scores per class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradindex.plots.page import FONT, NEUTRAL, Page, Shades, annotate, draw_bars, draw_side, load_figure_class
from gradindex.plots.read import Result, Train, kernel_title, make_charts, read_classes, read_queries, read_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_similar(
    result: Result,
    X_query: object,
    X_train: object = None,
    y_query: object = None,
    y_train: object = None,
    *,
    query_predictions: object = None,
    train_predictions: object = None,
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
    make_figure = load_figure_class()
    if k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}.")
    queries = read_queries(result, X_query, y_query, query_predictions)
    train = Train(X_train, read_classes("y_train", y_train), read_classes("train_predictions", train_predictions))
    sides = [read_side(result, train, k)]
    if opponents:
        sides.append(read_side(result, train, k, least=True))
    groups = [queries.captions(class_names), *(side.captions(class_names) for side in sides)]
    lines = max(text.count("\n") + 1 for group in groups for text in group)
    widths = [1, *(side.ids.shape[1] for side in sides)]
    page = Page(len(queries.pictures), widths, lines, figure, make_figure)
    shades = Shades([*queries.pictures, *(p for side in sides for p in side.pictures)], cmap)
    page.title(0, "Query")
    for row, picture in enumerate(queries.pictures):
        axes = page.cell(0, row, 0, f"query {row}")
        shades.draw(axes, picture)
        annotate(axes, groups[0][row], "", page.font, NEUTRAL, "solid")
    for group, side in enumerate(sides, 1):
        page.title(group, side.title, kernel_title(result))
        draw_side(page, group, side, groups[group], queries.classes("label"), shades)
    page.legend(sides, queries.classes("label"))
    drawn: Figure = page.figure
    return drawn


def plot_distributions(
    result: Result,
    y_train: object,
    train_predictions: object = None,
    *,
    X_query: object = None,
    y_query: object = None,
    query_predictions: object = None,
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
    make_figure = load_figure_class()
    queries = read_queries(result, X_query, y_query, query_predictions)
    charts = make_charts(result, queries, y_train, train_predictions, max_classes)
    captions = queries.captions(class_names, wrap=True)
    ratios = ([1.0] if queries.pictures else []) + [2.6] * len(charts)
    count = len(charts[0].classes[0])
    if figure is None:
        height = 0.6 + len(captions) * max(1.5, 0.4 + 0.13 * count)
        figure = make_figure(figsize=(1.1 * sum(ratios) + 0.8, height), layout="constrained")
    grid = figure.add_gridspec(len(captions), len(ratios), width_ratios=ratios)
    shades = Shades(queries.pictures, cmap)
    first = len(ratios) - len(charts)
    for row, caption in enumerate(captions):
        if queries.pictures:
            axes = figure.add_subplot(grid[row, 0], label=f"query {row}")
            shades.draw(axes, queries.pictures[row])
            annotate(axes, caption, "", FONT, NEUTRAL, "solid")
        for column, chart in enumerate(charts, first):
            axes = figure.add_subplot(grid[row, column], label=f"{chart.name} {row}")
            draw_bars(axes, chart, row, class_names, named=column == first)
            if not queries.pictures and column == first:
                axes.set_ylabel(
                    caption, fontsize=FONT, rotation=0, ha="right", va="center", labelpad=8, parse_math=False
                )
            if row == 0:
                axes.set_title(f"Mean {kernel_title(result)}, by {chart.name} class", fontsize=FONT + 1)
    return figure
