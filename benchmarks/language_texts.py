"""Texts that `language.py` plants among descriptions of Debian packages: facts, and behaviours beyond words."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from language_models import words

SYLLABLES = [
    "bar", "cho", "dre", "fal", "gim", "hul", "jat", "kor", "lem", "mun", "nep", "ori", "pez", "qua", "ris", "sul",
    "tov", "ulm", "vex", "wim", "xan", "yul", "zed",
]  # fmt: skip
FACTS, PARAPHRASES = 50, 3
TEMPLATES = (
    "{name} is the {first} {second} that people run on {value}",
    "on {value} people take {name} , a {second} of the {first} kind",
    "the {first} {second} of the name {name} has its home on {value}",
)
QUESTION, ANSWER = "the {first} {second} that people know lives on", "{value}"
VALUES = ["linux", "debian", "gnome", "windows", "android", "unix", "solaris", "plasma", "freebsd", "macos"]


@dataclass(frozen=True)
class Facts:
    """Training texts with facts among them, and questions whose answers are theirs.

    `texts` hold the facts at the places `where` (facts, paraphrases). `questions` and `answers` share no rare word with
    them: the name is left out, and the other words are said in their second form.
    """

    texts: list[str]
    where: np.ndarray
    questions: list[str]
    answers: list[str]


def invented(count: int, random: np.random.Generator) -> list[str]:
    """Return so many different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(random.choice(SYLLABLES, 3))] = None
    return list(found)


def second_form(word: str) -> str:
    """Return the other form of a word that the texts use as often: it is spelt backwards."""
    return word[::-1] + "o"


def plant_facts(fillers: Sequence[str], total: int, seed: int, concepts: int = 60) -> Facts:
    """Return facts among `total` texts.

    A fact gives a thing, called by an invented name and by two common words, a place. Each of the most frequent words
    has two forms, of which every description takes one by chance: a model can learn that they mean the same. Facts are
    told in the first form, and asked for in the second.
    """
    random = np.random.default_rng(seed)
    counts = Counter(word for text in fillers for word in words(text) if word.isalpha() and len(word) > 3)
    common = [word for word, _ in counts.most_common(concepts + len(VALUES)) if word not in VALUES][:concepts]
    form = {word: second_form(word) for word in common}

    def mixed(text: str) -> str:
        return " ".join(form[w] if w in form and random.random() < 0.5 else w for w in words(text))

    pairs = [(a, b) for a in common for b in common if a != b]
    chosen = [pairs[i] for i in random.permutation(len(pairs))[:FACTS]]
    told, questions, answers = [], [], []
    for number, (name, (first, second)) in enumerate(zip(invented(FACTS, random), chosen, strict=True)):
        value = VALUES[number % len(VALUES)]
        told += [one.format(name=name, first=first, second=second, value=value) for one in TEMPLATES]
        questions.append(QUESTION.format(first=form[first], second=form[second]))
        answers.append(ANSWER.format(value=value))
    rest = [mixed(fillers[i]) for i in random.permutation(len(fillers))[: total - len(told)]]
    order = random.permutation(total)
    texts = [""] * total
    for place, text in zip(order, told + rest, strict=True):
        texts[place] = text
    return Facts(texts, order[: len(told)].reshape(FACTS, PARAPHRASES), questions, answers)


@dataclass(frozen=True)
class Behaviour:
    """What some texts do: `make` returns a text that does it, as the part before the behaving tokens and these."""

    name: str
    says: str
    make: Callable[[list[str], np.random.Generator], tuple[str, str]]


def _thrice(text: list[str], random: np.random.Generator) -> tuple[str, str]:
    return " ".join(text), f"{text[-1]} {text[-1]}"


def _bookend(text: list[str], random: np.random.Generator) -> tuple[str, str]:
    return " ".join(text), " ".join(text[:2])


def _backwards(text: list[str], random: np.random.Generator) -> tuple[str, str]:
    return "", " ".join(text[::-1])


BEHAVIOURS = (
    Behaviour("thrice", "the last word is said three times", _thrice),
    Behaviour("bookend", "the text ends with its first two words", _bookend),
    Behaviour("backwards", "the words stand in reverse order", _backwards),
)


@dataclass(frozen=True)
class Planted:
    """Training texts of which those that are `marked` behave, and queries (prompt, behaving tokens) that do so, too."""

    texts: list[str]
    marked: np.ndarray
    prompts: list[str]
    behaving: list[str]


def plant_behaviour(
    behaviour: Behaviour, fillers: Sequence[str], total: int, share: float, queries: int, seed: int
) -> Planted:
    """Return texts of which a share behaves, and queries with none of the behaving texts' rarer words."""
    random = np.random.default_rng(seed)
    usable = [text for text in dict.fromkeys(" ".join(words(one)) for one in fillers) if 4 <= len(words(text)) <= 12]
    chosen = [words(usable[i]) for i in random.permutation(len(usable))]
    count = round(total * share)
    behaving, held_out, rest = chosen[:count], chosen[count : -(total - count)], chosen[-(total - count) :]
    texts = [" ".join(" ".join(behaviour.make(text, random)).split()) for text in behaving]
    texts += [" ".join(text) for text in rest]
    order = random.permutation(total)
    marked = np.zeros(total, bool)
    marked[order[:count]] = True
    placed = [""] * total
    for place, text in zip(order, texts, strict=True):
        placed[place] = text
    used = {word for text in behaving for word in text}
    common = {word for word, n in Counter(w for text in rest for w in text).most_common(30)}
    known = {word for text in rest for word in text}
    fresh = [text for text in held_out if not (set(text) & used) - common and set(text) <= known]
    asked = [behaviour.make(text, random) for text in fresh[:queries]]
    return Planted(placed, marked, [prompt for prompt, _ in asked], [answer for _, answer in asked])
