"""A review kept in a Parquet file, of which a page reads a few lines at a time."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradindex.review.found import Finding, Kind, Review

if TYPE_CHECKING:
    from gradindex.data.source import Ids

_GROUP = 1024  # lines of a row group: what a page of lines reads at least


def as_parquet(found: Review) -> bytes:
    """Return a review as `Review.save` writes it, in row groups from which `Kept` reads lines."""
    import pyarrow.parquet as pq

    table, sink = found.to_arrow(), io.BytesIO()
    counts = json.dumps({kind.value: len(found.of(kind)) for kind in Kind})
    table = table.replace_schema_metadata({**table.schema.metadata, "gradindex.kinds": counts})
    pq.write_table(table, sink, row_group_size=_GROUP)
    return sink.getvalue()


class Kept:
    """Reads the lines of a review that `as_parquet` wrote; one thread at a time may use it.

    Parameters
    ----------
    data
        The file, or what it holds. A file is held open: another one may take its place.

    Raises
    ------
    ValueError
        If it holds something else.
    """

    def __init__(self, data: Path | bytes) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(data if isinstance(data, Path) else io.BytesIO(data))
        try:
            about = {key.decode(): json.loads(value) for key, value in self._file.schema_arrow.metadata.items()
                     if key.startswith(b"gradindex.")}  # fmt: skip
            self.about: dict[str, object] = about["gradindex.review"]
            self.left_out: list[str] = about["gradindex.left_out"]
            self.counts = {kind: int(about["gradindex.kinds"].get(kind.value, 0)) for kind in Kind}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("This file holds no review.") from error
        if sum(self.counts.values()) != self._file.metadata.num_rows:
            raise ValueError("This file does not hold the lines that it counts.")
        self._ids: Ids = self._file.read(["id"])["id"].fill_null(-1).to_numpy()

    def ids(self, kind: Kind) -> "Ids":
        """Return the dataset positions (n,) int64 of the lines of a kind, −1 for pairs of classes."""
        begin = self._begin(kind)
        return self._ids[begin : begin + self.counts[kind]]

    def lines(self, kind: Kind, offset: int, limit: int) -> list[Finding]:
        """Return some lines of a kind, of at most so many from one on."""
        first = self._begin(kind) + min(offset, self.counts[kind])
        last = self._begin(kind) + min(offset + limit, self.counts[kind])
        if first >= last:
            return []
        groups = range(first // _GROUP, (last - 1) // _GROUP + 1)
        table = self._file.read_row_groups(list(groups)).slice(first - groups.start * _GROUP, last - first)
        names = ("id", "score", "label", "prediction", "proposed", "note", "precision", "held_out")
        return [
            Finding(
                kind,
                neighbours=tuple(line["neighbours"]),
                neighbour_labels=tuple(line["neighbour_labels"]),
                **{name: line.get(name) for name in names},
            )
            for line in table.to_pylist()
        ]

    def _begin(self, kind: Kind) -> int:
        return sum(self.counts[one] for one in list(Kind)[: list(Kind).index(kind)])


def undecided(ids: "Ids", decided: "Ids") -> "Ids":
    """Return the places (m,) of samples that are not among those decided, in their order; −1 is no sample."""
    return np.flatnonzero(~np.isin(ids, decided) & (ids >= 0))
