"""Pictures of an explanation: queries beside their neighbours, and mean scores per class."""

from gradindex.plots.audit import plot_audit
from gradindex.plots.results import plot_explanation, plot_scores
from gradindex.plots.similar import plot_distributions, plot_similar

__all__ = ["plot_audit", "plot_distributions", "plot_explanation", "plot_scores", "plot_similar"]
