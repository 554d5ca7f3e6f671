"""A Hugging Face `datasets.Dataset` with the embeddings of an index as a column."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.defaults import BLOCK_ROWS
from gradindex.errors import missing
from gradindex.sketch.unit_rows import normalise
from gradindex.store import location

if TYPE_CHECKING:
    import datasets

    from gradindex.index.index import Index


def with_embeddings(
    dataset: "datasets.Dataset", index: "Index", column: str = "gradient", path: str | Path | None = None
) -> "datasets.Dataset":
    """Return the dataset with the stored embeddings as one more column, for ``Dataset.add_faiss_index``.

    ``dataset.get_nearest_examples(column, query, k)`` then finds the samples that `Index.search` finds for the query,
    a row of ``index.sketch(x)``. Embeddings have unit norm, so that ``add_faiss_index``'s default, L2, has the order of
    the cosine, and scores are 2 − 2 cos; with ``metric_type=faiss.METRIC_INNER_PRODUCT`` they are cosines.

    Parameters
    ----------
    dataset
        The ``datasets.Dataset`` that the index was built from, its rows in the same order.
    index
        The index.
    column
        What to call the column: lists of `dim` float32 numbers of unit norm.
    path
        A new Arrow file to write them to (4 · dim bytes a sample), which the dataset maps and needs from then on; None:
        they are held in memory.

    Returns
    -------
    datasets.Dataset
        Its rows are those of the index in order: samples that were removed from the index are left out.

    Raises
    ------
    ImportError
        If datasets is not installed; says what to type.
    ValueError
        If the dataset has such a column already, or another number of samples than the index.
    FileExistsError
        If there is something at `path`.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing("Hugging Face datasets", "gradindex[datasets]", "This") from error
    import pyarrow as pa

    store = index.store
    if column in dataset.column_names:
        raise ValueError(f"The dataset has a column {column!r} already; give another name.")
    alive = np.ones(len(store), bool) if store.alive is None else store.alive
    ids = store.ids[alive]
    if store.state.positions != len(dataset):
        raise ValueError(f"The index was made of {store.state.positions} samples but the dataset has {len(dataset)}.")
    schema = pa.schema({column: pa.list_(pa.float32(), store.header.dim)})

    def batches() -> Iterator[Any]:
        for first, rows in store.blocks(BLOCK_ROWS):
            kept = normalise(rows[alive[first : first + len(rows)]])  # float16 leaves them off by some 1e-5
            yield pa.record_batch(
                [pa.FixedSizeListArray.from_arrays(pa.array(kept.ravel()), type=schema[0].type)], schema
            )

    if path is None:
        embeddings = datasets.Dataset(datasets.table.InMemoryTable(pa.Table.from_batches(batches(), schema)))
    else:
        path = location.on_disk(path, "with_embeddings")
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with location.temporary(path.parent) as part:
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for batch in batches():
                    writer.write_batch(batch)
            location.move(part, path)
        embeddings = datasets.Dataset.from_file(str(path))
    rows = dataset if len(ids) == len(dataset) else dataset.select(ids.tolist())
    return datasets.concatenate_datasets([rows, embeddings], axis=1)
