"""Kernels side by side: their linear datamodeling scores, a table, a picture, and one sentence."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.evaluation.lds import LDS, Estimate
from gradindex.evaluation.removal import Removal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_SURE = 0.95  # the share of resamples from which on a kernel counts as told apart


@dataclass(frozen=True)
class Comparison:
    """What `Bank.compare` found.

    `scores`: the LDS of each kernel; `reference`: the kernel that others are compared with; `bytes_per_row` of those
    whose cost is known; `removal`: what removing their proponents did, if that was tried; `meta`: the bank's sizes.
    """

    scores: dict[str, LDS]
    reference: str
    bytes_per_row: Mapping[str, int] = field(default_factory=dict)
    removal: Removal | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The kernel with the largest LDS; of equal ones the first."""
        return max(self.scores, key=lambda name: self.scores[name].value)

    @property
    def ceiling(self) -> Estimate | None:
        """The noise ceiling of the bank; None with one model a subset."""
        return next(iter(self.scores.values())).ceiling

    def difference(self, name: str, other: str | None = None) -> Estimate:
        """Return a kernel's LDS minus another's (the reference's), paired: in the same queries and subsets."""
        one, two = self.scores[name], self.scores[other or self.reference]
        return Estimate.of(one.value - two.value, one.resampled - two.resampled)

    def better(self, name: str, other: str) -> float:
        """Return in which share of the resamples, moved as intervals are, `name` has the larger LDS."""
        one, two = self.scores[name], self.scores[other]
        differences = one.resampled - two.resampled
        return float((differences - differences.mean() + one.value - two.value > 0).mean())

    def rivals(self) -> list[str]:
        """Return the kernels that the bank cannot tell from the best one, best first."""
        best = self.best
        left = [name for name in self.scores if name != best and self.better(best, name) < _SURE]
        return sorted(left, key=lambda name: -self.scores[name].value)

    def sentence(self) -> str:
        """Return one sentence: which kernel to use for this model, how sure that is, and what it costs."""
        best, score = self.best, self.scores[self.best]
        if score.estimate.low <= 0:
            return (
                f"No kernel predicts retraining here: the best, {best}, has an LDS of {score.estimate}, which is not "
                "told from 0; a bank with more subsets, or more models on each, may tell more."
            )
        reached = "" if score.share is None else f", {score.share:.0%} of what could be reached"
        cost = f", at {self.bytes_per_row[best]:,} bytes a row" if best in self.bytes_per_row else ""
        rivals = self.rivals()
        if rivals:
            named = ", ".join(rivals[:3]) + (" and others" if len(rivals) > 3 else "")
            sure = f"the bank does not tell it from {named}"
            cheaper = [name for name in rivals if name in self.bytes_per_row and best in self.bytes_per_row]
            cheaper = [name for name in cheaper if self.bytes_per_row[name] < self.bytes_per_row[best]]
            if cheaper:
                least = min(cheaper, key=lambda name: self.bytes_per_row[name])
                sure += f", of which {least} takes {self.bytes_per_row[least]:,} bytes a row"
        elif len(self.scores) > 1:
            second = max((name for name in self.scores if name != best), key=lambda name: self.scores[name].value)
            sure = f"it beats the next, {second}, in {self.better(best, second):.1%} of the resamples"
        else:
            sure = "nothing else was compared"
        return f"Use {best} for this model: its LDS is {score.estimate}{reached}{cost}; {sure}."

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON's types, differences and the sentence included."""
        kernels = {
            name: {
                **score.to_dict(),
                "difference": dataclasses.asdict(self.difference(name)),
                "bytes_per_row": self.bytes_per_row.get(name),
            }
            for name, score in self.scores.items()
        }
        return {
            "meta": dict(self.meta),
            "reference": self.reference,
            "ceiling": None if self.ceiling is None else dataclasses.asdict(self.ceiling),
            "kernels": kernels,
            "removal": None if self.removal is None else self.removal.to_dict(),
            "sentence": self.sentence(),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the JSON text; write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        if path is not None:
            from gradindex.store import location

            location.save(location.on_disk(path, "to_json"), (text + "\n").encode())
        return text

    def table(self) -> "Table":
        """Return a table, best kernel first, of LDS, the paired difference to the reference, share and bytes."""
        from rich import box
        from rich.table import Table

        ceiling = "unknown (one model a subset)" if self.ceiling is None else str(self.ceiling)
        first = next(iter(self.scores.values()))
        table = Table(
            title=f"LDS with 95 % intervals: {first.subsets} subsets, {first.models} model(s) each, "
            f"{len(first.of_queries)} queries; noise ceiling {ceiling}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            title_style="bold",
        )
        table.add_column("kernel")
        for title in ("LDS", f"minus {self.reference}", "of ceiling", "bytes a row"):
            table.add_column(title, justify="right")
        for name in sorted(self.scores, key=lambda one: -self.scores[one].value):
            score = self.scores[name]
            share = "–" if score.share is None else f"{score.share:.0%}"
            bytes_ = f"{self.bytes_per_row[name]:,}" if name in self.bytes_per_row else "–"
            paired = "–" if name == self.reference else str(self.difference(name))
            table.add_row(name, str(score.estimate), paired, share, bytes_)
        return table

    def chart(self) -> "Figure":
        """Return a bar chart of the LDS with intervals, and the noise ceiling as a line."""
        from matplotlib.figure import Figure

        names = sorted(self.scores, key=lambda one: self.scores[one].value)
        estimates = [self.scores[name].estimate for name in names]
        values = np.array([one.value for one in estimates])
        sides = np.array([[one.value - one.low for one in estimates], [one.high - one.value for one in estimates]])
        figure = Figure(figsize=(6.5, 1.3 + 0.32 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        colours = ["#0072B2" if name == self.best else "#9bb8a3" for name in names]
        axes.barh(range(len(names)), values, xerr=np.maximum(sides, 0), color=colours, capsize=2)
        axes.set_yticks(range(len(names)), names)
        if self.ceiling is not None:
            axes.axvline(self.ceiling.value, color="#D55E00", linestyle="--", label="noise ceiling")
            axes.legend(loc="lower right", frameon=False)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("linear datamodeling score, 95 % intervals")
        axes.spines[["top", "right"]].set_visible(False)
        return figure
