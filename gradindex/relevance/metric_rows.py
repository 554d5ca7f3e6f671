"""A metric's rows in the place of gradients, by its name and options."""

from dataclasses import replace
from typing import Any

from gradindex.gradients.engine import Engine
from gradindex.job import Job


class MetricRows(dict[str, Any]):
    """Makes the rows of a metric; its entries are the name and the options, JSON-ready, as an index's header has them.

    Made by `gradindex.relevance.spec`.
    """

    def engine(self, job: Job) -> Engine:
        """Return the engine of a job's rows: of GC and GD, that of its gradients."""
        plain = replace(job, metric=None)
        if self["name"] in ("GC", "GD"):
            return plain.engine
        from gradindex.relevance.engine import FeatureEngine

        return FeatureEngine(plain, dict(self))

    def to_json(self) -> dict[str, Any]:
        """Return name and options as JSON-ready values."""
        return dict(self)
