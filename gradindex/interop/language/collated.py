"""A Trainer's rows as its collator makes samples of them, one at a time, the same each time."""

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tree
from gradindex.data.source import Batch, Ids, Source
from gradindex.data.tensors import as_numpy, is_tensor
from gradindex.data.text import IGNORED
from gradindex.interop.language import models, rows
from gradindex.interop.language.encode import Row
from gradindex.interop.language.samples import Sample

if TYPE_CHECKING:
    import torch
    from torch import nn

Collate = Callable[[list[Row]], Mapping[str, "torch.Tensor"]]

# Of the kernels that keep packed documents apart; a document alone needs none of them.
_OF_KERNELS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "seq_lengths"}


class Rows:
    """A dataset with positions as rows, read by number."""

    def __init__(self, dataset: Sequence[Row]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._dataset[i]


class Collator:
    """A collator of one row at a time, whose random numbers depend on the row's id alone."""

    def __init__(self, collate: Collate, seed: int, model: "nn.Module", labels: Sequence[str]) -> None:
        inner = getattr(collate, "data_collator", None)  # that of rows of which columns are taken away
        self._collate, self.seed, self._model = copy.copy(collate), seed, model
        self._inner: object = self._collate if inner is None else copy.copy(inner)
        if inner is not None:
            setattr(self._collate, "data_collator", self._inner)  # noqa: B010  (a collator of any kind)
        self._labels = labels
        forward = inspect.signature(models.base(model).forward).parameters
        mask = forward.get("attention_mask")
        self._needs_mask = mask is None or mask.default is inspect.Parameter.empty

    def batch(self, row: Row, number: int) -> dict[str, NDArray[np.generic]]:
        """Return what the collator makes of a row alone: arrays (1, …) by name."""
        import torch

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        states = random.getstate(), np.random.get_state()  # noqa: NPY002  (what collators draw from)
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            renew = getattr(self._inner, "create_rng", None)
            if renew is not None and getattr(self._inner, "seed", None) is not None:
                setattr(self._inner, "seed", seed)  # noqa: B010
                renew()
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                found = self._collate([row])
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
        return {
            name: np.asarray(as_numpy(value))
            for name, value in found.items()
            if is_tensor(value) or hasattr(value, "shape")
        }

    def is_packed(self, row: Row) -> bool:
        """Whether a row holds several documents whose boundaries are told."""
        found = self._packed(self.batch(row, 0), row)
        try:
            return sum(1 for _ in rows.documents(found)) > 1
        except ValueError:
            return False

    def _packed(self, batch: Mapping[str, NDArray[np.generic]], row: Row) -> dict[str, object]:
        names = ("input_ids", "labels", "position_ids", "attention_mask")
        found: dict[str, object] = {name: batch[name][0] for name in names if name in batch}
        if row.get("seq_lengths") is not None:
            found["seq_lengths"] = row["seq_lengths"]
        return found

    def documents(self, row: Row, number: int) -> Iterator[Sample]:
        """Yield the documents of a packed row as samples."""
        for document in rows.documents(self._packed(self.batch(row, number), row)):
            ids, y = (np.array(document[name], np.int64) for name in ("input_ids", "labels"))
            yield Sample({"input_ids": ids}, y, int((y[1:] != IGNORED).sum()))

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row as a sample, without padding on its right."""
        batch = {name: value for name, value in self.batch(row, number).items() if name not in _OF_KERNELS}
        named = [name for name in self._labels if name in batch]
        if named != ["labels"]:
            raise ValueError(
                f"The Trainer's collator gives {', '.join(batch)}, its labels are {', '.join(self._labels) or 'none'}: "
                "expected 'labels' alone. For other models make a gradindex.Job of the model, a loss and samples."
            )
        sizes = {name: len(value) for name, value in batch.items() if value.ndim}
        if set(sizes.values()) != {1}:
            raise ValueError(f"The Trainer's collator makes {sizes} of one row: expected one sample.")
        x = {name: value[0] for name, value in batch.items() if name != "labels"}
        y = batch["labels"][0]
        if models.config_of(self._model).is_encoder_decoder and y.ndim and "decoder_input_ids" not in x:
            x["decoder_input_ids"] = models.Shifted(self._model)(y.astype(np.int32))
        return self._without_padding(x, y)

    def _without_padding(self, x: dict[str, NDArray[np.generic]], y: NDArray[np.generic]) -> Sample:
        mask = x.get("attention_mask")
        if mask is not None and mask.ndim == 1:
            of_tokens = y.ndim == 1 and len(y) == len(mask) and "decoder_input_ids" not in x
            used = (mask != 0) | (y != IGNORED) if of_tokens else mask != 0
            end = int(np.flatnonzero(used)[-1]) + 1 if used.any() else len(mask)
            of_inputs = {name for name, value in x.items() if value.ndim == 1 and len(value) == len(mask)}
            of_inputs -= {"decoder_input_ids", "decoder_attention_mask"}
            x = {name: value[:end] if name in of_inputs else value for name, value in x.items()}
            y = y[:end] if of_tokens else y
            if x["attention_mask"].all() and not self._needs_mask:
                x = {name: value for name, value in x.items() if name != "attention_mask"}
        return Sample(x, y, int((y != IGNORED).sum()) if y.ndim else 1)


class TrainerSamples(Source):
    """A training set as its Trainer's collator makes samples of it, one row at a time.

    Parameters
    ----------
    dataset
        The rows, by number.
    collate
        Makes samples.
    """

    def __init__(self, dataset: Sequence[Row], collate: Collator) -> None:
        self._dataset, self._collate = dataset, collate

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions; those with an axis of tokens as lists of arrays."""
        self._check(ids)
        samples = [self._collate.sample(self._dataset[int(i)], int(i)) for i in ids]
        names = list(samples[0].x) if samples else []
        for sample in samples:
            names += [name for name in sample.x if name not in names]
        return Batch(
            ids,
            {name: _together([_filled(sample, name) for sample in samples]) for name in names},
            _together([sample.y for sample in samples]),
        )


def _filled(sample: Sample, name: str) -> NDArray[np.generic]:
    """Return an input of a sample; of one without padding, beside others that have some, the mask is full."""
    found = sample.x.get(name)
    return np.ones(len(sample.x["input_ids"]), np.int64) if found is None else found


def _together(parts: list[NDArray[np.generic]]) -> Tree:
    return parts if parts and parts[0].ndim else np.array(parts)


def samples(
    given: Callable[[], Iterator[Row]],
    own: Callable[[], Iterator[Row]] | None,
    collate: Collator,
    packed: bool,
    names: Sequence[str],
) -> Iterator[Sample]:
    """Yield samples with the columns that were asked for, which the Trainer may have taken away."""
    others = iter(()) if own is None else own()
    for number, row in enumerate(given()):
        whole = next(others, row)
        columns = {name: whole[rows.column(whole, name, what="columns=")] for name in names}
        for sample in collate.documents(row, number) if packed else [collate.sample(row, number)]:
            yield replace(sample, columns=columns)
