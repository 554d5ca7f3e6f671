"""Pictures of a result of an index: its neighbours as `Job.render` shows them, and its scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.plots.page import FONT, load_figure_class
from gradindex.plots.read import Result, kernel_title
from gradindex.plots.rendering import Renderer
from gradindex.plots.similar import plot_similar
from gradindex.search.answer import found_sides

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PROPONENT, _OPPONENT = "#0072B2", "#D55E00"


class _Shown(Sequence[Any]):
    """The training samples as they are shown, made when asked for."""

    def __init__(self, render: Renderer) -> None:
        self._render = render

    def __len__(self) -> int:
        return len(self._render.job.source)

    def __getitem__(self, i: Any) -> Any:
        shown = self._render(int(i))
        return "" if shown is None else shown.value


def plot_explanation(
    result: Result, k: int = 5, *, opponents: bool = True, figure: "Figure | None" = None, axes: "Axes | None" = None
) -> "Figure":
    """Draw each query beside its neighbours: pictures, texts or tables of features, whatever `Job.render` returns.

    What stands around the cells is described at `plot_similar`.

    Parameters
    ----------
    result
        From `Index.explain`, in the same process.
    k
        How many samples of each side; fewer if the result has fewer.
    opponents
        Whether to draw them.
    figure
        A figure or subfigure to draw into; None: a new one.
    axes
        Instead, axes of a grid, whose place the drawing takes.

    Raises
    ------
    ValueError
        If the result came from a file or from `GradientSimilarity`, which has no job: use `plot_similar`.
    ImportError
        If matplotlib is not installed.
    """
    load_figure_class()
    if result.view is None:
        raise ValueError("This result does not know its samples: use gradindex.plots.plot_similar with pictures.")
    job, x, ids = result.view
    render = Renderer(job)
    count = len(result.data["scores"])
    if ids is not None:
        shown = [render(int(i)) for i in np.atleast_1d(np.asarray(ids))]
    else:
        shown = [render.query(x, row) for row in range(count)]
    queries = ["" if one is None else one.value for one in shown]
    if axes is not None:
        place = axes.get_subplotspec()
        if place is None:
            raise ValueError("axes must be part of a grid (plt.subplots); give a figure or subfigure instead.")
        part: Any = axes.figure.add_subfigure(place)
        figure = part
        axes.remove()
    return plot_similar(
        result, queries, _Shown(render), class_names=job.class_names, k=k, opponents=opponents, figure=figure
    )


def plot_scores(result: Result, *, bins: int = 40, axes: "Axes | None" = None) -> "Figure":
    """Draw the distribution of a result's scores: proponents, opponents, or all samples where all are ranked.

    Parameters
    ----------
    result
        An explanation of m queries.
    bins
        Of the histogram.
    axes
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    make_figure = load_figure_class()
    if axes is None:
        axes = make_figure(figsize=(4.6, 3.0), layout="constrained").add_subplot()
    groups = {"proponent": (_PROPONENT, ""), "opponent": (_OPPONENT, "//")}
    scores = {side.name: np.asarray(side.scores).ravel() for side in found_sides(result.data)}
    scores = {name: values[np.isfinite(values)] for name, values in scores.items()}
    every = np.concatenate(list(scores.values()))
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for name, values in scores.items():
        colour, hatch = groups[name]
        axes.hist(values, edges.tolist(), color=colour, alpha=0.8, hatch=hatch, label=f"{name}s")
    axes.set_xlabel(kernel_title(result))
    axes.set_ylabel("samples")
    if len(scores) > 1:
        axes.legend(fontsize=FONT, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT - 1)
    figure: Any = axes.figure
    return figure  # type: ignore[no-any-return]
