"""Pictures of an audit: recall against latency, and sketched against exact cosines."""

from typing import TYPE_CHECKING

import numpy as np

from gradindex.plots.page import load_figure_class
from gradindex.search.audit_result import Audit
from gradindex.search.tuning import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_audit(audit: Audit, curve: Curve | None = None) -> "Figure":
    """Draw the sketched against the exact cosines of an audit, and the operating points of the index beside them.

    Parameters
    ----------
    audit
        From `Index.verify`.
    curve
        `Index.curve`, which `Index.tune` measures; None: without the operating points.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    figure: Figure = load_figure_class()(figsize=(9.6 if curve else 4.8, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
    panel = panels[0]
    sketched, exact = np.array(audit.pairs).T
    low, high = min(sketched.min(), exact.min()), max(sketched.max(), exact.max())
    panel.plot([low, high], [low, high], color="0.6", linewidth=1)
    panel.scatter(exact, sketched, s=5, alpha=0.35, linewidths=0)
    panel.set_xlabel(f"exact {audit.kernel}")
    panel.set_ylabel("from the stored sketches")
    panel.set_title(f"rank correlation {audit.rank_correlation:.3f}", fontsize=10)
    if curve is not None:
        panel = panels[1]
        points = np.array([[1e3 * point.seconds, point.recall] for point in curve.points])
        best = np.array([point.optimal for point in curve.points])
        panel.scatter(*points[~best].T, s=14, color="0.7", label="dominated")
        panel.plot(*points[best].T, marker="o", markersize=4, label="operating points")
        for point in curve.points:
            if point.optimal and point.key:
                at = (1e3 * point.seconds, point.recall)
                panel.annotate(point.key, at, textcoords="offset points", xytext=(4, -9), fontsize=7)
        panel.set_xscale("log")
        panel.set_xlabel("milliseconds a query")
        panel.set_ylabel(f"recall@{curve.k} of the store's scan")
        panel.set_title(f"{curve.queries} queries", fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    return figure
