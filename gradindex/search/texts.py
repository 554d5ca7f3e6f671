"""Queries of a language model: texts, answers and conversations, and which of their tokens are asked about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from gradindex.compute.queries import Queries
from gradindex.data.source import Tree, concatenate, merge, take_rows
from gradindex.data.tensors import as_numpy
from gradindex.data.text import IGNORED, Messages, TextReader
from gradindex.gradients.engine import Engine
from gradindex.job import Job

EACH = "each"
TokenChoice: TypeAlias = slice | int | str
"""Which tokens of a query: positions, one of them, or ``"each"``."""
Prompt: TypeAlias = str | Messages


@dataclass(frozen=True, kw_only=True)
class Words:
    """What `Index.explain` is asked in words: see its parameters of these names."""

    text: str | Sequence[str] | None = None
    prompt: Prompt | Sequence[Prompt] | None = None
    answer: str | Sequence[str] | None = None
    messages: Messages | Sequence[Messages] | None = None
    tokens: TokenChoice | None = None

    @property
    def given(self) -> bool:
        """Whether there are queries in words."""
        return any(one is not None for one in (self.text, self.prompt, self.answer, self.messages))

    @property
    def each(self) -> bool:
        """Whether every token of a query is asked about by itself."""
        return isinstance(self.tokens, str) and self.tokens == EACH

    def params(self, method: str | None) -> dict[str, object]:
        """Return what an explanation's parameters say of the tokens asked about; nothing if that is all of them."""
        if self.tokens is None:
            return {}
        whole = self.tokens
        said = [whole.start, whole.stop, whole.step] if isinstance(whole, slice) else whole
        return {"tokens": said, "token_method": method}

    def refuse(self, *, whitened: bool, gradients: bool) -> None:
        """Raise ValueError or TypeError where single tokens cannot be asked about."""
        if self.tokens is None:
            return
        one = isinstance(self.tokens, int | np.integer) and not isinstance(self.tokens, bool)
        if not (self.each or one or isinstance(self.tokens, slice)):
            raise TypeError(f"tokens must be a slice, an integer or {EACH!r}, got {self.tokens!r}.")
        if not gradients:
            raise ValueError("tokens needs gradients, and this index has the rows of a metric: leave tokens out.")
        if whitened and self.each:
            raise ValueError(
                f"tokens={EACH!r} needs exact gradients, and kernels of whitened rows have estimates: take another "
                "kernel, or ask about some tokens by a slice."
            )


@dataclass(frozen=True)
class Asked:
    """Labelled queries, and what an explanation's data says of them beside: `about`, by names."""

    queries: Queries
    about: dict[str, object]


def asked(job: Job, words: Words, ids: NDArray[np.int64] | None, labelled: Callable[[], Queries]) -> Asked:
    """Return the queries that `words` (or else `labelled`) says, with labels at the tokens that are asked about.

    Parameters
    ----------
    job
        The language job.
    words
        What was asked.
    ids
        Dataset positions, where `labelled` takes queries from the dataset.
    labelled
        Returns the queries, where there are none in words.

    Raises
    ------
    ValueError
        If the job has no texts, queries are given in several ways or not at all, or no token asked about has a loss.
    IndexError
        If a token is out of range.
    TypeError
        If tokens are asked about, and the loss is not made of those of tokens.
    """
    about: dict[str, object] = {}
    if words.given:
        texts = _reader(job)
        encoded, answers = _encoded(texts, words)
        queries = Queries(*(merge(concatenate, list(part)) for part in zip(*encoded, strict=True)))
        about["query_tokens"] = [texts.pieces_of(x, y) for x, y in encoded]
        if answers is not None:
            about["query_answers"] = answers
    else:
        queries = labelled()
        if words.tokens is not None and job.texts is not None:
            about["query_tokens"] = [
                job.texts.pieces_of(*(take_rows(part, _at(i)) for part in (queries.x, queries.y)))
                if ids is None
                else job.texts.pieces(int(ids[i]))
                for i in range(len(queries))
            ]
    if words.tokens is not None and not words.each:
        assert not isinstance(words.tokens, str)
        queries = restricted(job.engine, queries, words.tokens)
    return Asked(queries, about)


def restricted(engine: Engine, queries: Queries, tokens: slice | int) -> Queries:
    """Return queries whose labels at all other tokens are `IGNORED`; raises like `asked`."""
    rows = []
    for i in range(len(queries)):
        x, y = take_rows(queries.x, _at(i)), take_rows(queries.y, _at(i))
        losses = engine.token_losses(x, y)
        rows.append(_masked(engine, i, x, y, losses, _places(tokens, len(losses))))
    return Queries(queries.x, merge(concatenate, rows))


