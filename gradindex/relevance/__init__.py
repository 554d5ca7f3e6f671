"""The relevance metrics of Hanawa et al. (2021), "Evaluation of Similarity-based Explanations", behind one door.

>>> from gradindex import relevance
>>> relevance.parse("RIF")
('cos', 'IF')
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.job import Job
    from gradindex.relevance.base import Metric

_GRADIENT = {
    "GD": ("dot", "grad"),
    "GC": ("cos", "grad"),
    "l2-grad": ("l2", "grad"),
    "IF": ("dot", "IF"),
    "cos-IF": ("cos", "IF"),
    "l2-IF": ("l2", "IF"),
    "FK": ("dot", "FK"),
    "cos-FK": ("cos", "FK"),
    "l2-FK": ("l2", "FK"),
}
_TABLE = {f"{s}-{f}": (s, f) for f in ("x", "last", "all") for s in ("l2", "cos", "dot")} | _GRADIENT
METRICS = tuple(_TABLE)
"""Names of all metrics; ``RIF`` is another name of ``cos-IF``."""


def parse(name: str) -> tuple[str, str]:
    """Return (similarity, feature) of a metric.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    found = _TABLE.get("cos-IF" if name == "RIF" else name)
    if found is None:
        options = " | ".join(f"'{one}'" for one in (*METRICS, "RIF"))
        raise ValueError(f"Unknown metric {name!r}. Expected one of: {options}.")
    return found


def metric(name: str, job: "Job", **options: Any) -> "Metric":
    """Return the metric `name` on a job's model, loss and dataset; see `Options` for the options.

    ``metric("GC", job).scores(X, y)`` are the scores (m, n), larger is more relevant.

    Raises
    ------
    ValueError
        If there is no such metric, or an option has a value that makes no sense.
    TypeError
        If there is no such option.
    """
    return metrics([name], job, **options)[name]


def metrics(names: Sequence[str], job: "Job", **options: Any) -> "dict[str, Metric]":
    """Return several metrics by name that share the gradients, features and matrices they need."""
    from gradindex.relevance.base import Metric, Options
    from gradindex.relevance.space import Space

    for name in names:
        parse(name)
    space = Space(job, Options(**options))
    return {name: Metric(name, space) for name in names}
