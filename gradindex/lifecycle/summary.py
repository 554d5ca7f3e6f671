"""What a build did."""

import dataclasses
import resource
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """Rows of the index and rows embedded by this call, seconds, samples a second, peak memory, and paths.

    `peak_bytes` is the largest resident size of the whole process so far; `paths` counts parameters by the way
    their gradients were computed.
    """

    rows: int
    embedded: int
    embedding_seconds: float
    indexing_seconds: float
    peak_bytes: int
    store_bytes: int
    index_bytes: int
    paths: dict[str, int]

    @property
    def rate(self) -> float:
        """Samples embedded a second."""
        return self.embedded / self.embedding_seconds if self.embedded else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return {**dataclasses.asdict(self), "rate": self.rate}

    def metrics(self, prefix: str = "gradindex/") -> dict[str, float]:
        """Return the summary's numbers by flat names, such as ``"gradindex/rate"``, for experiment trackers.

        Parameters
        ----------
        prefix
            In front of every name.
        """
        numbers = {name: value for name, value in self.to_json().items() if name != "paths"}
        numbers |= {f"parameters {path}": count for path, count in self.paths.items()}
        return {prefix + name: float(value) for name, value in numbers.items()}

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.embedded:,} embedded in {self.embedding_seconds:.1f} s ({self.rate:,.0f}/s), "
            f"indexed in {self.indexing_seconds:.1f} s; peak memory {self.peak_bytes / 2**30:.2f} GiB, store "
            f"{self.store_bytes / self.rows:,.0f} and index {self.index_bytes / self.rows:,.0f} bytes a row; "
            f"parameters by path: {', '.join(f'{path} {n}' for path, n in self.paths.items())}"
        )


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def count_paths(paths: dict[str, str]) -> dict[str, int]:
    """Return how many parameters take each path."""
    return dict(Counter(paths.values()))
