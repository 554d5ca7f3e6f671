"""The relevance metrics of Hanawa et al. (2021), "Evaluation of Similarity-based Explanations", behind one door.

>>> from gradindex import relevance
>>> relevance.parse("RIF")
('cos', 'IF')
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradindex.metric_names import METRICS, FeatureMap, check_growth, kernel_of, options, parse, title
from gradindex.relevance.metric_rows import MetricRows

if TYPE_CHECKING:
    from gradindex.job import Job
    from gradindex.relevance.base import Metric

__all__ = [
    "METRICS",
    "FeatureMap",
    "check_growth",
    "kernel_of",
    "metric",
    "metrics",
    "options",
    "parse",
    "rows_of",
    "spec",
    "title",
]


def spec(name: str, given: Mapping[str, Any] | None = None) -> MetricRows:
    """Return a metric that an index can hold, with its options, as JSON-ready values: what `Job.metric` takes.

    >>> spec("cos-FK", {"damping": 0.001})
    {'name': 'cos-FK', 'damping': 0.001}

    Raises
    ------
    ValueError
        If there is no such metric or option, an option has a value that makes no sense, or the metric is an ℓ2
        distance, which is no inner product.
    """
    from gradindex.relevance.base import Options

    similarity, feature = parse(name)
    if similarity == "l2":
        others = {"grad": "'GC' or ", name: ""}  # a plugin's feature has the metric's name
        instead = others.get(feature, f"'cos-{feature}' or ")
        raise ValueError(
            f"{name!r} is no inner product, so it makes no index. Use {instead}gradindex.relevance.metric."
        )
    given = dict(given or {})
    if feature in ("IF", "FK"):
        given.setdefault("damping", None)
    if unknown := sorted(given.keys() - Options.__dataclass_fields__.keys()):
        options = ", ".join(Options.__dataclass_fields__)
        raise ValueError(f"There is no option {unknown[0]!r} of a metric. Expected some of: {options}.")
    if given.get("layers") is not None:
        given["layers"] = list(given["layers"])
    Options(**given)
    return MetricRows({"name": "cos-IF" if name == "RIF" else name, **given})


def rows_of(saved: Mapping[str, Any] | None) -> MetricRows | None:
    """Return the metric whose `MetricRows.to_json` an index's header has; None for gradients. Raises like `spec`.

    Indexes that do not say how IF and FK are damped were built when the study's rule was the only one.
    """
    if saved is None:
        return None
    found = options(saved)
    if parse(saved["name"])[1] in ("IF", "FK"):
        found.setdefault("damping", "study")
    return spec(saved["name"], found)


def metric(name: str, job: "Job", **options: object) -> "Metric":
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
    from gradindex.relevance.features import Space

    for name in names:
        parse(name)
    space = Space(job, Options(**options))
    return {name: Metric(name, space) for name in names}
