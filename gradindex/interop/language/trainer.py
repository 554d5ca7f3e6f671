"""From a Trainer to a job: its model, its samples as its collator makes them, its loss."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from gradindex.data.names import LossFunction
from gradindex.data.source import Source
from gradindex.data.tensors import as_numpy
from gradindex.interop.language import models, own_loss, rows
from gradindex.interop.language.collated import Collator, Rows, TrainerSamples, samples
from gradindex.interop.language.encode import CausalEncoder, Encoder, Row, common
from gradindex.interop.language.encode_heads import ClassEncoder, MaskedEncoder, PairEncoder, TagEncoder
from gradindex.interop.language.loss import ClassLoss, Reduction, TokenCrossEntropy, TrainerLoss
from gradindex.interop.language.making import Columns, few, finish
from gradindex.interop.language.samples import kept
from gradindex.job import Job

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase, Trainer

_MARK = 3  # tokens that stand before what a user says


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
        Collator(loader.collate_fn, int(trainer.args.seed), model, tuple(trainer.label_names)),
    )
    if rows.is_stream(dataset):
        given = rows.read(dataset, cache)
    else:
        given = rows.read(Rows(dataset), cache)
    own = rows.read(trainer.train_dataset, cache if rows.is_stream(dataset) else None)
    first, given = rows.first(given)
    packed = packing is not False and collate.is_packed(first)
    names = list(columns) if isinstance(columns, list | tuple) else []
    source: Source
    if packed or cache is not None or names:
        settings = {"trainer": type(trainer).__name__, "packed": packed, "own": names, "seed": collate.seed}
        source = kept(samples(given, own if names else None, collate, packed, names), cache, settings)
    else:
        source = TrainerSamples(dataset, collate)
    several = packed or _shares_a_mean(trainer)
    smoothing = float(trainer.args.label_smoothing_factor)
    how: Reduction = reduction or ("sum" if several else "mean")
    if loss_fn is not None:
        loss, reads_own = loss_fn, False
    else:
        candidates: list[LossFunction] = [TokenCrossEntropy(shift, how, smoothing) for shift in (True, False)]
        candidates += own_loss.candidates(model, candidates[0])[1:]
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
    trainer: "Trainer", model: "nn.Module", loss: TokenCrossEntropy, row: Row, collate: Collator
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
