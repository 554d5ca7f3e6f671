"""Results and indexes in notebooks; everything that comes from data is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from gradindex.plots.read import Result, class_name

_QUERIES = 20  # shown of a result
_ROWS = 10


def explanation_html(result: Result) -> str:
    """Return a table a query, proponents beside opponents."""
    data = result.data
    if "ordered_indices" not in data or "scores" not in data:
        return f"<pre>{escape(repr(result))}</pre>"
    names = None if result.view is None else result.view[0].class_names
    count = len(data["scores"])
    parts = [_query(data, row, names) for row in range(min(count, _QUERIES))]
    if count > _QUERIES:
        parts.append(f"<p>and {count - _QUERIES:,} more queries</p>")
    return "".join(parts)


def table_html(lines: dict[str, Any]) -> str:
    """Return names and values as a table."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in lines.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _query(data: Mapping[str, Any], row: int, names: Any) -> str:
    facts = [f"query {row}"]
    for title, key in (("label", "query_labels"), ("predicted", "query_predictions")):
        if data.get(key) is not None:
            facts.append(f"{title} {class_name(names, data[key][row])}")
    sides = [("proponent", "", "ordered_indices")]
    if "opponent_indices" in data:
        sides.append(("opponent", "opponent_", "opponent_indices"))
    head = "".join(f"<th>{side}</th><th>label</th><th>score</th>" for side, _, _ in sides)
    lines = []
    for place in range(min(_ROWS, np.asarray(data["scores"]).shape[1])):
        cells = "".join(_cells(data, prefix, data[ids][row][place], (row, place), names) for _, prefix, ids in sides)
        lines.append(f"<tr><th>{place + 1}</th>{cells}</tr>")
    caption = escape(", ".join(facts))
    top = f"<caption>{caption}</caption><thead><tr><th></th>{head}</tr></thead>"
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"


def _cells(data: Mapping[str, Any], prefix: str, i: Any, place: tuple[int, int], names: Any) -> str:
    if i < 0:
        return "<td>none</td><td></td><td></td>"
    labels, exact = data.get(f"{prefix}labels"), data.get(f"{prefix}exact")
    label = "" if labels is None else escape(class_name(names, labels[place]))
    mark = "" if exact is None or exact[place] else "≈"
    return f"<td>{int(i)}</td><td>{label}</td><td>{mark}{float(data[f'{prefix}scores'][place]):.4g}</td>"
