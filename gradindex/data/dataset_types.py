"""A user's dataset, of any of the kinds that there are, as a `Source`."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradindex.data import hugging_face
from gradindex.data.names import Tree
from gradindex.data.samples import refuse_dataset, unreadable
from gradindex.data.source import ColumnSource, MapSource, Source, StreamSource, collated
from gradindex.data.tensors import is_tensor


def as_source(dataset: object) -> Source:
    """Turn a user's dataset into a `Source`.

    Parameters
    ----------
    dataset
        ``(X, Y)`` or ``(X,)`` columns as a tuple; a torch ``Dataset``; a torch ``DataLoader`` (its dataset in
        order and its ``collate_fn``; its sampler is ignored, since ids are dataset positions); a
        ``tf.data.Dataset``, batched or not; a Hugging Face ``datasets.Dataset`` with a column ``label`` or ``labels``
        (see `gradindex.hugging_face.source`); or any sequence of ``(x, y)`` samples.

    Raises
    ------
    ValueError
        If the dataset is empty, or its order is not fixed.
    TypeError
        If it is none of these.
    """
    source = _as_source(dataset)
    if len(source) == 0:
        raise ValueError("The dataset is empty: there is nothing to embed.")
    return source


def _as_source(dataset: Any) -> Source:
    if isinstance(dataset, Source):
        return dataset
    if isinstance(dataset, tuple) and len(dataset) in (1, 2):
        return ColumnSource(*dataset)
    if isinstance(dataset, np.ndarray) or is_tensor(dataset):
        return ColumnSource(dataset)
    refuse_dataset(dataset)
    if hugging_face.is_dataset(dataset):
        return hugging_face.source(dataset)
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(dataset, tensorflow.data.Dataset):
        from gradindex.data.tf_stream import stream

        return StreamSource(*stream(dataset))
    collate = None
    if hasattr(dataset, "dataset") and hasattr(dataset, "collate_fn"):
        if getattr(dataset, "batch_sampler", dataset) is None:
            raise TypeError("The DataLoader makes no batches (batch_size=None): give its dataset, or a batch_size.")
        dataset, collate = dataset.dataset, dataset.collate_fn
    torch_data = sys.modules.get("torch.utils.data")
    streams = torch_data is not None and isinstance(dataset, torch_data.IterableDataset)
    streams = streams or (hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"))
    if streams and hasattr(dataset, "__len__"):
        return _iterable(dataset, collate or collated)
    if not streams and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return MapSource(dataset, collate)
    if streams:
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} has no length. Give it a __len__, or a list of its "
            "samples, so that ids and shards are fixed before the first sample is read."
        )
    raise unreadable(dataset)


def _iterable(dataset: Any, collate: Callable[[list[Tree]], Tree]) -> StreamSource:
    def batches(start: int, stop: int, size: int) -> Iterator[Tree]:
        samples = itertools.islice(iter(dataset), start, stop)
        while chunk := list(itertools.islice(samples, size)):
            yield collate(chunk)

    return StreamSource(batches, len(dataset))
