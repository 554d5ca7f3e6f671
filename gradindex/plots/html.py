"""Results and indexes in notebooks; everything that comes from data is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from gradindex.plots.read import Result, class_name, kernel_title
from gradindex.search.answer import Found, found_sides

_QUERIES = 20  # shown of a result
_ROWS = 10


def explanation_html(result: Result) -> str:
    """Return a table a query, proponents beside opponents."""
    data = result.data
    if "ordered_indices" not in data or "scores" not in data:
        return f"<pre>{escape(repr(result))}</pre>"
    names = None if result.view is None else result.view[0].class_names
    count = len(data["scores"])
    title = kernel_title(result)
    parts = [_query(data, row, names, title) for row in range(min(count, _QUERIES))]
    if count > _QUERIES:
        parts.append(f"<p>and {count - _QUERIES:,} more queries</p>")
    return "".join(parts)


def table_html(lines: dict[str, object]) -> str:
    """Return names and values as a table."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in lines.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _query(data: Mapping[str, Any], row: int, names: Any, title: str) -> str:
    facts = [f"query {row}"]
    for fact, key in (("label", "query_labels"), ("predicted", "query_predictions")):
        if data.get(key) is not None:
            facts.append(f"{fact} {class_name(names, data[key][row])}")
    sides = found_sides(data)
    head = "".join(f"<th>{side.name}</th><th>label</th><th>{escape(title)}</th>" for side in sides)
    lines = []
    for place in range(min(_ROWS, np.asarray(data["scores"]).shape[1])):
        cells = "".join(_cells(side, (row, place), names) for side in sides)
        lines.append(f"<tr><th>{place + 1}</th>{cells}</tr>")
    caption = escape(", ".join(facts))
    top = f"<caption>{caption}</caption><thead><tr><th></th>{head}</tr></thead>"
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"


def _cells(side: Found, place: tuple[int, int], names: Any) -> str:
    i = side.ids[place]
    if i < 0:
        return "<td>none</td><td></td><td></td>"
    label = "" if side.labels is None else escape(class_name(names, side.labels[place]))
    mark = "" if side.exact is None or side.exact[place] else "≈"
    return f"<td>{int(i)}</td><td>{label}</td><td>{mark}{float(side.scores[place]):.4g}</td>"
