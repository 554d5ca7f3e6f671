"""The answer to a query: who, how much, and whether that was computed exactly."""

import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.data.tabular import Tabular
from gradindex.search.answer import Found, found_sides

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gradindex.search.tokens import Grain, TokenScores


class Explanation(Tabular):
    """Metadata and data of an explanation; every entry of `data` is an attribute too.

    Parameters
    ----------
    meta
        Name, type, parameters and version of what explained.
    data
        Arrays and lists; see `GradientSimilarity.explain` and `Index.explain` for their names and shapes.
    view
        What `plot` needs: the job, the inputs of the queries, and their ids or None. It is not saved.
    grain
        What `tokens` needs. It is not saved.
    """

    grain: "Grain | None" = None

    def __init__(
        self, meta: dict[str, Any], data: dict[str, Any], view: Any = None, grain: "Grain | None" = None
    ) -> None:
        self.meta = meta
        self.data = data
        self.view = view
        self.grain = grain

    def __getattr__(self, name: str) -> Any:
        if name in ("meta", "data", "view"):  # not set yet: while copying
            raise AttributeError(name)
        if name in self.data:
            return self.data[name]
        raise AttributeError(f"Explanation has no {name!r}; it has {', '.join(self.data)}.")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what `to_json` saves: neither the model nor the data."""
        return {"meta": self.meta, "data": self.data, "view": None, "grain": None}

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.data})

    def __getitem__(self, name: str) -> Any:
        warnings.warn(f"explanation[{name!r}] is deprecated, use explanation.{name}.", DeprecationWarning, stacklevel=2)
        return getattr(self, name)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}{list(np.shape(v)) if isinstance(v, np.ndarray) else ''}" for k, v in self.data.items())
        kernel = self.meta.get("params", {}).get("kernel")
        return f"Explanation({self.meta.get('name')}{f', {kernel}' if kernel else ''}: {shapes})"

    def plot(
        self, k: int = 5, *, opponents: bool = True, figure: "Figure | None" = None, axes: "Axes | None" = None
    ) -> "Figure":
        """Draw each query beside its neighbours, as `Job.render` shows them; see `gradindex.plots.plot_explanation`."""
        from gradindex.plots.results import plot_explanation

        return plot_explanation(self, k, opponents=opponents, figure=figure, axes=axes)

    def tokens(self, rank: int, *, query: int = 0, side: str = "proponent") -> "TokenScores":
        """Return which tokens of a training text that was found carry its influence.

        By forward mode along the query's gradient, in one pass for all texts that were found for it, when this is first
        called; the data has it from then on (`found_tokens`, `opponent_found_tokens`), saved results, too.

        Parameters
        ----------
        rank
            Which of those found, 0 for the first.
        query
            Of which query.
        side
            ``'proponent'`` or ``'opponent'``.

        Returns
        -------
        TokenScores
            With `scores` (t,), which sum to the text's score where that is exact, and `pieces`, the tokens as text.

        Raises
        ------
        IndexError
            If nothing was found there.
        TypeError
            If the loss is not made of the losses of tokens, see `gradindex.data.text.TokenLoss`.
        ValueError
            If `side` is unknown, or the result was saved before the tokens were computed.
        """
        from gradindex.search.tokens import of_found

        return of_found(self.data, self.grain, rank, query, side)

    def _repr_html_(self) -> str:
        """Return tables for notebooks; labels and columns are escaped."""
        from gradindex.plots.html import explanation_html

        return explanation_html(self)

    def to_json(self) -> str:
        """Return meta and data as JSON; arrays become lists, NaN becomes null, and `dtypes` keeps their types.

        Of the user's columns, dates, times and decimals become texts, durations counts of their unit, bytes base64.
        """
        dtypes = {name: found for name, value in self.data.items() if (found := _dtypes(value)) is not None}
        saved = {"meta": self.meta, "data": _plain(self.data), "dtypes": dtypes}
        return json.dumps(saved, allow_nan=False)

    def to_arrow(self) -> "pa.Table":
        """Return a ``pyarrow.Table`` with a row for each query and sample found, proponents first.

        Its columns are query, side, rank (from 1), id, score and, where known, exact, other measures, label, prediction
        and the user's own. Missing results have no row.
        """
        import pyarrow as pa

        parts = [pa.table(_lines(side)) for side in found_sides(self.data)]
        return pa.concat_tables(parts, promote_options="permissive").sort_by([("query", "ascending")])

    @classmethod
    def from_json(cls, text: str) -> "Explanation":
        """Return the explanation that `to_json` wrote.

        Raises
        ------
        ValueError
            If `text` is not such JSON.
        """
        saved = json.loads(text)
        if not isinstance(saved, dict) or not {"meta", "data"} <= set(saved):
            raise ValueError("Not an explanation: expected a JSON object with 'meta' and 'data'.")
        try:
            data = dict(saved["data"])
            data.update({name: _restored(data[name], dtype) for name, dtype in saved.get("dtypes", {}).items()})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Not an explanation: {error!r}.") from None
        return cls(saved["meta"], data)


def _lines(side: Found) -> dict[str, Any]:
    """Return the columns of a side's table, a line for each sample found."""
    ids = np.asarray(side.ids)
    there = ids >= 0
    queries, ranks = np.nonzero(there)
    columns = {"query": queries, "side": [side.name] * len(queries), "rank": ranks + 1, "id": ids[there]}
    more = {"score": side.scores, "exact": side.exact, **side.measures}
    more |= {"label": side.labels, "prediction": side.predictions}
    columns |= {name: np.asarray(values)[there] for name, values in more.items() if values is not None}
    own: Any = side.columns or {}
    if _is_columns(own):
        return columns | {name: own.table.column(name).filter(there.ravel()) for name in own}
    return columns | {name: np.asarray(values)[there] for name, values in own.items()}  # of an earlier version


def _is_columns(value: Any) -> bool:
    module = sys.modules.get("gradindex.data.table")  # whoever has columns has imported it
    return module is not None and isinstance(value, module.Columns)


def _dtypes(value: Any) -> Any:
    """Return the type of an array, or those of a dict or tuple of arrays; None for anything else."""
    if isinstance(value, dict):
        return {str(key): _dtypes(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_dtypes(item) for item in value]
    if _is_columns(value):
        return value.types
    return str(value.dtype) if isinstance(value, np.ndarray) else None


def _restored(value: Any, dtype: Any) -> Any:
    if isinstance(dtype, dict):
        return {key: _restored(value[key], item) for key, item in dtype.items()}
    if isinstance(dtype, list):
        return tuple(_restored(*pair) for pair in zip(value, dtype, strict=True))
    if dtype is None:
        return value
    if dtype.startswith("arrow:"):
        from gradindex.data.table import Columns

        return Columns.from_json(value, dtype)
    if dtype == "object":
        return np.array(value, dtype=object)
    return np.asarray(value, dtype=np.float64 if dtype.startswith("float") else None).astype(dtype)


def _plain(value: Any) -> Any:
    if _is_columns(value):
        return value.to_json()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
        return _plain(value) if isinstance(value, list) else _plain_number(value)
    return _plain_number(value)


def _plain_number(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
