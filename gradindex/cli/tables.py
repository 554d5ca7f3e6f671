"""Tables for people."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from gradindex.explanation import Explanation
from gradindex.verify import Audit
from gradindex.watch import Compared

_WIDEST = 32  # characters of a user's column


def explanation_tables(
    result: Explanation, names: Sequence[str] | None = None, class_names: Sequence[str] | None = None
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
    """
    data = result.data
    for line in range(len(data["scores"])):
        facts = [names[line] if names else f"query {line}"]
        for title, key in (("label", "query_labels"), ("predicted", "query_predictions")):
            if key in data:
                facts.append(f"{title} {_class(data[key][line], class_names)}")
        table = Table(title=", ".join(facts), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
        table.padding = (0, 0 if data.get("columns") else 1)  # a terminal has 80 places
        table.add_column("#", justify="right", style="dim")
        for side in ("proponent", "opponent"):
            table.add_column(side, justify="right")
            if "labels" in data:
                table.add_column("label", justify="right")
            for name in data.get("columns") or ():
                table.add_column(escape(name), no_wrap=True, max_width=_WIDEST)
            table.add_column(_score_title(data, side, line), justify="right")
        for rank in range(data["scores"].shape[1]):
            table.add_row(
                str(rank + 1),
                *_cells(data, "", line, rank, class_names),
                *_cells(data, "opponent_", line, rank, class_names),
            )
        yield table


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
        "compared": str(Compared(found["compared"]["rows"], found["compared"]["error"])) + " (with training steps)",
        "columns": ", ".join(found["columns"]),
        "made with": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
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


def _cells(data: dict[str, Any], prefix: str, line: int, rank: int, class_names: Sequence[str] | None) -> list[str]:
    indices = data["opponent_indices" if prefix else "ordered_indices"]
    identifier = int(indices[line, rank])
    missing = identifier < 0
    cells = ["–" if missing else str(identifier)]
    if "labels" in data:
        cells.append("" if missing else _class(data[f"{prefix}labels"][line, rank], class_names))
    own = (data.get(f"{prefix}columns") or {}).values()
    cells += ["" if missing else escape(_class(values[line, rank], None)) for values in own]
    cells.append("" if missing else f"{data[f'{prefix}scores'][line, rank]:.4g}")
    return cells


def _score_title(data: dict[str, Any], side: str, line: int) -> str:
    is_exact = data["opponent_exact" if side == "opponent" else "exact"][line].all()
    return "exact score" if is_exact else "estimate"


def _class(value: Any, names: Sequence[str] | None) -> str:
    if names is not None and float(value).is_integer():
        return str(names[int(value)])
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
