"""From texts to tokens: what a causal model's samples and queries are made of."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tree
from gradindex.data.tensors import as_numpy
from gradindex.data.text import IGNORED, Messages
from gradindex.interop.language.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, object]
"""A row of a dataset."""
Tokens = list[int]
Text = str | Messages
"""A text, or a conversation."""


@dataclass(frozen=True)
class Encoder(ABC):
    """Makes samples of a dataset's rows, and queries of texts, the same way.

    Parameters
    ----------
    tokenizer
        The tokenizer.
    max_length
        Most tokens of a text; longer ones are cut on the right. None: no limit.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int | None = None
    generates: ClassVar[bool] = False
    """Whether the model's answer is made token by token."""
    answers_texts: ClassVar[bool] = False
    """Whether a text has an answer, such as its class."""

    @abstractmethod
    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample; `number` is its id."""

    @abstractmethod
    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return what was asked about as a sample; one of text, prompt with answer, and messages is given."""

    @abstractmethod
    def prompt(self, prompt: Text) -> Sample:
        """Return a prompt as the model is to go on from it; its labels mean nothing."""

    def answer(self, logits: NDArray[np.float32], sample: Sample) -> str:
        """Return the answer that the logits (…, V) of a `prompt` give, where none is generated."""
        raise NotImplementedError

    def shown(self, x: Tree, y: Tree) -> NDArray[np.generic]:
        """Return the tokens (t,) that losses of tokens speak of, of inputs and labels with an axis of one sample."""
        found: NDArray[np.generic] = as_numpy(x["input_ids"][0])
        return found

    def plain(self, x: Tree, y: Tree) -> str:
        """Return inputs and labels with an axis of one sample as people read them."""
        return self.decoded(self.shown(x, y))

    def decoded(self, ids: NDArray[np.generic]) -> str:
        """Return tokens (t,) as text, without special ones."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def settings(self) -> dict[str, object]:
        """Return what samples depend on, besides the dataset."""
        tokenizer = self.tokenizer
        words = sorted(tokenizer.get_vocab().items())
        return {
            "kind": type(self).__name__,
            "tokenizer": f"{type(tokenizer).__name__} {zlib.crc32(repr(words).encode()):08x}",
            "max_length": self.max_length,
        }

    def cut(self, tokens: Tokens) -> tuple[Tokens, bool]:
        """Return the tokens that a text may have, and whether there were more."""
        if self.max_length is None or len(tokens) <= self.max_length:
            return tokens, False
        return tokens[: self.max_length], True

    def ids(self, text: str, special: bool = True) -> Tokens:
        """Return the tokens of a text, with the tokenizer's own beginning and end if `special`."""
        found = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return list(map(int, found))


