"""From a causal language model, its tokenizer and a dataset to a job; `heads` has the other kinds of models."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradindex.interop.language import models, rows
from gradindex.interop.language.encode import CausalEncoder, Encoder, Row
from gradindex.interop.language.encode_tokens import TokenEncoder
from gradindex.interop.language.loss import Reduction, TokenCrossEntropy
from gradindex.interop.language.making import Columns, make
from gradindex.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    row, read = rows.first(rows.read(dataset, cache))
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
    return make(model, loss, encoder, read, columns, cache, parameters, device, {"packing": packing})


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
