"""The outcome of an evaluation: a table, JSON, a bar chart."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Result:
    """Values of every test and metric, one a repeat, and what they came from.

    `values` maps test to metric to its values; `accuracy` maps ``"class"`` and ``"subclass"`` to the models'
    test accuracies; `meta` holds seeds, versions, sizes and solvers.
    """

    values: dict[str, dict[str, list[float]]]
    accuracy: dict[str, list[float]]
    meta: dict[str, Any]

    def mean(self, test: str, metric: str) -> float:
        """Return the mean over repeats."""
        return float(np.mean(self.values[test][metric]))

    def std(self, test: str, metric: str) -> float:
        """Return the standard deviation over repeats (of the sample; 0 for one repeat)."""
        values = self.values[test][metric]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return everything, with means and deviations, as JSON's types."""
        summary = {
            test: {name: {"mean": self.mean(test, name), "std": self.std(test, name)} for name in rows}
            for test, rows in self.values.items()
        }
        return {"meta": self.meta, "summary": summary, "accuracy": self.accuracy, "values": self.values}

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the JSON text; write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        if path is not None:
            from gradindex.store import location

            location.save(location.on_disk(path, "to_json"), (text + "\n").encode())
        return text

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Return the result whose JSON text this is."""
        found = json.loads(text)
        return cls(found["values"], found["accuracy"], found["meta"])

    def table(self) -> "Table":
        """Return a table: a row a metric, a column a test, mean ± std."""
        from rich import box
        from rich.table import Table

        repeats, queries = self.meta["repeats"], self.meta["queries"]
        table = Table(
            title=f"Mean ± std over {repeats} repeat(s), {queries} queries each; randomization: nearer 0 is better",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            title_style="bold",
        )
        table.add_column("metric")
        for test in self.values:
            table.add_column(test, justify="right")
        for name in self.meta["metrics"]:
            cells = [
                f"{self.mean(test, name):.3f} ± {self.std(test, name):.3f}" if name in rows else "–"
                for test, rows in self.values.items()
            ]
            table.add_row(name, *cells)
        return table

    def chart(self) -> "Figure":
        """Return a bar chart like the study's figures 3 and 4: a panel a test, metrics by similarity."""
        from matplotlib.figure import Figure

        names = list(self.meta["metrics"])
        tests = list(self.values)
        figure = Figure(figsize=(1.5 + 0.42 * len(names), 2.5 * len(tests)), layout="constrained")
        for row, test in enumerate(tests):
            axes = figure.add_subplot(len(tests), 1, row + 1)
            shown = [name for name in names if name in self.values[test]]
            colours = [_colour(name) for name in shown]
            places = [names.index(name) for name in shown]
            axes.bar(
                places,
                [self.mean(test, name) for name in shown],
                yerr=[self.std(test, name) for name in shown],
                color=colours,
                capsize=2,
            )
            axes.set_xticks(range(len(names)), names if row == len(tests) - 1 else [], rotation=60, ha="right")
            axes.set_xlim(-0.6, len(names) - 0.4)
            randomization = test == "randomization"
            axes.set_ylim(-0.25 if randomization else 0, 1.05)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(f"{test}: " + ("rank correlation, ideal 0" if randomization else "success rate, ideal 1"))
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def _colour(name: str) -> str:
    if name.split("-")[-1] in ("x", "last", "all"):
        return {"l2": "#7f9fc4", "cos": "#e0a458", "dot": "#c46d6d"}[name.split("-")[0]]
    return "#4a7c59" if name == "GC" else "#9bb8a3"
