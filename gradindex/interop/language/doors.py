"""From a model, its tokenizer and a dataset to a job: for each kind of language model one function."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradindex.data.names import LossFunction, Tree
from gradindex.data.source import Ids, Source
from gradindex.interop.language import models, own_loss, rows
from gradindex.interop.language.encode import CausalEncoder, Encoder, Row
from gradindex.interop.language.encode_heads import ClassEncoder, MaskedEncoder, PairEncoder, TagEncoder
from gradindex.interop.language.encode_tokens import TokenEncoder
from gradindex.interop.language.loss import ClassLoss, Reduction, TokenCrossEntropy
from gradindex.interop.language.reader import Texts
from gradindex.interop.language.samples import Sample, TextSamples, kept
from gradindex.job import Job

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Columns = Sequence[str] | Tree | None
"""Names of the dataset's columns, or the columns themselves as `gradindex.Job` takes them."""


def causal_lm(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: object,
    *,
    text: str | None = None,
    messages: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    packing: bool = False,
    loss_on: Literal["completion", "all"] = "completion",
    columns: Columns = None,
    add_eos: bool = False,
    reduction: Reduction | None = None,
    cache: str | Path | None = None,
    parameters: str | Sequence[str] | None = None,
    device: object = None,
) -> Job:
    """Return the job of a model that predicts the next token, such as GPT-2 or Llama, with or without PEFT's adapters.

    Every text is a sample of its own, of its own length, without padding. Its loss is the mean of its tokens', as that
    of a training step on this text alone. The first token has no loss, since nothing predicts it.

    Parameters
    ----------
    model
        A model of transformers, whole and in one process.
    tokenizer
        Its tokenizer.
    dataset
        A ``datasets.Dataset``, a torch ``Dataset`` of dicts, a DataFrame, or a list of dicts or texts. An
        ``IterableDataset`` is read once, in its order, with `cache`. Ids are positions in it.
    text
        The column of plain texts, all of whose tokens count.
    messages
        The column of conversations, ``[{"role": "user", "content": "…"}, …]``, laid out by the chat template.
    prompt, completion
        The columns of what is asked and what is to be said: texts that follow each other as they are, or
        conversations. Of text, messages, and prompt with completion one is given; None: ``"messages"``, ``"prompt"``
        and ``"completion"``, ``"text"`` or ``"input_ids"`` (with ``"labels"``), the first that the dataset has.
    chat_template
        A Jinja template in the place of the tokenizer's.
    max_length
        Most tokens of a text. Longer ones are cut on the right, and a warning says which. None: as many as the model
        has positions for.
    packing
        Whether rows of the dataset hold several documents' ``input_ids``, whose boundaries ``seq_lengths``,
        ``position_ids`` or an ``attention_mask`` tell. Each document is a sample then: as attention does not pass its
        boundaries, its gradient is that of the document alone. With texts, each is a document already.
    loss_on
        ``"completion"``: the assistant's messages, or the completion; ``"all"``: every token.
    columns
        What is to come back with results: names of columns of the dataset, or columns as `gradindex.Job` takes them.
    add_eos
        Whether texts and completions end with the tokenizer's end-of-sequence token, as TRL's trainer adds it.
    reduction
        ``"mean"`` of the tokens' losses or their ``"sum"``. None: the mean, and the sum for packed documents, whose
        mean was over the whole row. The cosine is the same.
    cache
        An Arrow file to keep the encoded texts in, in the place of memory; it is used again where it is there. It does
        not notice another dataset: give that another file.
    parameters, device
        See `gradindex.Job`.

    Returns
    -------
    Job
        Its ``texts`` turn texts into queries, and samples into text.

    Raises
    ------
    ValueError
        If the model is in parts or its adapters are merged, no column fits, or the dataset is empty.
    TypeError
        If the model is none of transformers, or the dataset none of these.
    """
    model = models.whole(model)
    longest = models.longest(model, tokenizer, max_length)
    given, read = rows.read(dataset, cache), None
    row, read = rows.first(given)
    fields = _causal_fields(row, text, messages, prompt, completion)
    if packing and "input_ids" in row and not fields:
        read = _unpacked(read, columns)
    elif packing and not fields:
        raise ValueError(f"packing=True needs rows of input_ids; the dataset has {', '.join(map(repr, row))}.")
    encoder: Encoder
    if fields:
        conversations = "messages" in fields or not isinstance(row[fields.get("prompt_column", next(iter(row)))], str)
        encoder = CausalEncoder(
            tokenizer,
            longest,
            chat_template=chat_template,
            loss_on=loss_on,
            end=add_eos,
            chats=("messages" in fields or "prompt_column" in fields) and conversations,
            **fields,
        )
    else:
        chats = (chat_template or getattr(tokenizer, "chat_template", None)) is not None
        asks = CausalEncoder(tokenizer, longest, chat_template=chat_template, end=add_eos, chats=chats)
        encoder = TokenEncoder(tokenizer, longest, asks=asks)
    how = reduction or ("sum" if packing else "mean")
    loss = TokenCrossEntropy(True, how)
    return _job(model, loss, encoder, read, columns, cache, parameters, device, {"packing": packing})


