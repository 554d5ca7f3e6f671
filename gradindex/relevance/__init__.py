"""The relevance metrics of Hanawa et al. (2021), "Evaluation of Similarity-based Explanations", behind one door.

>>> from gradindex import relevance
>>> relevance.parse("RIF")
('cos', 'IF')
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradindex.kernels import Kernel
from gradindex.words import choose_word

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


def spec(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a metric that an index can hold, with its options, as JSON-ready values.

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
        raise ValueError(
            f"{name!r} is no inner product, so it makes no index. Use 'cos-{feature}' or gradindex.relevance.metric."
            if feature != "grad"
            else f"{name!r} is no inner product, so it makes no index. Use 'GC' or gradindex.relevance.metric."
        )
    given = dict(given or {})
    if unknown := sorted(given.keys() - Options.__dataclass_fields__.keys()):
        options = ", ".join(Options.__dataclass_fields__)
        raise ValueError(f"There is no option {unknown[0]!r} of a metric. Expected some of: {options}.")
    if given.get("layers") is not None:
        given["layers"] = list(given["layers"])
    Options(**given)
    return {"name": "cos-IF" if name == "RIF" else name, **given}


def options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `Options` that a `spec` holds."""
    found = {name: value for name, value in spec.items() if name != "name"}
    return found if found.get("layers") is None else {**found, "layers": tuple(found["layers"])}


def kernel_of(spec: Mapping[str, Any] | None, kernel: str | None = None) -> Kernel:
    """Return the kernel of rows by which an index answers: that of its metric, ``grad_cos`` if it has none.

    Raises
    ------
    ValueError
        If there is no such kernel, or the index holds rows that are no gradients and `kernel` is not their metric.
    """
    if spec is None:
        return choose_word(Kernel, kernel or Kernel.COS, "kernel")
    name = spec["name"]
    similarity, feature = parse(name)
    if kernel is None or kernel == name:
        return Kernel.COS if similarity == "cos" else Kernel.DOT
    if feature == "grad":
        return choose_word(Kernel, kernel, "kernel")
    raise ValueError(
        f"This index holds rows of the metric {name!r}, no gradients, so the kernel {kernel!r} has no meaning for it. "
        f"Leave kernel out, or build an index without metric."
    )


def check_growth(spec: Mapping[str, Any] | None) -> None:
    """Raise ValueError if rows of the metric would be other ones with other training samples."""
    if spec is not None and parse(spec["name"])[1] in ("IF", "FK"):
        raise ValueError(
            f"Rows of {spec['name']!r} carry a matrix of all training samples, so some cannot be embedded alone: build "
            "the index anew."
        )


def title(spec: Mapping[str, Any] | None, kernel: Kernel) -> str:
    """Return what to call the values of a kernel: its own name for gradients, else the metric's."""
    return kernel.value if spec is None or parse(spec["name"])[1] == "grad" else str(spec["name"])


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
    from gradindex.relevance.features import Space

    for name in names:
        parse(name)
    space = Space(job, Options(**options))
    return {name: Metric(name, space) for name in names}
