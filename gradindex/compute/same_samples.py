"""Whether the rows that are there were made of a job's samples: before others are put beside them.

A header knows the model, and how many samples there are, but neither the data nor the loss. A build that was begun with
other data (another order, another preprocessing), or with another loss, must not be continued: half of its rows would
be of one, half of the other.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradindex.compute import watch
from gradindex.data.plain import json_values
from gradindex.data.source import Ids
from gradindex.errors import DamagedIndexError, OtherSamplesError
from gradindex.gradients import paths
from gradindex.gradients.projector import Projector
from gradindex.job import Job
from gradindex.store import Store
from gradindex.store.layout import SHARDS
from gradindex.store.shard import Shard

_ROWS = 16
"""Rows that are compared, evenly spaced: as many training steps."""


def check_shards(
    job: Job, store: Store, projector: Projector, columns: Mapping[str, pa.Array], there: Sequence[int]
) -> None:
    """Compare some rows of the shards that are there, and the user's columns of these, with the job's samples.

    Parameters
    ----------
    job, store
        What is being embedded, and where to.
    projector
        That of the rows.
    columns
        The user's columns of all samples of the job.
    there
        Numbers of the shards that were published before.

    Raises
    ------
    OtherSamplesError
        A `MismatchError`: if they were made of other samples, or with another loss; names one of them.
    """
    shards = list(_some(store, there))
    each = -(-_ROWS // max(len(shards), 1))
    for shard, first in shards:
        places = np.unique(np.linspace(0, len(shard) - 1, min(each, len(shard))).astype(np.int64))
        positions = first + places
        _compare(job, store, projector, positions, shard.take(places), shard.norms, places)
        table = shard.table().take(pa.array(places))
        for name in columns:
            before = json_values(table.column(name)) if name in table.column_names else None
            if before != json_values(columns[name].take(pa.array(positions))):
                raise OtherSamplesError(
                    f"{store.path} was begun with other values of column {name!r}. Give those, or begin again "
                    "(overwrite=True, --overwrite)."
                )


def check_rows(job: Job, store: Store, projector: Projector) -> None:
    """Compare some rows of a finished store with the job's samples of these ids; raises like `check_shards`."""
    there = np.arange(len(store)) if store.alive is None else np.flatnonzero(store.alive)
    rows = there[np.unique(np.linspace(0, len(there) - 1, _ROWS).astype(np.int64))]
    rows = rows[np.argsort(store.ids[rows])]
    _compare(job, store, projector, store.ids[rows], store.kept(rows), store.norms, rows)


def _some(store: Store, there: Sequence[int]) -> Iterator[tuple[Shard, int]]:
    """Yield evenly spaced shards, without damaged ones, and the position of the first sample of each."""
    for place in np.unique(np.linspace(0, len(there) - 1, min(_ROWS, len(there))).astype(np.int64)):
        number = there[place]
        try:
            shard = Shard(store.path / SHARDS, number, store.header)
            shard.check()
        except DamagedIndexError:  # which is said when all are there, or mended
            continue
        yield shard, store.header.first + store.header.span(number)[0]


def _compare(
    job: Job,
    store: Store,
    projector: Projector,
    positions: Ids,
    kept: NDArray[np.generic],
    norms: NDArray[np.float32],
    rows: Ids,
) -> None:
    """Compare rows, of which sketches are `kept`, with the samples at some positions; `norms` are of all rows there."""
    batch, largest = job.source.take(positions), float(norms.max())
    errors = watch.errors_of(job.engine, projector, batch, kept, norms[rows], store.header.row_type, largest)
    if not paths.agree(errors, job.engine):
        raise OtherSamplesError(
            f"The rows in {store.path} are not those of these samples: the gradient of sample "
            f"{positions[int(np.argmax(errors))]} is another. Are the data, their order and the loss those of the "
            "build? Give these, or begin again (overwrite=True, --overwrite)."
        )
