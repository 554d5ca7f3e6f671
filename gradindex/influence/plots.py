"""Pictures of influence: training samples in the plane coloured by it, and self-influence against the loss."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.plots.page import FONT, NEUTRAL, load_figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_influence"]

_RANGE = 99  # percentile of |influence| at the ends of the colours


def plot_influence(x: Any, influence: Any, z: Any = None, *, title: str = "", axes: "Axes | None" = None) -> "Figure":
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
        axes.plot(*z, color="#009E73", marker="x", markersize=9, markeredgewidth=2.5)
    axes.set_title(title, fontsize=FONT * 1.2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=FONT - 1, color=NEUTRAL)
    figure: Any = axes.figure
    figure.colorbar(drawn, ax=axes, shrink=0.9, extend="both").ax.tick_params(labelsize=FONT - 1)
    return figure  # type: ignore[no-any-return]
