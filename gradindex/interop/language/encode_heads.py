"""From texts to tokens, of models with other heads: classifiers, taggers, those that translate, those that fill in."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tree
from gradindex.data.tensors import as_numpy
from gradindex.data.text import IGNORED, Messages
from gradindex.defaults import SEED
from gradindex.interop.language.encode import Encoder, Row, Text
from gradindex.interop.language.samples import Sample

if TYPE_CHECKING:
    from transformers import BatchEncoding

_MASKED, _RANDOM = 0.8, 0.1  # of the chosen tokens: those replaced by the mask, and by any token


def _plain(text: str | None, prompt: Text | None, messages: Messages | None) -> str:
    """Return the text of a query to a model that knows no conversations."""
    found = text if text is not None else prompt
    if messages is not None or not isinstance(found, str):
        raise ValueError("This model takes no conversations: give a text.")
    return found


def _number(value: object, numbers: Mapping[str, int]) -> int:
    """Return the number of a class that is given by its name or number."""
    if isinstance(value, str) and value not in numbers and not value.isdigit():
        raise ValueError(f"There is no class {value!r}: expected one of {', '.join(numbers)}.")
    return numbers[value] if isinstance(value, str) and value in numbers else int(cast("int", value))


@dataclass(frozen=True)
class _Whole(Encoder):
    """Encodes texts as the tokenizer does: its special tokens stay where a text is cut.

    Parameters
    ----------
    takes
        The names of the model's arguments.
    """

    takes: frozenset[str] = frozenset()

    def encoded(
        self, *texts: Sequence[str] | str, words: bool = False
    ) -> tuple[dict[str, NDArray[np.int32]], bool, "BatchEncoding"]:
        """Return the model's inputs for a text (or two), whether it was cut, and the tokenizer's encoding."""
        how = {"is_split_into_words": words, "verbose": False}
        whole = self.tokenizer(*texts, **how)
        cut = self.max_length is not None and len(whole["input_ids"]) > self.max_length
        found = self.tokenizer(*texts, truncation=True, max_length=self.max_length, **how) if cut else whole
        names = [name for name in found if name in self.takes and name != "attention_mask"]
        return {name: np.array(found[name], np.int32) for name in names}, cut, found


@dataclass(frozen=True)
class ClassEncoder(_Whole):
    """Samples of a sequence classifier; ``answer`` in a query is the name or number of a class.

    Parameters
    ----------
    text, pair, label
        The columns of the text, of a second one (None: there is none), and of the labels.
    problem
        Hugging Face's ``problem_type``.
    numbers
        The numbers of the classes by name.
    predicted
        Returns the model's own label for inputs.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    problem: str = "single_label_classification"
    numbers: Mapping[str, int] = field(default_factory=dict)
    answers_texts: ClassVar[bool] = True

    def answer(self, logits: NDArray[np.float32], sample: Sample) -> str:
        """Return the name of the class of the largest logit (c,), of all above 0, or the number itself."""
        names = {number: name for name, number in self.numbers.items()}
        if self.problem == "regression":
            return ", ".join(str(float(one)) for one in logits)
        if self.problem == "multi_label_classification":
            return ", ".join(names[int(one)] for one in np.flatnonzero(logits > 0))
        return names[int(logits.argmax())]

    def settings(self) -> dict[str, object]:
        """Return what samples depend on, besides the dataset."""
        return super().settings() | {"columns": (self.text, self.pair, self.label), "problem": self.problem}

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample."""
        x, cut, _ = self.encoded(*(str(row[name]) for name in (self.text, self.pair) if name is not None))
        return Sample(x, self._label(row[self.label]), 1, cut)

    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return what was asked about as a sample."""
        x, cut, _ = self.encoded(_plain(text, prompt, messages))
        if answer is None:
            raise ValueError("A query of a classifier needs the name or number of a class as its answer.")
        return Sample(x, self._label(answer), 1, cut)

    def prompt(self, prompt: Text) -> Sample:
        """Return a text whose class is asked for."""
        return Sample(self.encoded(_plain(None, prompt, None))[0], np.zeros((), np.int32))

    def _label(self, value: object) -> NDArray[np.generic]:
        if self.problem == "single_label_classification":
            return np.array(_number(value, self.numbers), np.int64)
        if not isinstance(value, str):
            return np.array(value, np.float32)
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if self.problem == "regression":
            return np.array([float(part) for part in parts] if len(parts) > 1 else float(value), np.float32)
        label = np.zeros(len(self.numbers), np.float32)
        label[[_number(part, self.numbers) for part in parts]] = 1
        return label


