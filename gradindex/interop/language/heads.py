"""From models with other heads to jobs: classifiers, taggers, those that translate, those that fill in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradindex.defaults import SEED
from gradindex.interop.language import models, rows
from gradindex.interop.language.encode_heads import ClassEncoder, MaskedEncoder, PairEncoder, TagEncoder
from gradindex.interop.language.loss import ClassLoss, Reduction, TokenCrossEntropy
from gradindex.interop.language.making import Columns, make
from gradindex.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sequence_classification(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: object,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    columns: Columns = None,
    cache: str | Path | None = None,
    parameters: str | Sequence[str] | None = None,
    device: object = None,
) -> Job:
    """Return the job of a model that classifies texts, such as BERT's; see `causal_lm`.

    Parameters
    ----------
    model, tokenizer, dataset
        As for `causal_lm`. The model's ``problem_type`` decides about the loss: of one class, of several, of a number.
    text, pair
        The columns of the texts (None: ``"text"`` or ``"sentence"``), and of a second text of each (None: no second).
    label
        The column of the labels: numbers or names of classes, or vectors; None: ``"label"`` or ``"labels"``.
    max_length, columns, cache, parameters, device
        As for `causal_lm`.

    Returns
    -------
    Job
        Its ``texts`` take ``text=`` and, as ``answer=``, a class; without one, the model's own.
    """
    model = models.whole(model)
    row, read = rows.first(rows.read(dataset, cache))
    config = models.config_of(model)
    problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    column = rows.column(row, label, "label", "labels", what="labels")
    value = row[column]
    if problem is None:
        several = hasattr(value, "__len__") and not isinstance(value, str)
        problem = "multi_label_classification" if several else "single_label_classification"
    encoder = ClassEncoder(
        tokenizer,
        models.longest(model, tokenizer, max_length),
        takes=models.arguments(model),
        text=rows.column(row, text, "text", "sentence", what="texts"),
        pair=pair,
        label=column,
        problem=problem,
        numbers={name: int(number) for number, name in config.id2label.items()},
    )
    return make(model, ClassLoss(problem), encoder, read, columns, cache, parameters, device)


def token_classification(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: object,
    *,
    tokens: str | None = None,
    tags: str | None = None,
    max_length: int | None = None,
    columns: Columns = None,
    reduction: Reduction = "mean",
    cache: str | Path | None = None,
    parameters: str | Sequence[str] | None = None,
    device: object = None,
) -> Job:
    """Return the job of a model that gives each word a tag; see `causal_lm`.

    Parameters
    ----------
    model, tokenizer, dataset
        As for `causal_lm`; the tokenizer has to be a fast one.
    tokens, tags
        The columns of lists of words, and of their tags by number or name; None: ``"tokens"`` or ``"words"``, and
        ``"tags"``, ``"ner_tags"`` or ``"labels"``. The first token of a word has its tag, the others no loss.
    max_length, columns, reduction, cache, parameters, device
        As for `causal_lm`.
    """
    model = models.whole(model)
    row, read = rows.first(rows.read(dataset, cache))
    encoder = TagEncoder(
        tokenizer,
        models.longest(model, tokenizer, max_length),
        takes=models.arguments(model),
        words=rows.column(row, tokens, "tokens", "words", what="words"),
        tags=rows.column(row, tags, "tags", "ner_tags", "labels", what="tags"),
        numbers={name: int(number) for number, name in models.config_of(model).id2label.items()},
    )
    loss = TokenCrossEntropy(False, reduction)
    return make(model, loss, encoder, read, columns, cache, parameters, device)


def seq2seq(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: object,
    *,
    source: str | None = None,
    target: str | None = None,
    max_length: int | None = None,
    columns: Columns = None,
    reduction: Reduction = "mean",
    cache: str | Path | None = None,
    parameters: str | Sequence[str] | None = None,
    device: object = None,
) -> Job:
    """Return the job of a model that reads one text and writes another, such as T5; see `causal_lm`.

    Parameters
    ----------
    model, tokenizer, dataset
        As for `causal_lm`.
    source, target
        The columns of what is read and of what is written; None: ``"source"``, ``"prompt"`` or ``"text"``, and
        ``"target"``, ``"completion"`` or ``"summary"``.
    max_length, columns, reduction, cache, parameters, device
        As for `causal_lm`; `max_length` holds for both texts.
    """
    model = models.whole(model)
    row, read = rows.first(rows.read(dataset, cache))
    encoder = PairEncoder(
        tokenizer,
        models.longest(model, tokenizer, max_length),
        takes=models.arguments(model),
        source=rows.column(row, source, "source", "prompt", "text", what="what is read"),
        target=rows.column(row, target, "target", "completion", "summary", what="what is written"),
        shifted=models.Shifted(model),
    )
    loss = TokenCrossEntropy(False, reduction)
    return make(model, loss, encoder, read, columns, cache, parameters, device)


def masked_lm(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: object,
    *,
    text: str | None = None,
    mask_probability: float = 0.15,
    seed: int = SEED,
    max_length: int | None = None,
    columns: Columns = None,
    reduction: Reduction = "mean",
    cache: str | Path | None = None,
    parameters: str | Sequence[str] | None = None,
    device: object = None,
) -> Job:
    """Return the job of a model that fills in masked tokens, such as BERT; see `causal_lm`.

    Training masks other tokens each time, so a text has no one gradient. Here its masks are drawn once, from `seed` and
    its id: the rows of an index are those of these masks. Two seeds make two indexes; how far they agree tells how much
    the masks decide.

    Parameters
    ----------
    model, tokenizer, dataset
        As for `causal_lm`.
    text
        The column of the texts; None: ``"text"``.
    mask_probability
        The share of the tokens that are masked, at least one of a text.
    seed
        Seed of the masks.
    max_length, columns, reduction, cache, parameters, device
        As for `causal_lm`.

    Returns
    -------
    Job
        Its ``texts`` take ``text=``, masked by chance, or ``prompt=`` with masks and what belongs in them, ``answer=``.
    """
    if not 0 < mask_probability <= 1:
        raise ValueError(f"mask_probability must be above 0 and at most 1, got {mask_probability}.")
    model = models.whole(model)
    row, read = rows.first(rows.read(dataset, cache))
    if tokenizer.mask_token_id is None:
        raise ValueError("The tokenizer has no mask token: expected one of a masked language model.")
    encoder = MaskedEncoder(
        tokenizer,
        models.longest(model, tokenizer, max_length),
        takes=models.arguments(model),
        text=rows.column(row, text, "text", what="texts"),
        share=mask_probability,
        seed=seed,
    )
    loss = TokenCrossEntropy(False, reduction)
    return make(model, loss, encoder, read, columns, cache, parameters, device)