def _causal_fields(
    row: Row, text: str | None, messages: str | None, prompt: str | None, completion: str | None
) -> dict[str, str]:
    """Return the columns by what they are, as `CausalEncoder` names them; none where rows are encoded already."""
    named = [
        name for name, value in (("text", text), ("messages", messages), ("prompt", prompt or completion)) if value
    ]
    if len(named) > 1:
        raise ValueError(f"Give one of text, messages, and prompt with completion; got {' and '.join(named)}.")
    if not named:
        if "messages" in row:
            named = ["messages"]
        elif "prompt" in row and "completion" in row:
            named = ["prompt"]
        elif "text" in row or "input_ids" not in row:
            named = ["text"]
    if named == ["text"]:
        return {"text": rows.column(row, text, "text", what="texts")}
    if named == ["messages"]:
        return {"messages": rows.column(row, messages, "messages", what="conversations")}
    if named == ["prompt"]:
        asked = rows.column(row, prompt, "prompt", what="prompts")
        return {"prompt_column": asked, "completion": rows.column(row, completion, "completion", what="completions")}
    return {}


def _unpacked(read: Callable[[], Iterator[Row]], columns: Columns) -> Callable[[], Iterator[Row]]:
    def every() -> Iterator[Row]:
        names = columns if isinstance(columns, list | tuple) else ()
        for row in read():
            for document in rows.documents(row):
                yield {**document, **{name: row[name] for name in names}}

    return every


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
    return _job(model, ClassLoss(problem), encoder, read, columns, cache, parameters, device)


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
    return _job(model, loss, encoder, read, columns, cache, parameters, device)


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
    return _job(model, loss, encoder, read, columns, cache, parameters, device)


def masked_lm(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: object,
    *,
    text: str | None = None,
    mask_probability: float = 0.15,
    seed: int = 0,
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
    return _job(model, loss, encoder, read, columns, cache, parameters, device)


def _job(
    model: "PreTrainedModel",
    loss: LossFunction,
    encoder: Encoder,
    read: Callable[[], Iterator[Row]],
    columns: Columns,
    cache: str | Path | None,
    parameters: str | Sequence[str] | None,
    device: object,
    more: dict[str, object] | None = None,
) -> Job:
    names = list(columns) if isinstance(columns, list | tuple) else []
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            "columns must be names of the dataset's columns, or columns by name, as gradindex.Job takes them."
        )

    def samples() -> Iterator[Sample]:
        for number, row in enumerate(read()):
            own = {name: row[rows.column(row, name, what="columns=")] for name in names}
            yield replace(encoder.sample(row, number), columns=own)

    source = kept(samples(), cache, encoder.settings() | (more or {}) | {"own": names})
    report(source, encoder.max_length)
    reads_own = False
    if own_loss.takes_labels(model):
        loss, reads_own = own_loss.settle(model, [loss], source, own_loss.of_model(model), "The model's")
    return finish(model, loss, source, encoder, columns, reads_own, parameters, device)


def finish(
    model: "nn.Module",
    loss: LossFunction,
    source: Source,
    encoder: Encoder | None,
    columns: Columns,
    reads_own: bool,
    parameters: str | Sequence[str] | None,
    device: object,
) -> Job:
    """Return the job of these parts.

    Parameters
    ----------
    model, loss
        The model and its loss.
    source
        The encoded samples.
    encoder
        What made them, or makes queries like them; None: there is no tokenizer.
    columns
        As `causal_lm` takes them; names are those of the source's own columns.
    reads_own
        Whether the loss is what the model makes of labels among its inputs.
    parameters, device
        As `gradindex.Job` takes them.
    """
    truncated = source.truncated if isinstance(source, TextSamples) else None
    texts = None if encoder is None else Texts(model, encoder, source, truncated, reads_own)
    classes = isinstance(loss, ClassLoss) and loss.problem != "regression"
    names = models.config_of(model).id2label if classes else None
    if isinstance(columns, list | tuple):
        columns = source.columns if isinstance(source, TextSamples) else None
    return Job(
        model,
        loss,
        own_loss.WithLabels(source) if reads_own else source,
        task="classification" if classes else "regression",
        class_names=None if names is None else [names[number] for number in sorted(names)],
        columns=columns,
        render=None if texts is None else texts.text,
        texts=texts,
        parameters=parameters,
        device=device,
    )


def report(source: TextSamples, longest: int | None) -> None:
    """Warn of samples that were cut, and of those that have no token with a loss."""
    for ids, what, why in (
        (source.truncated, f"were cut at {longest} tokens (max_length)", "What stood behind has no gradient"),
        (source.without_loss, "have no token with a loss", "Their gradients are zero"),
    ):
        if len(ids):
            warnings.warn(
                f"{len(ids)} of {len(source)} texts {what}: ids {few(ids)}. {why}.", UserWarning, stacklevel=5
            )


def few(ids: Ids) -> str:
    """Return ids as messages have them: ten at most."""
    return f"{', '.join(map(str, ids[:10]))}{' …' if len(ids) > 10 else ''}"