def _masked(
    engine: Engine, number: int, x: Tree, y: Tree, losses: NDArray[np.float64], places: NDArray[np.int64]
) -> Tree:
    ragged = isinstance(y, list)
    labels = np.array(as_numpy(y[0] if ragged else y)) if not isinstance(y, Mapping | tuple) else np.empty(0)
    labels = labels[None] if ragged else labels
    if labels.shape != (1, len(losses)) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"tokens needs one label for each of the {len(losses)} tokens, integers in one array, got labels of shape "
            f"{labels.shape[1:]} and dtype {labels.dtype}. Leave tokens out, or give such labels."
        )
    others = np.ones(len(losses), bool)
    others[places] = False
    labels[0, others] = IGNORED
    there = np.flatnonzero(losses)
    if not np.isin(there, places).any():
        having = f"{there.min()} to {there.max()} have one" if len(there) else "none has one"
        raise ValueError(
            f"The tokens {places.tolist()} of query {number} have no loss, so no gradient (a prompt's have none, nor "
            f"has the first of a text): {having}. Ask about some of those."
        )
    left = engine.token_losses(x, labels)
    if (left[others] != 0).any() or ((left != 0) != (losses != 0))[places].any():
        raise ValueError(
            f"The loss does not leave out the tokens whose label is {IGNORED}: expected it to ignore them, as torch's "
            "cross-entropy does. Leave tokens out, or give such a loss."
        )
    return labels


def _places(tokens: slice | int, count: int) -> NDArray[np.int64]:
    every = np.arange(count)
    if isinstance(tokens, slice):
        return every[tokens]
    if not -count <= tokens < count:
        raise IndexError(f"Token {tokens} is out of range for a query of {count} tokens.")
    return every[[tokens]]


def _encoded(texts: TextReader, words: Words) -> tuple[list[tuple[Tree, Tree]], list[str] | None]:
    """Return each query's inputs and labels, and the answers to prompts."""
    ways = {"text": words.text, "prompt": words.prompt, "messages": words.messages}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1 or (words.answer is not None and words.prompt is None):
        names = [*given, *(["answer"] if words.answer is not None else [])]
        raise ValueError(f"Give one of text, prompt (with its answer, or without) and messages, got {names}.")
    if words.text is not None:
        return [texts.encode(text) for text in cast("list[str]", _several(words.text))], None
    if words.prompt is not None:
        prompts = cast("list[Prompt]", _several(words.prompt))
        given_answers = cast("list[str]", [] if words.answer is None else _several(words.answer))
        own = [None] * len(prompts) if words.answer is None else given_answers
        if len(own) != len(prompts):
            raise ValueError(f"There are {len(prompts)} prompts but {len(own)} answers.")
        answers = [texts.answer(prompt) if one is None else one for prompt, one in zip(prompts, own, strict=True)]
        return [texts.encode(prompt=p, answer=a) for p, a in zip(prompts, answers, strict=True)], answers
    every = cast("list[Messages]", _several(words.messages))
    conversations = [_answered(texts, messages) for messages in every]
    return [texts.encode(messages=one) for one in conversations], [str(one[-1]["content"]) for one in conversations]


def _answered(texts: TextReader, messages: Messages) -> Messages:
    """Return a conversation that ends with the assistant's answer: the model's own, where there is none."""
    if not messages:
        raise ValueError("messages is empty: expected a conversation, such as [{'role': 'user', 'content': '…'}].")
    if messages[-1]["role"] == "assistant":
        return messages
    return [*messages, {"role": "assistant", "content": texts.answer(messages)}]


def _several(value: object) -> list[object]:
    """Return queries that were given as one (a text, a conversation) or as several."""
    one = isinstance(value, str) or (isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping))
    if not one and not isinstance(value, Sequence):
        raise TypeError(f"Expected a text, a conversation or a list of them, got {type(value).__name__}.")
    found: list[object] = [value] if one else [*cast("Sequence[object]", value)]
    if not found:
        raise ValueError("There are no queries: the list is empty.")
    return found


def _reader(job: Job) -> TextReader:
    if job.texts is None:
        raise ValueError(
            "This job does not say how texts become samples: expected Job.texts, as gradindex.hugging_face.causal_lm "
            "fills it in. Make the job by that, or give inputs x and labels y."
        )
    return job.texts


def _at(place: int) -> slice:
    return slice(place, place + 1)
