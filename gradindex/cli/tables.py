"""Tables for people."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from gradindex.compute.watch import Compared
from gradindex.explanation import Explanation
from gradindex.kernels import WORDING, KernelName
from gradindex.search.answer import Found, found_sides
from gradindex.search.audit_result import Audit
from gradindex.search.white import ESTIMATOR

_WIDEST, _LEGIBLE, _NARROWEST = 32, 12, 8  # places of a user's column or a label
_FOLDED = 5  # places of a title that is longer


@dataclass(frozen=True)
class _Column:
    """A column of a table on a query: `own` is one of the user's, an `elastic` one may be cut short."""

    title: str
    cells: list[str]
    own: bool = False
    elastic: bool = False

    @property
    def width(self) -> int:
        """Places it likes to have; titles break into words, what is not elastic does not break."""
        words = [self.title] if self.elastic else self.title.split()
        found = max(map(cell_len, (*self.cells, *words)), default=1)
        return min(found, _WIDEST) if self.elastic else found

    @property
    def least(self) -> int:
        """Places without which it is not shown, or is not to be understood."""
        if self.elastic:
            return min(self.width, _NARROWEST)
        return max(map(cell_len, (*self.cells, self.title[:_FOLDED])))  # the title folds


def whitened_line(result: Explanation) -> str | None:
    """Return what scores of whitened rows are, or that they can be asked for; None if there are none."""
    params = result.meta["params"]
    if not params.get("whitened"):
        return None
    kernel = WORDING[KernelName(params["kernel"])]
    if kernel.estimated:
        return f"{kernel.sentence} Its scores are estimates by {ESTIMATOR}."
    return f"{kernel.sentence} --kernel {KernelName.WHITE_DOT} estimates whose removal would change the query most."


def proofs_line(result: Explanation) -> str:
    """Return how many of a certified explanation's answers are proved, and what that took."""
    sides = [result.proved, result.opponent_proved]
    checked = np.concatenate([result.checked, result.opponent_checked])
    rows = result.meta["params"]["rows"]
    line = f"Proved: the proponents of {sides[0].sum()} of {len(sides[0])} queries, the opponents of {sides[1].sum()}. "
    line += f"Checked exactly for a query and side: {np.median(checked):,.0f} of {rows:,} rows (median)."
    if not np.concatenate(sides).all():
        line += " What is not proved is the best that was found: allow more --max-checks, or build with more --dims."
    return line


def recall_line(result: Explanation) -> str:
    """Return what `recall=` meant for an explanation, and what that took."""
    about = result.meta["params"]["recall"]
    note = f" ({about['note']})" if about["note"] else ""
    if not about["calibrated"]:
        return f"No recall is promised{note}."
    checked = np.median(result.checked)
    return (
        f"Calibrated: such answers hold {about['wanted']:.4g} of the true neighbours on average over queries like the "
        f"{about['queries']} of the calibration{note}. Checked exactly for a query: {checked:,.0f} rows (median)."
    )


def explanation_tables(
    result: Explanation,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    width: int = 80,
) -> Iterator[Table]:
    """Yield one table per query: its proponents and opponents with id, label, the user's own columns and score.

    Parameters
    ----------
    result
        What `Index.explain` returned.
    names
        What to call the queries; numbered when None.
    class_names
        Names of the classes.
    width
        Places of a line. Where they are too few, the user's columns are left out, the last ones first; ids and scores
        never are: such a table is wider.
    """
    data = result.data
    for line in range(len(data["scores"])):
        facts = [names[line] if names else f"query {line}"]
        for title, key in (("label", "query_labels"), ("predicted", "query_predictions")):
            if key in data:
                facts.append(f"{title} {_class(data[key][line], class_names)}")
        sides = [_side(side, line, class_names) for side in found_sides(data)]
        ranks = _Column("#", [str(rank + 1) for rank in range(data["scores"].shape[1])])
        own = [column.title for column in sides[0] if column.own]
        shown = [ranks, *(column for side in sides for column in side)]
        left_out: list[str] = []
        while own and _needed(shown) > width:
            left_out.insert(0, own.pop())
            shown = [column for column in shown if not (column.own and column.title == left_out[0])]
        yield _table(", ".join(facts), shown, width, left_out)


def _needed(columns: Sequence[_Column]) -> int:
    """Return the least places of a table of these columns, with one between two of them and one at each end."""
    return sum(column.least for column in columns) + len(columns) + 1


