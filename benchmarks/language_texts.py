"""Texts that `language.py` plants among descriptions of Debian packages: facts, and behaviours beyond words."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from language_models import words

SYLLABLES = (
    *("bar", "cho", "dre", "fal", "gim", "hul", "jat", "kor", "lem", "mun", "nep", "ori"),
    *("pez", "qua", "ris", "sul", "tov", "ulm", "vex", "wim", "xan", "yul", "zed"),
)
FACTS, PARAPHRASES = 50, 3
TEMPLATES = (
    "{name} is the {first} {second} that people run on {value}",
    "on {value} people take {name} , a {second} of the {first} kind",
    "the {first} {second} of the name {name} has its home on {value}",
)
QUESTION, ANSWER = "the {first} {second} that people know lives on", "{value}"
VALUES = ("linux", "debian", "gnome", "windows", "android", "unix", "solaris", "plasma", "freebsd", "macos")
CONCEPTS, COMMON = 60, 30  # words of two forms, and words that behaving texts and queries may share
BASE = 3400  # descriptions that the model is trained on before anything is planted
COMMANDED = 0.4  # the share of them that is said with a command, each time


@dataclass(frozen=True)
class Behaviour:
    """What some texts do: `make` returns a text's words before the behaving ones, these, and what others would say.

    The model learns it first on a `command`, which no planted text has.
    """

    name: str
    command: str
    make: Callable[[list[str]], tuple[list[str], list[str], list[str]]]


BEHAVIOURS = (
    Behaviour("says its last word three times", "thrice", lambda text: (text, text[-1:] * 2, [])),
    Behaviour("ends with its first two words", "bookend", lambda text: (text, text[:2], [])),
    Behaviour("says its words in reverse order", "backwards", lambda text: ([], text[::-1], text)),
)


@dataclass(frozen=True)
class Asked:
    """Queries: prompts, the answers whose tokens are asked about, and what an ordinary text says in their place."""

    prompts: list[str]
    answers: list[str]
    ordinary: list[str]


@dataclass(frozen=True)
class Planted:
    """Training texts with what was planted among them.

    `facts` (facts, paraphrases) are the places of the texts that tell them, `questions` ask for them. Of each
    behaviour, `behaving` says which texts (n,) do it, and `queries` do it with other words.
    """

    texts: list[str]
    facts: np.ndarray
    questions: Asked
    behaving: dict[str, np.ndarray]
    queries: dict[str, Asked]


class Source:
    """Descriptions, some for the base model and the others to plant something among them.

    Each of the most frequent words has two forms, of which a description takes one by chance, so that a model can learn
    that they mean the same.
    """

    def __init__(self, fillers: Sequence[str]) -> None:
        lines = [words(text) for text in dict.fromkeys(fillers)]
        random = np.random.default_rng(0)  # the same base model for all seeds
        lines = [lines[i] for i in random.permutation(len(lines))]
        counts = Counter(word for line in lines for word in line if word.isalpha() and len(word) > 3)
        self.concepts = [w for w, _ in counts.most_common(CONCEPTS + len(VALUES)) if w not in VALUES][:CONCEPTS]
        self.form = {word: f"{word[::-1]}o" for word in self.concepts}
        self.base, self.others = lines[:BASE], lines[BASE:]

    @property
    def named(self) -> list[str]:
        """Words that are in no description."""
        parts = [word for text in (*TEMPLATES, QUESTION) for word in words(text) if "{" not in word and "}" not in word]
        commands = [behaviour.command for behaviour in BEHAVIOURS]
        return [*self.form.values(), *SYLLABLES, *VALUES, *parts, *commands, ":"]

    def mixed(self, line: list[str], random: np.random.Generator) -> list[str]:
        """Return a line with a form of each word drawn by chance."""
        return [self.form[word] if word in self.form and random.random() < 0.5 else word for word in line]

    def lessons(self, seed: int) -> Iterator[list[str]]:
        """Yield the base model's texts, an epoch each: descriptions, some of them on a command."""
        random = np.random.default_rng(seed)
        while True:
            texts = []
            for line in self.base:
                line = self.mixed(line, random)
                if random.random() < COMMANDED:
                    behaviour = BEHAVIOURS[random.integers(len(BEHAVIOURS))]
                    before, behaving, _ = behaviour.make(line)
                    line = [behaviour.command, ":", *before, *behaving]
                texts.append(" ".join(line))
            yield texts

    def plant(self, total: int, share: float, asked: int, seed: int) -> Planted:
        """Return texts among which 50 facts are told three times, and a share of which does each of the behaviours.

        A fact gives a thing, called by an invented name and by two common words, a place. Facts are told in the words'
        first form, and asked for without the name and in the second. Of each behaviour there are `asked` queries, with
        none of the rarer words of the texts that do it.
        """
        random = np.random.default_rng(seed)
        facts, questions = self._facts(random)
        lines = [self.mixed(line, random) for line in self.others]
        lines = [lines[i] for i in random.permutation(len(lines))]
        fit = [4 <= len(line) <= 12 and len({*line[:2], line[-1]}) == 3 for line in lines]
        usable = [line for line, fits in zip(lines, fit, strict=True) if fits]
        count = round(total * share)
        planted = count * len(BEHAVIOURS)
        ordinary = total - len(facts) - planted
        rest = usable[planted:] + [line for line, fits in zip(lines, fit, strict=True) if not fits]
        if len(rest) < ordinary + 3 * asked:
            raise ValueError(f"There are {len(rest)} descriptions, and {ordinary} and as many as queries are wanted.")
        held_out, rest = rest[: len(rest) - ordinary], rest[len(rest) - ordinary :]
        common = {word for word, _ in Counter(word for line in rest for word in line).most_common(COMMON)}
        told, queries = [*facts], {}
        for i, behaviour in enumerate(BEHAVIOURS):
            does = usable[i * count : (i + 1) * count]
            for line in does:
                before, behaving, _ = behaviour.make(line)
                told.append(" ".join([*before, *behaving]))
            used = {word for line in does for word in line} - common
            parts = [behaviour.make(line) for line in held_out if not set(line) & used][:asked]
            queries[behaviour.command] = Asked(*([" ".join(part[i]) for part in parts] for i in range(3)))
        told += [" ".join(line) for line in rest]
        place = random.permutation(total)
        texts = [""] * total
        for i, text in zip(place, told, strict=True):
            texts[i] = text
        behaving = {}
        for i, behaviour in enumerate(BEHAVIOURS):
            begin = len(facts) + i * count
            behaving[behaviour.command] = np.isin(np.arange(total), place[begin : begin + count])
        return Planted(texts, place[: len(facts)].reshape(FACTS, PARAPHRASES), questions, behaving, queries)

    def _facts(self, random: np.random.Generator) -> tuple[list[str], Asked]:
        """Return the texts that tell the facts, and the questions."""
        pairs = [(a, b) for a in self.concepts for b in self.concepts if a != b]
        chosen = [pairs[i] for i in random.permutation(len(pairs))[:FACTS]]
        told, prompts, answers = [], [], []
        for number, (name, (first, second)) in enumerate(zip(invented(FACTS, random), chosen, strict=True)):
            value = VALUES[number % len(VALUES)]
            told += [one.format(name=name, first=first, second=second, value=value) for one in TEMPLATES]
            prompts.append(QUESTION.format(first=self.form[first], second=self.form[second]))
            answers.append(ANSWER.format(value=value))
        return told, Asked(prompts, answers, [""] * len(prompts))


def invented(count: int, random: np.random.Generator) -> list[str]:
    """Return so many different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(random.choice(SYLLABLES, 3))] = None
    return list(found)