@dataclass(frozen=True)
class TagEncoder(_Whole):
    """Samples of a model that gives each word a tag; the first token of a word has its label, the others none.

    Parameters
    ----------
    words, tags
        The columns of the words of a text, and of their tags.
    numbers
        The numbers of the tags by name.
    """

    words: str = "tokens"
    tags: str = "tags"
    numbers: Mapping[str, int] = field(default_factory=dict)
    answers_texts: ClassVar[bool] = True

    def answer(self, logits: NDArray[np.float32], sample: Sample) -> str:
        """Return the tags of the largest logits (t, c), a word each."""
        names = {number: name for name, number in self.numbers.items()}
        return " ".join(names[int(one)] for one in logits[sample.y != IGNORED].argmax(-1))

    def settings(self) -> dict[str, object]:
        """Return what samples depend on, besides the dataset."""
        return super().settings() | {"columns": (self.words, self.tags)}

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample."""
        words, tags = (list(cast("Sequence[object]", row[name])) for name in (self.words, self.tags))
        if len(words) != len(tags):
            raise ValueError(f"Row {number} has {len(words)} words but {len(tags)} tags.")
        return self._of(list(map(str, words)), tags)

    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return a text of words, and their tags as the answer, both separated by spaces, as a sample."""
        words = _plain(text, prompt, messages).split()
        tags = [] if answer is None else answer.split()
        if len(words) != len(tags):
            raise ValueError(f"The text has {len(words)} words, the answer {len(tags)} tags: expected one for each.")
        return self._of(words, tags)

    def prompt(self, prompt: Text) -> Sample:
        """Return a text whose tags are asked for; the first token of each word has a label."""
        words = _plain(None, prompt, None).split()
        return self._of(words, [0] * len(words))

    def _of(self, words: list[str], tags: Sequence[object]) -> Sample:
        x, cut, found = self.encoded(words, words=True)
        y, before = np.full(len(x["input_ids"]), IGNORED, np.int32), None
        for place, word in enumerate(found.word_ids()):
            if word is not None and word != before:
                y[place] = _number(tags[word], self.numbers)
            before = word
        return Sample(x, y, int((y != IGNORED).sum()), cut)


@dataclass(frozen=True)
class PairEncoder(_Whole):
    """Samples of a model that reads one text and writes another.

    Parameters
    ----------
    source, target
        The columns of what is read, and of what is written.
    shifted
        Returns the decoder's inputs (t,) for labels (t,).
    """

    source: str = "source"
    target: str = "target"
    shifted: Callable[[NDArray[np.int32]], NDArray[np.int32]] | None = None
    generates: ClassVar[bool] = True

    def shown(self, x: Tree, y: Tree) -> NDArray[np.generic]:
        """Return the tokens (t,) that are written: the labels."""
        if y is None:
            raise ValueError("The tokens that are written are the labels: give them, too.")
        found: NDArray[np.integer] = as_numpy(y[0])
        return np.where(found == IGNORED, self.tokenizer.pad_token_id, found)

    def plain(self, x: Tree, y: Tree) -> str:
        """Return what is read, and in a line below what is written."""
        return f"{self.decoded(as_numpy(x['input_ids'][0]))}\n{self.decoded(self.shown(x, y))}"

    def settings(self) -> dict[str, object]:
        """Return what samples depend on, besides the dataset."""
        return super().settings() | {"columns": (self.source, self.target)}

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample."""
        return self._of(str(row[self.source]), str(row[self.target]))

    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return a prompt that is read and an answer that is written as a sample."""
        if text is not None or answer is None:
            raise ValueError("This model reads one text and writes another: give prompt and answer.")
        return self._of(_plain(None, prompt, messages), answer)

    def prompt(self, prompt: Text) -> Sample:
        """Return a text that is read."""
        return Sample(self.encoded(_plain(None, prompt, None))[0], np.zeros(0, np.int32))

    def _of(self, source: str, target: str) -> Sample:
        x, cut, _ = self.encoded(source)
        whole = list(map(int, self.tokenizer(text_target=target, verbose=False)["input_ids"]))
        short, cut_too = whole, False
        if self.max_length is not None and len(whole) > self.max_length:
            how = {"truncation": True, "max_length": self.max_length, "verbose": False}
            short, cut_too = self.tokenizer(text_target=target, **how)["input_ids"], True
        y = np.array(short, np.int32)
        if self.shifted is None:
            raise ValueError("The model does not say how it makes its decoder's inputs of labels.")
        return Sample({**x, "decoder_input_ids": self.shifted(y)}, y, len(y), cut or cut_too)