def _table(title: str, columns: Sequence[_Column], width: int, left_out: Sequence[str]) -> Table:
    """Return columns as a table, the elastic ones as wide as there is room for."""
    widths, spare = [column.least for column in columns], width - _needed(columns)
    for elastic, most in ((True, _LEGIBLE), (False, _WIDEST), (True, _WIDEST)):  # titles of ids and scores in between
        some = [i for i, column in enumerate(columns) if column.elastic == elastic]
        while spare > 0 and (short := [i for i in some if widths[i] < min(columns[i].width, most)][:spare]):
            for i in short:
                widths[i] += 1
            spare -= len(short)
    table = Table(title=Text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    wide = not any(column.own for column in columns) and spare >= 2 * len(columns)
    table.padding = (0, 1 if wide else 0)
    table.width = sum(widths) + len(columns) + 1 + (2 * len(columns) if wide else 0)
    for column, places in zip(columns, widths, strict=True):
        justify: Any = "left" if column.own else "right"
        style = "dim" if column.title == "#" else ""
        heading = Text(column.title, no_wrap=column.elastic, overflow="ellipsis" if column.elastic else "fold")
        table.add_column(heading, justify=justify, style=style, width=places, no_wrap=True, overflow="ellipsis")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    if left_out:
        table.caption = Text(f"no room for {', '.join(left_out)}", "dim")
        table.caption_justify = "left"
    return table


def audit_table(audit: Audit) -> Table:
    """Return the table of an audit."""
    title = f"Audit: {audit.queries} {audit.drawn} as queries against {audit.rows:,} rows"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column(f"agreement with the exact {audit.kernel}")
    table.add_column("measured", justify="right")
    table.add_column("95 % interval", justify="right")
    lines = (
        (f"recall@{audit.k}, with {audit.rerank} exact checks", audit.recall, audit.recall_interval),
        (f"recall@{audit.k}, no exact checks", audit.search_recall, audit.search_recall_interval),
        ("rank correlation, sketch alone", audit.rank_correlation, audit.rank_correlation_interval),
    )
    for name, value, (low, high) in lines:
        table.add_row(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
    for stage, found in audit.stages.items():
        table.add_section()
        for name, (value, low, high) in found.items():
            table.add_row(f"{stage}: {name}", f"{value:.4f}", f"{low:.4f} to {high:.4f}")
    if audit.coverage is not None:
        table.add_section()
        held = audit.coverage
        covered = {f"recall where {held.wanted:g} was wanted": held.recall}
        covered |= {f"of class {name}": found for name, found in held.by_class.items()}
        covered |= {f"of norm {name}": found for name, found in held.by_norm.items()}
        for name, (value, low, high) in covered.items():
            table.add_row(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
        table.add_row("queries with less than was wanted", f"{held.below:.4f}", "")
    if not audit.complete:
        table.caption = f"{audit.compared:,} of {audit.rows:,} rows were compared in time: recalls are upper limits"
    return table


def info_table(found: dict[str, Any]) -> Table:
    """Return the table of `gradindex info`."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    parameters = found["parameters"]
    size = sum(int(np.prod(parameter["shape"])) for parameter in parameters)
    paths = sorted({parameter.get("path", "unknown") for parameter in parameters})
    sketch = dict(found["sketch"])
    kind = sketch.pop("kind")
    metric = dict(found.get("metric") or {})
    rows = "gradient" if metric.get("name", "GC") in ("GC", "GD") else "row"
    lines = {
        "index": found["path"],
        "samples": f"{found['samples']:,} in {found['shards']} shard(s), {found['zero_gradients']} with zero {rows}",
        f"{rows}s": f"{size:,} numbers of {len(parameters)} parameters ({found['backend']}; {', '.join(paths)})"
        if rows == "gradient"
        else f"{size:,} numbers ({found['backend']})",
        "sketch": f"{kind}, {found['dim']} numbers, seed {found['seed']}",
        "search": f"{found['index']} on {found['index_dim']} numbers",
        "on disk": f"store {_bytes(found['store_bytes'])}, index {_bytes(found['index_bytes'])} "
        f"({(found['store_bytes'] + found['index_bytes']) / found['samples']:,.0f} bytes a sample)",
        "compared": f"{Compared(**found['compared'])} (with training steps)",
        "columns": ", ".join(found["columns"]),
        "made with": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
    if found.get("whitened"):
        white = found["whitened"]
        lines["whitened"] = (
            f"{white['dims']} numbers of {white['bits']} bits a row, damping {white['damping']:.3g}, {white['index']}"
        )
        if white["added"] or white["missing"]:
            lines["whitened"] += f"; {white['added']} rows came later, {white['missing']} are not whitened yet"
    if metric:
        named = ", ".join(f"{name} {value}" for name, value in metric.items() if name != "name")
        lines["metric"] = metric["name"] + (f" ({named})" if named else "")
    for path in paths if rows == "gradient" else ():
        names = [parameter["name"] for parameter in parameters if parameter.get("path", "unknown") == path]
        lines[path] = ", ".join(names)
    if "checked" in found:
        lines["checked"] = found["checked"]
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _side(side: Found, line: int, class_names: Sequence[str] | None) -> list[_Column]:
    """Return the columns of one side of a query's answer."""
    ids = side.ids[line].tolist()

    def column(title: str, values: Iterable[Any], text: Callable[[Any], str], **how: bool) -> _Column:
        return _Column(title, ["" if i < 0 else text(value) for i, value in zip(ids, values, strict=True)], **how)

    found = [_Column(side.name, ["–" if i < 0 else str(i) for i in ids])]
    if side.labels is not None:
        found.append(column("label", side.labels[line], lambda value: _class(value, class_names), elastic=True))
    for name, values in ({} if side.columns is None else side.columns.line(line).to_json()).items():
        found.append(column(name, values, _own, own=True, elastic=True))
    for name, values in side.measures.items():
        found.append(column(name, values[line], lambda value: f"{value:.3g}"))
    exact = side.exact is not None and side.exact[line].all()
    found.append(column("exact score" if exact else "estimate", side.scores[line], lambda value: f"{value:.4g}"))
    return found


def _own(value: object) -> str:
    """Return an entry of a user's column."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _class(value: Any, names: Sequence[str] | None) -> str:
    """Return the name of a class, or its number."""
    from gradindex.plots.read import class_name

    return class_name(names, value) if float(value).is_integer() else f"{value:g}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
