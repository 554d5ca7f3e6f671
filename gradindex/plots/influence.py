"""Pictures of influence: training samples in the plane coloured by it, and self-influence against the loss."""

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from gradindex.plots.page import FONT, NEUTRAL, load_figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_influence", "plot_self_influence"]

_PLAIN, _MARKED = "#0072B2", "#D55E00"
_DECADES = 20  # on a logarithmic axis of less the labels of its ticks overlap
_RANGE = 99  # percentile of |influence| at the ends of the colours


def plot_influence(
    x: ArrayLike, influence: ArrayLike, z: ArrayLike | None = None, *, title: str = "", axes: "Axes | None" = None
) -> "Figure":
    """Draw training samples in the plane, coloured by their influence: red for proponents, blue for opponents.

    Parameters
    ----------
    x
        Training samples, (n, 2).
    influence
        Their influence on one test sample, or on themselves, (n,). The colours end at
        the 99th percentile.
    z
        The test sample (2,), drawn as a green cross; None for self-influence, coloured from least to greatest.
    title
        Above the picture.
    axes
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the shapes do not fit.
    ImportError
        If matplotlib is not installed.
    """
    make_figure = load_figure_class()
    x, influence = np.asarray(x, np.float64), np.asarray(influence, np.float64)
    if x.ndim != 2 or x.shape[1] != 2 or influence.shape != (len(x),) or len(x) == 0:
        raise ValueError(f"Expected x (n, 2) and influence (n,), n > 0, got {x.shape} and {influence.shape}.")
    if z is not None and np.shape(z) != (2,):
        raise ValueError(f"Expected z of shape (2,), got {np.shape(z)}.")
    if axes is None:
        axes = make_figure(figsize=(4.4, 3.6), layout="constrained").add_subplot()
    if z is None:
        low, high = np.percentile(influence, [100 - _RANGE, _RANGE])
    else:
        high = max(float(np.percentile(np.abs(influence), _RANGE)), 1e-12)
        low = -high
    order = np.argsort(np.abs(influence), kind="stable")  # strong ones on top
    across, up = x[order].T
    drawn = axes.scatter(across, up, s=14, c=influence[order], cmap="coolwarm", vmin=low, vmax=high, linewidths=0)
    if z is not None:
        axes.plot(*np.asarray(z), color="#009E73", marker="x", markersize=9, markeredgewidth=2.5)
    axes.set_title(title, fontsize=FONT * 1.2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=FONT - 1, color=NEUTRAL)
    figure = cast("Figure", axes.figure)  # or a part of one, which does the same
    figure.colorbar(drawn, ax=axes, shrink=0.9, extend="both").ax.tick_params(labelsize=FONT - 1)
    return figure


def plot_self_influence(
    values: ArrayLike,
    losses: ArrayLike | None = None,
    marked: ArrayLike | None = None,
    *,
    title: str = "",
    marked_title: str = "marked",
) -> "Figure":
    """Draw the distribution of self-influence, and its relation to the loss.

    Parameters
    ----------
    values
        Self-influence of n samples, (n,). Zeros, which a logarithm lacks, are counted in the title.
    losses
        Their losses, (n,); None leaves the second picture out.
    marked
        (n,) booleans: samples in another colour, such as those known to be mislabelled.
    title
        Above the pictures.
    marked_title
        What the legend calls them.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the shapes do not fit, or no value is positive.
    ImportError
        If matplotlib is not installed.
    """
    make_figure = load_figure_class()
    values = np.asarray(values, np.float64)
    marked = np.zeros(values.shape, bool) if marked is None else np.asarray(marked, bool)
    losses = None if losses is None else np.asarray(losses, np.float64)
    if values.ndim != 1 or marked.shape != values.shape or (losses is not None and losses.shape != values.shape):
        shapes = [values.shape, None if losses is None else losses.shape, marked.shape]
        raise ValueError(f"Expected values, losses and marked of one shape (n,), got {', '.join(map(str, shapes))}.")
    positive = values > 0
    if not positive.any():
        raise ValueError("No self-influence is positive: there is nothing to draw.")
    figure = make_figure(figsize=(4.2 if losses is None else 8.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 1 if losses is None else 2, squeeze=False)[0]
    logs = np.log10(values[positive])
    edges = 10 ** np.linspace(logs.min() - 1e-3, logs.max() + 1e-3, 41)
    groups = [(~marked, _PLAIN, "all others"), (marked, _MARKED, marked_title)]
    groups = [group for group in groups if (group[0] & positive).any()]
    for chosen, colour, name in groups:
        panels[0].hist(values[chosen & positive], edges, color=colour, alpha=0.75, label=name)
        if losses is not None:
            panels[1].scatter(
                losses[chosen & positive], values[chosen & positive], s=6, color=colour, linewidths=0, alpha=0.5
            )
    panels[0].set(xscale="log", yscale="log", xlabel="self-influence", ylabel="samples")
    if marked.any():
        panels[0].legend(fontsize=FONT, frameon=False)
    if losses is not None:
        low, high = losses[positive].min(), losses[positive].max()
        scale = "log" if 0 < low < high / _DECADES else "linear"
        panels[1].set(xscale=scale, yscale="log", xlabel="loss", ylabel="self-influence")
    for axes in panels:
        axes.tick_params(labelsize=FONT - 1)
        axes.spines[["top", "right"]].set_visible(False)
    zeros = int((~positive).sum())
    figure.suptitle(f"{title} ({zeros} zeros not drawn)" if zeros else title, fontsize=FONT * 1.2)
    return figure