@dataclass(frozen=True)
class MaskedEncoder(_Whole):
    """Samples of a model that fills in masked tokens.

    Which tokens are masked is drawn once for each sample, from `seed` and its id, as Hugging Face's collator draws it
    for each step: of the chosen ones 8 in 10 become the mask, 1 in 10 any token, 1 in 10 stays. At least one is chosen.

    Parameters
    ----------
    text
        The column of the texts.
    share
        The probability of a token to be chosen.
    seed
        Seed of the choice.
    """

    text: str = "text"
    share: float = 0.15
    seed: int = SEED

    def answer(self, logits: NDArray[np.float32], sample: Sample) -> str:
        """Return the tokens of the largest logits (t, V) in the places of the masks."""
        return self.decoded(logits[sample.y != IGNORED].argmax(-1))

    def plain(self, x: Tree, y: Tree) -> str:
        """Return the text without its masks."""
        labels = as_numpy(y[0])
        return self.decoded(np.where(labels == IGNORED, self.shown(x, y), labels))

    def settings(self) -> dict[str, object]:
        """Return what samples depend on, besides the dataset."""
        return super().settings() | {"columns": self.text, "share": self.share, "seed": self.seed}

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample."""
        return self._masked(str(row[self.text]), number)

    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return a text, masked by chance, or a prompt with masks and the answer that belongs in them, as a sample."""
        if text is not None:
            return self._masked(text, zlib.crc32(text.encode()))
        x, cut, _ = self.encoded(_plain(None, prompt, messages))
        holes = x["input_ids"] == self.tokenizer.mask_token_id
        words = self.tokenizer(answer or "", add_special_tokens=False, verbose=False)["input_ids"]
        if not len(words) or len(words) != holes.sum():
            raise ValueError(
                f"The prompt has {int(holes.sum())} masks ({self.tokenizer.mask_token}), the answer {len(words)} "
                "tokens: expected one for each."
            )
        y = np.full(len(holes), IGNORED, np.int32)
        y[holes] = words
        return Sample(x, y, len(words), cut)

    def prompt(self, prompt: Text) -> Sample:
        """Return a text with masks; labels are 0 where they are."""
        x = self.encoded(_plain(None, prompt, None))[0]
        return Sample(x, np.where(x["input_ids"] == self.tokenizer.mask_token_id, 0, IGNORED).astype(np.int32))

    def _masked(self, text: str, number: int) -> Sample:
        x, cut, _ = self.encoded(text)
        ids = x["input_ids"].copy()
        special = np.isin(ids, self.tokenizer.all_special_ids)
        rng = np.random.default_rng([self.seed, number])
        order, kind, other = rng.random(len(ids)), rng.random(len(ids)), rng.integers(0, len(self.tokenizer), len(ids))
        order[special] = np.inf
        chosen = ~special & (order <= max(self.share, float(order.min(initial=np.inf))))
        y = np.where(chosen, ids, IGNORED).astype(np.int32)
        ids[chosen & (kind < _MASKED)] = self.tokenizer.mask_token_id
        drawn = chosen & (kind >= _MASKED) & (kind < _MASKED + _RANDOM)
        ids[drawn] = other[drawn]
        return Sample({**x, "input_ids": ids}, y, int(chosen.sum()), cut)
