"""What an audit measured, and where it is kept."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gradindex.runtime.interrupts import kept_if_possible
from gradindex.search.agreement import Estimate
from gradindex.search.coverage import Coverage
from gradindex.store import Store, changes
from gradindex.store.layout import AUDIT
from gradindex.store.manifest import publish

DEPTHS = 1, 10, 100
INDEX, SKETCH, FINAL = "index against store", "sketch against exact", "answer against exact"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Measured agreement of an index with the exact kernel, each with its 95 % interval.

    `recall` is that of the final answer (after exact re-ranking of `rerank` candidates), `search_recall` that of
    the index's own order. `rank_correlation` is Spearman's, between sketched and exact kernel values over
    all training samples (10,000 of them if there are more), mean over queries.

    `stages` has, for the index's own order against a scan of the stored rows, the stored rows' order against the exact
    kernel, and the final answer against the exact kernel: recall@1, @10 and @100 and a rank correlation, each
    (value, low, high); of places in the two lists of 100, except for the sketch, where it is `rank_correlation`.

    If time ran out before all rows were compared (`compared` < `rows`), recalls against the exact kernel are
    upper limits: rows that were not compared can only push others out of the true answer.
    """

    kernel: str
    k: int
    queries: int
    rerank: int
    rows: int
    seed: int
    recall: float
    recall_interval: tuple[float, float]
    search_recall: float
    search_recall_interval: tuple[float, float]
    rank_correlation: float
    rank_correlation_interval: tuple[float, float]
    seconds: float
    compared: int
    drawn: str
    stages: dict[str, dict[str, Estimate]]
    pairs: list[tuple[float, float]] = field(repr=False)
    """Some pairs (sketched, exact) of cosines."""
    steps: int = 0
    """Kernel values by training steps that were compared with those of answers and of the audit itself."""
    steps_error: float = 0.0
    """The largest difference of those, as a cosine."""
    coverage: Coverage | None = None
    """Whether the recall that was asked for holds."""

    @property
    def complete(self) -> bool:
        """Whether every row was compared."""
        return self.compared == self.rows

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON-ready values."""
        return dataclasses.asdict(self)

    def metrics(self, prefix: str = "gradindex/") -> dict[str, float]:
        """Return the audit's numbers by flat names, such as ``"gradindex/recall@10"``, for experiment trackers.

        Parameters
        ----------
        prefix
            In front of every name.
        """
        found: dict[str, float] = {f"recall@{self.k}": self.recall, f"search_recall@{self.k}": self.search_recall}
        found["rank_correlation"] = self.rank_correlation
        intervals = self.recall_interval, self.search_recall_interval, self.rank_correlation_interval
        for name, (low, high) in zip(tuple(found), intervals, strict=True):
            found |= {f"{name}_low": low, f"{name}_high": high}
        found |= {"queries": self.queries, "rerank": self.rerank, "rows": self.rows, "compared": self.compared}
        found |= {"steps": self.steps, "steps_error": self.steps_error, "seconds": self.seconds}
        return {prefix + name: float(value) for name, value in found.items()}

    def __str__(self) -> str:
        def line(name: str, found: Estimate) -> str:
            return f"{name:<42} {found[0]:.4f}  [{found[1]:.4f}, {found[2]:.4f}]"

        lines = [
            f"{self.queries} {self.drawn} as queries against {self.rows} rows, {self.kernel}",
            line(f"recall@{self.k}, {self.rerank} exact checks", (self.recall, *self.recall_interval)),
            line(f"recall@{self.k}, no exact checks", (self.search_recall, *self.search_recall_interval)),
            line("rank correlation, sketch", (self.rank_correlation, *self.rank_correlation_interval)),
        ]
        for stage, found in self.stages.items():
            lines += [line(f"{stage}, {name}", value) for name, value in found.items()]
        if self.coverage is not None:
            lines += str(self.coverage).splitlines()
        if self.steps:
            apart = f"off by up to {self.steps_error:.0e}" if self.steps_error else "apart by rounding alone"
            lines.append(f"{self.steps:,} exact values against training steps: {apart}")
        if not self.complete:
            lines.append(f"time ran out: {self.compared} of {self.rows} rows compared, so recalls are upper limits")
        return "\n".join(lines)


def kept(store: Store, audit: Audit) -> Audit:
    """Save an audit beside the index, where that is possible, and return it."""
    with kept_if_possible(store.path, "the audit"), changes.in_place(store.path, store.header):
        publish(store.path / AUDIT, audit.to_json(), replace=True)
    return audit
