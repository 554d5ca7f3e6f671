"""From a Trainer to a job: its model, its samples as its collator makes them, its loss."""

import contextlib
import copy
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import LossFunction, Tree
from gradindex.data.source import Batch, Ids, Source
from gradindex.data.tensors import as_numpy, is_tensor
from gradindex.data.text import IGNORED
from gradindex.interop.language import models, own_loss, rows
from gradindex.interop.language.doors import Columns, few, finish
from gradindex.interop.language.encode import CausalEncoder, Encoder, common
from gradindex.interop.language.encode_heads import ClassEncoder, MaskedEncoder, PairEncoder, TagEncoder
from gradindex.interop.language.loss import ClassLoss, Reduction, TokenCrossEntropy, TrainerLoss
from gradindex.interop.language.samples import Sample, kept
from gradindex.job import Job

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase, Trainer

Row = Mapping[str, object]
Collate = Callable[[list[Row]], Mapping[str, "torch.Tensor"]]

_MARK = 3  # tokens that stand before what a user says
# Of the kernels that keep packed documents apart; a document alone needs none of them.
_OF_KERNELS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "seq_lengths"}


def from_trainer(
    trainer: "Trainer",
    *,
    loss_fn: LossFunction | None = None,
    packing: bool | None = None,
    columns: Columns = None,
    reduction: Reduction | None = None,
    cache: str | Path | None = None,
    parameters: str | Sequence[str] | None = None,
    device: object = None,
) -> Job:
    """Return the job of a Trainer of transformers or TRL's SFTTrainer, before or after ``trainer.train()``.

    Its samples are what the Trainer's collator makes of each row of its training set alone, so that labels, masks and
    positions are those that the model was trained on; padding on the right is left out. What the collator draws by
    chance, such as masked tokens, is drawn once for each sample, from the Trainer's seed and the id: training drew
    others in each epoch. The loss is compared with the Trainer's own at the first samples.

    Parameters
    ----------
    trainer
        The Trainer, with a training set. Its model has to be whole, and in one process.
    loss_fn
        ``loss_fn(output, labels)`` of one sample, for a Trainer that computes a loss of its own; None: it is found.
    packing
        Whether each document of a packed row is a sample of its own. None: where ``seq_lengths`` or positions tell
        them apart; False: a row is a sample.
    columns
        What is to come back with results: names of columns of the training set, or columns as `gradindex.Job` takes
        them.
    reduction
        ``"mean"`` or ``"sum"`` over the tokens of a sample. None: the sum where the Trainer's mean was over the tokens
        of several samples at once, which each then moved by its sum; else the mean.
    cache
        A file to keep samples in; needed for an ``IterableDataset``, which is read once. See `causal_lm`.
    parameters, device
        See `gradindex.Job`.

    Returns
    -------
    Job
        Its ``texts`` are there if the Trainer (``processing_class``) or its collator has a tokenizer.

    Raises
    ------
    ValueError
        If the model is in parts, there is no training set, or the loss is not the one that the Trainer takes.
    """
    model = models.whole(trainer.accelerator.unwrap_model(trainer.model))
    models.whole(getattr(trainer, "model_wrapped", model))
    if trainer.train_dataset is None:
        raise ValueError("The Trainer has no train_dataset: there is nothing to embed.")
    loader = trainer.get_train_dataloader()
    dataset, collate = (
        loader.dataset,
        _Collate(loader.collate_fn, int(trainer.args.seed), model, tuple(trainer.label_names)),
    )
    if rows.is_stream(dataset):
        given = rows.read(dataset, cache)
    else:
        given = rows.read(_Rows(dataset), cache)
    own = rows.read(trainer.train_dataset, cache if rows.is_stream(dataset) else None)
    first, given = rows.first(given)
    packed = packing is not False and collate.is_packed(first)
    names = list(columns) if isinstance(columns, list | tuple) else []
    source: Source
    if packed or cache is not None or names:
        settings = {"trainer": type(trainer).__name__, "packed": packed, "own": names, "seed": collate.seed}
        source = kept(_samples(given, own if names else None, collate, packed, names), cache, settings)
    else:
        source = TrainerSamples(dataset, collate)
    several = packed or _shares_a_mean(trainer)
    smoothing = float(trainer.args.label_smoothing_factor)
    how: Reduction = reduction or ("sum" if several else "mean")
    if loss_fn is not None:
        loss, reads_own = loss_fn, False
    else:
        candidates: list[LossFunction] = [TokenCrossEntropy(shift, how, smoothing) for shift in (True, False)]
        config = models.config_of(model)
        problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
        kinds = [problem] if problem else ["single_label_classification", "multi_label_classification"]
        if np.ndim(as_numpy(own_loss.one(source, 0)[1])) < 2 or problem == "multi_label_classification":
            candidates = []
        candidates += [ClassLoss(kind, smoothing) for kind in kinds]
        if trainer.compute_loss_func is not None:
            candidates.append(TrainerLoss(trainer.compute_loss_func))
        with _unchanged(trainer):
            truth = lambda inputs: float(trainer.compute_loss(trainer.model, inputs))  # noqa: E731
            loss, reads_own = own_loss.settle(model, candidates, source, truth, "The Trainer's")
    if packed and isinstance(loss, TokenCrossEntropy):
        _check_kept_apart(trainer, model, loss, first, collate)
    _report_cut(trainer, dataset)
    tokenizer = getattr(trainer, "processing_class", None) or getattr(trainer.data_collator, "tokenizer", None)
    encoder = None
    if tokenizer is not None and hasattr(tokenizer, "decode"):
        encoder = _encoder(trainer, model, tokenizer, loss, source)
    return finish(model, loss, source, encoder, columns, reads_own, parameters, device)


