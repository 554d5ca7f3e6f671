"""The adapter for quanda; the code is in `gradindex.interop.quanda`."""

from gradindex.interop.quanda import GradindexExplainer

__all__ = ["GradindexExplainer"]