@dataclass(frozen=True)
class CausalEncoder(Encoder):
    """Samples of a model that predicts the next token.

    Parameters
    ----------
    text, messages, prompt, completion
        The columns that hold texts, conversations, or what was asked and what is to be said.
    chat_template
        A Jinja template in the place of the tokenizer's.
    loss_on
        ``"completion"``: the assistant's messages, or the completion; ``"all"``: every token. Of a plain text all
        tokens count.
    end
        Whether texts and completions end with the tokenizer's end-of-sequence token.
    chats
        Whether prompts are conversations, so that a plain one becomes a message of the user.
    """

    text: str | None = None
    messages: str | None = None
    prompt_column: str | None = None
    completion: str | None = None
    chat_template: str | None = None
    loss_on: Literal["completion", "all"] = "completion"
    end: bool = False
    chats: bool = False
    generates: ClassVar[bool] = True

    def settings(self) -> dict[str, object]:
        """Return what samples depend on, besides the dataset."""
        template = self.chat_template or getattr(self.tokenizer, "chat_template", None)
        own = (self.text, self.messages, self.prompt_column, self.completion, self.loss_on, self.end)
        return super().settings() | {
            "columns": own,
            "template": None if template is None else zlib.crc32(str(template).encode()),
        }

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample."""
        if self.text is not None:
            return self._of_text(_string(row, self.text, number))
        if self.messages is not None:
            return self._of_messages(_conversation(row, self.messages, number), self.loss_on == "all")
        prompt, completion = row[str(self.prompt_column)], row[str(self.completion)]
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._of_pair(prompt, completion, self.loss_on == "all")
        asked = _conversation(row, str(self.prompt_column), number)
        return self._of_answer(asked, _conversation(row, str(self.completion), number), self.loss_on == "all")

    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return what was asked about as a sample."""
        if text is not None:
            return self._of_text(text)
        if messages is not None:
            return self._of_messages(messages, False)
        if prompt is None or answer is None:
            raise ValueError("A query needs a text, a prompt with its answer, or messages.")
        asked = self._asked(prompt)
        if isinstance(asked, str):
            return self._of_pair(asked, answer, False)
        return self._of_answer(asked, [{"role": "assistant", "content": answer}], False)

    def prompt(self, prompt: Text) -> Sample:
        """Return a prompt as the model is to go on from it."""
        asked = self._asked(prompt)
        tokens = self._beginning(asked) if isinstance(asked, str) else self._laid_out(asked, True)
        return _causal(tokens, [False] * len(tokens))

    def _asked(self, prompt: Text) -> Text:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) and self.chats else prompt

    def _of_text(self, text: str) -> Sample:
        tokens = self._ended(self.ids(text))
        tokens, cut = self.cut(tokens)
        return _causal(tokens, [True] * len(tokens), cut)

    def _of_pair(self, prompt: str, completion: str, everything: bool) -> Sample:
        return self._marked(self._beginning(prompt), self._ended(self.ids(prompt + completion)), everything)

    def _of_answer(self, asked: Messages, answer: Messages, everything: bool) -> Sample:
        return self._marked(self._laid_out(asked, True), self._laid_out([*asked, *answer]), everything)

    def _marked(self, prompt: Tokens, whole: Tokens, everything: bool) -> Sample:
        """Return tokens, of which those behind the prompt's count: behind all that the two have in common."""
        begin = 0 if everything else common(prompt, whole)
        tokens, cut = self.cut(whole)
        return _causal(tokens, [place >= begin for place in range(len(tokens))], cut)

    def _of_messages(self, messages: Messages, everything: bool) -> Sample:
        whole = self._laid_out(messages)
        counts = [True] * len(whole) if everything else self._by_assistant(messages, whole)
        tokens, cut = self.cut(whole)
        return _causal(tokens, counts[: len(tokens)], cut)

    def _by_assistant(self, messages: Messages, whole: Tokens) -> list[bool]:
        """Return which tokens of a conversation are the assistant's: as the template says, or by what it adds."""
        template = self.chat_template or getattr(self.tokenizer, "chat_template", None)
        if isinstance(template, str) and "{% generation" in template.replace("{%-", "{%"):
            found = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.chat_template,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            return [bool(one) for one in found["assistant_masks"]]
        counts = [False] * len(whole)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, behind = self._laid_out(messages[:number], True), self._laid_out(messages[: number + 1])
            begin, end = common(before, whole), common(behind, whole)
            if begin < len(before) or end <= begin:
                raise ValueError(
                    f"The chat template writes what stands before message {number} otherwise once the conversation "
                    "goes on, so that the assistant's tokens cannot be told. Give a template with {% generation %} "
                    'around them (chat_template=), or loss_on="all".'
                )
            counts[begin:end] = [True] * (end - begin)
        return counts

    def _laid_out(self, messages: Messages, asks: bool = False) -> Tokens:
        """Return the tokens of a conversation; `asks`: up to where the assistant is to speak."""
        if not (self.chat_template or getattr(self.tokenizer, "chat_template", None)):
            raise ValueError("The tokenizer has no chat template: give one (chat_template=), or texts in text=.")
        found = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.chat_template,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=asks,
        )
        return list(map(int, found["input_ids"]))

    def _beginning(self, prompt: str) -> Tokens:
        """Return the tokens of a prompt, without the end that the tokenizer itself may put behind a text."""
        tokens = self.ids(prompt)
        return tokens[:-1] if len(tokens) > 1 and tokens[-1] == self.tokenizer.eos_token_id else tokens

    def _ended(self, tokens: Tokens) -> Tokens:
        end = self.tokenizer.eos_token_id
        return [*tokens, int(end)] if self.end and end is not None and tokens[-1:] != [end] else tokens


def _causal(tokens: Tokens, counts: Sequence[bool], cut: bool = False) -> Sample:
    """Return a sample of tokens, with labels where they count; nothing predicts the first token."""
    ids = np.array(tokens, np.int32)
    labels = np.where(np.array(counts, bool), ids, np.int32(IGNORED))
    return Sample({"input_ids": ids}, labels, int((labels[1:] != IGNORED).sum()), cut)


def common(first: Tokens, second: Tokens) -> int:
    """Return how many tokens two texts begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _string(row: Row, name: str, number: int) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"Row {number} has {type(value).__name__} in the column {name!r}: expected a text.")
    return value


def _conversation(row: Row, name: str, number: int) -> list[dict[str, str]]:
    value = row[name]
    several = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    messages = [dict(one) for one in several if isinstance(one, Mapping) and "role" in one and "content" in one]
    if len(messages) < len(several):
        raise TypeError(
            f"Row {number} has {type(value).__name__} in the column {name!r}: expected messages, a list of "
            '{"role": …, "content": …}.'
        )
    return messages
