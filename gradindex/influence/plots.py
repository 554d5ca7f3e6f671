"""Pictures of influence; the code is in `gradindex.plots.influence`."""

from gradindex.plots.influence import plot_influence, plot_self_influence

__all__ = ["plot_influence", "plot_self_influence"]
