"""The rows of a user's dataset of texts, one by one in their order; and those of packed texts, document by document."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from gradindex.interop.language.encode import Row

_EXPECTED = (
    "expected a datasets.Dataset, a torch Dataset, a DataFrame, or a list of dicts or texts; or an IterableDataset, "
    "with cache=FILE to keep its samples in"
)


def is_stream(dataset: object) -> bool:
    """Whether a dataset can only be read from its beginning: it has no positions."""
    return not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__")


def read(dataset: object, cache: str | Path | None) -> Callable[[], Iterator[Row]]:
    """Return what yields a dataset's rows as dicts; a plain text is a row with a column ``"text"``.

    Raises
    ------
    TypeError
        If it is no dataset, or can be read but once and there is no cache.
    """
    if hasattr(dataset, "iloc") and hasattr(dataset, "to_dict"):
        dataset = dataset.to_dict("records")
    if isinstance(dataset, str | bytes | Mapping) or not (
        hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")
    ):
        raise TypeError(f"A dataset of type {type(dataset).__name__} holds no texts: {_EXPECTED}.")
    if is_stream(dataset) and cache is None:
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} is a stream, and has no positions: samples are read again for "
            "exact answers. Name a file to keep them in, cache=FILE: the stream is read once."
        )
    return lambda: _rows(dataset)


def _rows(dataset: object) -> Iterator[Row]:
    if not hasattr(dataset, "__iter__") or ("torch.utils.data" in sys.modules and _is_map(dataset)):
        numbered = cast("Sequence[object]", dataset)
        several: Iterable[object] = (numbered[i] for i in range(len(numbered)))
    else:
        several = cast("Iterable[object]", dataset)
    for number, row in enumerate(several):
        if not isinstance(row, str | Mapping):
            raise TypeError(f"Row {number} is {type(row).__name__}: {_EXPECTED}.")
        yield {"text": row} if isinstance(row, str) else row


def _is_map(dataset: object) -> bool:
    """Whether a dataset is one of torch's with positions, whose iteration Python makes up until an IndexError."""
    torch_data = sys.modules["torch.utils.data"]
    return isinstance(dataset, torch_data.Dataset) and not isinstance(dataset, torch_data.IterableDataset)


def first(rows: Callable[[], Iterator[Row]]) -> tuple[Row, Callable[[], Iterator[Row]]]:
    """Return the first row, and what yields all rows once, the first read no second time.

    Raises
    ------
    ValueError
        If there is none.
    """
    iterator = rows()
    row = next(iterator, None)
    if row is None:
        raise ValueError("The dataset is empty: there is nothing to embed.")

    def again() -> Iterator[Row]:
        yield row
        yield from iterator

    return row, again


def column(row: Row, wanted: str | None, *usual: str, what: str) -> str:
    """Return the name of a column: the wanted one, or the first usual one that there is.

    Raises
    ------
    ValueError
        If there is none.
    """
    names = [wanted] if wanted is not None else [name for name in usual if name in row]
    if names and names[0] in row:
        return names[0]
    asked = repr(wanted) if wanted is not None else " or ".join(map(repr, usual))
    raise ValueError(f"There is no column {asked} of {what}; the dataset has {', '.join(map(repr, row))}. Name one.")


def documents(row: Row) -> Iterator[dict[str, Sequence[int]]]:
    """Yield the documents of a packed row, each with its `input_ids` and, where the row has them, `labels`.

    Where one ends is told by ``seq_lengths`` (TRL), ``position_ids`` that begin anew, or an ``attention_mask`` that
    numbers the documents 1, 2, … (0 is padding) or says for each token which it sees.

    Raises
    ------
    ValueError
        If nothing tells.
    """
    import numpy as np

    ids = np.asarray(row["input_ids"])
    mask = np.asarray(row["attention_mask"]) if row.get("attention_mask") is not None else None
    filled = np.ones(len(ids), bool)
    if row.get("seq_lengths") is not None:
        starts = np.cumsum([0, *np.asarray(row["seq_lengths"])])[:-1]
        filled[int(np.sum(np.asarray(row["seq_lengths"]))) :] = False
    elif row.get("position_ids") is not None:
        places = np.asarray(row["position_ids"])
        starts = np.flatnonzero(np.append(True, np.diff(places) != 1))
        if mask is not None and mask.ndim == 1:
            filled = mask > 0
    elif mask is not None and mask.ndim == 1 and mask.max(initial=0) > 1:
        starts, filled = np.flatnonzero(np.append(True, np.diff(mask) != 0)), mask > 0
    elif mask is not None and mask.squeeze().ndim == 2:
        seen = mask.squeeze()
        seen = seen if seen.dtype == bool or seen.max() > 0 else seen == 0  # of additive ones, 0 is what is seen
        filled = np.diag(seen) > 0
        starts = np.flatnonzero(np.append(True, ~(np.diag(seen, -1) > 0)))
    else:
        raise ValueError(
            "packing=True, but nothing says where a document of a packed row ends: expected a column seq_lengths, "
            f"position_ids, or an attention_mask that numbers documents; found {', '.join(map(repr, row))}. With "
            "packing=False a row of the dataset is one sample."
        )
    for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        kept = np.flatnonzero(filled[begin:end]) + begin
        if len(kept):
            names = [name for name in ("input_ids", "labels") if row.get(name) is not None]
            yield {name: np.asarray(row[name])[kept].tolist() for name in names}