class _Rows:
    """A dataset with positions as rows, read by number."""

    def __init__(self, dataset: Sequence[Row]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._dataset[i]


class _Collate:
    """A collator of one row at a time, whose random numbers depend on the row's id alone."""

    def __init__(self, collate: Collate, seed: int, model: "nn.Module", labels: Sequence[str]) -> None:
        inner = getattr(collate, "data_collator", None)  # that of rows of which columns are taken away
        if inner is not None:
            collate = copy.copy(collate)
            inner = collate.data_collator = copy.copy(inner)  # type: ignore[attr-defined]
        else:
            inner = collate = copy.copy(collate)
        self._collate, self._inner, self.seed, self._model = collate, inner, seed, model
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
            if getattr(self._inner, "seed", None) is not None and hasattr(self._inner, "create_rng"):
                self._inner.seed = seed
                self._inner.create_rng()
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
            used = (mask > 0) | (y != IGNORED) if of_tokens else mask > 0
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

    def __init__(self, dataset: Sequence[Row], collate: _Collate) -> None:
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


def _samples(
    given: Callable[[], Iterator[Row]],
    own: Callable[[], Iterator[Row]] | None,
    collate: _Collate,
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


def _shares_a_mean(trainer: "Trainer") -> bool:
    """Whether the mean over tokens that the Trainer takes is one over several samples."""
    args = trainer.args
    at_once = int(args.per_device_train_batch_size) * max(1, int(args.n_gpu))
    counts = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    if counts:
        at_once *= int(args.gradient_accumulation_steps) * max(1, int(args.world_size))
    return at_once > 1


@contextlib.contextmanager
def _unchanged(trainer: "Trainer") -> Iterator[None]:
    """Put back what TRL's trainer notes when it takes a loss."""
    before = {
        name: copy.deepcopy(getattr(trainer, name))
        for name in ("_metrics", "_total_train_tokens")
        if hasattr(trainer, name)
    }
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)


def _encoder(
    trainer: "Trainer", model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", loss: LossFunction, source: Source
) -> Encoder | None:
    """Return what makes queries of texts, in the form that the Trainer's samples have."""
    config, takes = models.config_of(model), models.arguments(model)
    longest = models.longest(model, tokenizer, getattr(trainer.args, "max_length", None))
    numbers = {name: int(number) for number, name in config.id2label.items()}
    if isinstance(loss, ClassLoss):
        return ClassEncoder(tokenizer, longest, takes=takes, problem=loss.problem, numbers=numbers)
    if config.is_encoder_decoder:
        return PairEncoder(tokenizer, longest, takes=takes, shifted=models.Shifted(model))
    share = getattr(trainer.data_collator, "mlm_probability", None)
    if getattr(trainer.data_collator, "mlm", False) and share is not None:
        return MaskedEncoder(tokenizer, longest, takes=takes, share=float(share), seed=int(trainer.args.seed))
    if not getattr(loss, "shift", True):
        return TagEncoder(tokenizer, longest, takes=takes, numbers=numbers)
    x, _ = own_loss.one(source, 0)
    ids = cast("list[int]", x["input_ids"][0].tolist())
    end = tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
    return CausalEncoder(tokenizer, longest, end=end, chats=_is_conversation(tokenizer, ids))


def _is_conversation(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> bool:
    """Whether tokens hold a message of a user, as the chat template writes it."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    written = [
        tokenizer.apply_chat_template([{"role": "user", "content": said}], return_dict=True)["input_ids"]
        for said in "01"  # any two texts: what the two have in common stands before
    ]
    before = written[0][: common(*written)][-_MARK:]
    return any(list(ids[i : i + len(before)]) == before for i in range(len(ids) - len(before) + 1))


def _check_kept_apart(
    trainer: "Trainer", model: "nn.Module", loss: TokenCrossEntropy, row: Row, collate: _Collate
) -> None:
    """Raise ValueError if the loss of a packed row is not that of its documents."""
    import torch

    from gradindex.gradients.torch.model import inference

    device = next(model.parameters()).device
    alone = list(collate.documents(row, 0))
    with inference(model, device, fused=True), _unchanged(trainer):
        whole = {name: torch.as_tensor(value).to(device) for name, value in collate.batch(row, 0).items()}
        together = float(trainer.compute_loss(trainer.model, whole))
        total = 0.0
        for one in alone:
            x = {name: torch.as_tensor(value).to(device)[None] for name, value in one.x.items()}
            total += float(replace(loss, reduction="sum")(model(**x), torch.as_tensor(one.y).to(device)[None]))
    apart = total / max(1, sum(one.counted for one in alone))
    if abs(apart - together) > own_loss.closeness(model) * max(abs(together), 1e-3):
        raise ValueError(
            f"The Trainer's loss of the first packed row is {together:.4g}, that of its {len(alone)} documents alone "
            f"{apart:.4g}: attention passes from one document to the next, so that a document has no gradient of its "
            "own. Give packing=False, and a row is a sample, as it was trained; or a model whose attention is blocked "
            '(attn_implementation="flash_attention_2", or "sdpa" with positions that begin anew).'
        )


def _report_cut(trainer: "Trainer", dataset: object) -> None:
    """Warn of rows that are just as long as TRL's trainer leaves them."""
    longest = getattr(trainer.args, "max_length", None)
    names = getattr(dataset, "column_names", None) or ()
    if longest is None or "input_ids" not in names or "seq_lengths" in names or not hasattr(dataset, "__getitem__"):
        return
    lengths = np.fromiter((len(ids) for ids in dataset["input_ids"]), np.int64)
    ids = np.flatnonzero(lengths == int(longest))
    if len(ids):
        warnings.warn(
            f"{len(ids)} of {len(lengths)} rows have {longest} tokens, which is where the Trainer cuts them "
            f"(max_length): ids {few(ids)}. What it cut off has no gradient.",
            UserWarning,
            stacklevel=3,
        )
