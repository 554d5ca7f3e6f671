"""Whether the recall that was asked for holds: recall of held-out queries, of all and by class and norm."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.data import labels
from gradindex.data.names import Tree
from gradindex.kernels import Kernel
from gradindex.search import agreement
from gradindex.search.agreement import Estimate
from gradindex.search.options import SearchOptions

ROUNDING = 2e-6
"""Of the kernel's weight: values so near to the k-th are as good, whichever way they were computed."""
_QUARTERS = 4
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Coverage:
    """Recall of proponents where `wanted` was asked for, of so many `queries`, each (mean, low, high) with 95 %.

    A calibration promises the mean over all queries; `below` is the share of queries with less than was wanted, and
    `by_class` and `by_norm` (quarters, named by the norms of the queries' gradients) are means of some of them, which
    nothing promises. Rows of equal values count alike.
    """

    wanted: float
    queries: int
    recall: Estimate
    below: float
    by_class: dict[str, Estimate]
    by_norm: dict[str, Estimate]

    @property
    def holds(self) -> bool:
        """Whether the wanted recall is not above the interval of what was measured."""
        return self.recall[2] >= self.wanted

    def __str__(self) -> str:
        def line(name: str, found: Estimate) -> str:
            return f"{name:<42} {found[0]:.4f}  [{found[1]:.4f}, {found[2]:.4f}]"

        lines = [
            line(f"recall where {self.wanted:g} was wanted", self.recall),
            f"{'queries with less':<42} {self.below:.4f}",
        ]
        parts = {"class": self.by_class, "norm": self.by_norm}
        lines += [line(f"  {kind} {name}", value) for kind, found in parts.items() for name, value in found.items()]
        return "\n".join(lines)


def coverage_of(
    options: SearchOptions,
    scores: NDArray[np.float64],
    truth: NDArray[np.float64],
    norms: NDArray[np.float64],
    kernel: Kernel,
    y: Tree,
) -> Coverage | None:
    """Return whether the recall that was asked for holds; None where none was.

    Parameters
    ----------
    options
        What was asked for.
    scores
        Of the answers' proponents, (m, k), NaN for missing ones.
    truth
        The highest kernel values of all rows, (m, c), descending.
    norms
        Of the queries' gradients, (m,).
    kernel
        The kernel.
    y
        The queries' labels.
    """
    if options.recall is None:
        return None
    kth = truth[:, options.k - 1]
    weights = np.array([float(kernels.weights(kernel, norm, np.array([norm]))[0]) for norm in norms])
    recalls = (scores >= (kth - ROUNDING * weights)[:, None]).mean(axis=1)
    edges = np.quantile(norms, np.arange(1, _QUARTERS) / _QUARTERS)
    quarter = np.searchsorted(edges, norms, "right")
    by_norm = {}
    for number in np.unique(quarter):
        some = norms[quarter == number]
        by_norm[f"{some.min():.3g} to {some.max():.3g}"] = agreement.share(recalls[quarter == number])
    classes = labels.as_classes(y)
    by_class: dict[str, Estimate] = {}
    if classes is not None and len(every := np.unique(classes)) <= _MOST_CLASSES:
        by_class = {str(one): agreement.share(recalls[classes == one]) for one in every}
    below = float((recalls < options.recall - 1e-12).mean())
    return Coverage(options.recall, len(recalls), agreement.share(recalls), below, by_class, by_norm)
