"""Names of the relevance metrics, and what a name alone says: similarity, feature, kernel of the rows, title.

>>> parse("RIF")
('cos', 'IF')
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.kernels import Kernel, KernelName
from gradindex.runtime import plugins
from gradindex.words import choose_word

if TYPE_CHECKING:
    from gradindex.data.names import Tree
    from gradindex.job import Job

SIMILARITIES = "cos", "dot", "l2"


@dataclass(frozen=True)
class FeatureMap:
    """A metric of another package, for its entry points ``gradindex.metrics``; the entry's name is the metric's.

    Parameters
    ----------
    similarity
        ``"cos"``, ``"dot"`` or ``"l2"``: how rows are compared.
    rows
        ``rows(job, x)`` returns the rows (b, d) of a batch of inputs, the same numbers for a sample in any batch.

    Raises
    ------
    ValueError
        If there is no such similarity.
    """

    similarity: str
    rows: "Callable[[Job, Tree], NDArray[np.floating]]"

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            expected = " | ".join(map(repr, SIMILARITIES))
            raise ValueError(f"Unknown similarity {self.similarity!r}. Expected one of: {expected}.")


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
    """Return (similarity, feature) of a metric; the feature of another package's metric has the metric's name.

    Raises
    ------
    ValueError
        If there is no such metric, or several packages have it.
    ImportError, TypeError
        If the package that has it cannot be imported, or has something else under its name.
    """
    found = _TABLE.get("cos-IF" if name == "RIF" else name)
    if found is not None:
        return found
    plugin = feature_map(name)
    if plugin is None:
        options = " | ".join(f"'{one}'" for one in (*METRICS, "RIF", *plugins.names(plugins.METRICS)))
        raise ValueError(f"Unknown metric {name!r}. Expected one of: {options}.")
    return plugin.similarity, name


def feature_map(name: str) -> FeatureMap | None:
    """Return a metric of another package by its name; None if no installed package has it. Raises like `parse`."""
    plugin = plugins.load(plugins.METRICS, name)
    if plugin is None:
        return None
    if not isinstance(plugin.value, FeatureMap):
        raise TypeError(f"{plugin.described} is no gradindex.relevance.FeatureMap: {plugin.value!r}.")
    return plugin.value


def of_gradients(feature: str) -> bool:
    """Whether the rows of a feature are made of gradients."""
    return feature in ("grad", "IF", "FK")


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
        return Kernel(choose_word(KernelName, kernel or Kernel.COS, "kernel").value)
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
