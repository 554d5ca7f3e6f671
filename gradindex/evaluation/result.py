"""The outcome of an evaluation: a table, JSON, a bar chart."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.evaluation import verdict
from gradindex.evaluation.selected import COMMONEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Result:
    """Values of every test and metric, one a repeat, and what they came from.

    `values` maps test to metric to its values; `accuracy` maps ``"class"`` and ``"subclass"`` to the models'
    test accuracies; `meta` holds seeds, versions, sizes and solvers, and under ``"selected"`` what the nearest samples
    are (see `gradindex.evaluation.selected.Selected`).

    `null` maps test to metric to where the mean is in 95 % of cases by chance alone, [low, high]: of success rates
    where rankings are random (exact: a sum of binomials, by class), of rank correlations where the random model's
    samples are permuted (their exact variance, taken for normal). It is empty in results that older versions wrote.
    """

    values: dict[str, dict[str, list[float]]]
    accuracy: dict[str, list[float]]
    meta: dict[str, Any]
    null: dict[str, dict[str, list[float]]] = field(default_factory=dict)

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
        judged = {"trusted": self.trusted(), "sentence": self.sentence(), "passed": self.passed()}
        return {
            "meta": self.meta,
            "verdict": judged,
            "summary": summary,
            "null": self.null,
            "accuracy": self.accuracy,
            "values": self.values,
        }

    def passed(self) -> dict[str, dict[str, bool]]:
        """Return which metrics pass which test (see `gradindex.evaluation.verdict.passed`), where a null is known."""
        return {test: verdict.passed(test, self._means(test), null) for test, null in self.null.items()}

    def trusted(self) -> str | None:
        """Return the metric that passes every test and is most often right; None if there is none."""
        return verdict.trusted({test: self._means(test) for test in self.values}, self.passed())

    def sentence(self) -> str:
        """Return one sentence that names the metric to trust and the evidence, or says why there is none."""
        return verdict.sentence({test: self._means(test) for test in self.values}, self.null, self.passed())

    def notes(self) -> list[str]:
        """Return lines on how matrices are inverted, and on how few samples are the nearest of how many queries."""
        remarks = self.meta.get("remarks", {})
        lines = [
            f"{name}: {solver}. {remarks.get(name, '')}".rstrip()
            for name, solver in self.meta.get("solvers", {}).items()
        ]
        for labels, rows in self.meta.get("selected", {}).items():
            won = ", ".join(f"{name} {np.mean([one['won'] for one in told]):.2f}" for name, told in rows.items())
            lines.append(f"Queries whose nearest sample is one of the {COMMONEST} commonest ({labels} labels): {won}.")
        return lines

    def _means(self, test: str) -> dict[str, float]:
        return {name: self.mean(test, name) for name in self.values[test]}

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
        return cls(found["values"], found["accuracy"], found["meta"], found.get("null", {}))

    def table(self) -> "Table":
        """Return a table: a row a metric, a column a test, mean ± std, ✓ passed or ✗ failed; null intervals below."""
        from rich import box
        from rich.table import Table

        repeats, queries = self.meta["repeats"], self.meta["queries"]
        table = Table(
            title=f"Mean ± std over {repeats} repeat(s), {queries} queries each; randomization: nearer 0 is better",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            title_style="bold",
            caption=self._chance(),
            caption_justify="left",
        )
        table.add_column("metric")
        for test in self.values:
            table.add_column(test, justify="right")
        passed = self.passed()
        for name in self.meta["metrics"]:
            cells = []
            for test, rows in self.values.items():
                mark = {True: " ✓", False: " ✗", None: ""}[passed.get(test, {}).get(name)]
                cells.append(f"{self.mean(test, name):.3f} ± {self.std(test, name):.3f}{mark}" if name in rows else "–")
            table.add_row(name, *cells)
        return table

    def _chance(self) -> str | None:
        """Return the widest null interval of each test, in words."""
        if not self.null:
            return None
        told = [
            f"{test} {min(low for low, _ in rows.values()):.3f} to {max(high for _, high in rows.values()):.3f}"
            for test, rows in self.null.items()
            if rows
        ]
        highest, far = verdict.COLOURED, verdict.FAILED_CORRELATION
        return (
            f"By chance alone, in 95 % of cases: {'; '.join(told)}. ✓ passed: among the {highest} highest rates, above "
            f"chance and above one half; randomization less than {far} from 0."
        )

    def chart(self) -> "Figure":
        """Return a bar chart like the study's figures 3 and 4: a panel a test, metrics by similarity.

        Grey bands are null intervals; bars of metrics that fail are pale.
        """
        from matplotlib.figure import Figure

        names = list(self.meta["metrics"])
        tests, passed = list(self.values), self.passed()
        figure = Figure(figsize=(1.5 + 0.42 * len(names), 2.5 * len(tests)), layout="constrained")
        for row, test in enumerate(tests):
            axes = figure.add_subplot(len(tests), 1, row + 1)
            for place, name in enumerate(names):
                if name not in self.values[test]:
                    continue
                alpha = 1.0 if passed.get(test, {}).get(name, True) else 0.35
                mean, std = self.mean(test, name), self.std(test, name)
                axes.bar(place, mean, yerr=std, color=_colour(name), alpha=alpha, capsize=2)
                if test in self.null:
                    low, high = self.null[test][name]
                    axes.fill_between([place - 0.5, place + 0.5], low, high, color="black", alpha=0.2, linewidth=0)
            axes.set_xticks(range(len(names)), names if row == len(tests) - 1 else [], rotation=60, ha="right")
            axes.set_xlim(-0.6, len(names) - 0.4)
            randomization = verdict.is_randomization(test)
            lowest = min([-0.2, *(self.mean(test, name) for name in self.values[test])]) - 0.05
            axes.set_ylim(lowest if randomization else 0, 1.05)
            axes.axhline(0, color="black", linewidth=0.8)
            what = "rank correlation, ideal 0" if randomization else "success rate, ideal 1"
            axes.set_title(f"{test}: {what}", fontsize=9, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def _colour(name: str) -> str:
    if name.split("-")[-1] in ("x", "last", "all"):
        return {"l2": "#7f9fc4", "cos": "#e0a458", "dot": "#c46d6d"}[name.split("-")[0]]
    return "#4a7c59" if name == "GC" else "#9bb8a3"
