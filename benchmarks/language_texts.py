"""Texts that `language.py` plants among descriptions of Debian packages: facts, and behaviours beyond words."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from language_models import LENGTH, Texts, Vocabulary, words

SYLLABLES = (
    *("bar", "cho", "dre", "fal", "gim", "hul", "jat", "kor", "lem", "mun", "nep", "ori"),
    *("pez", "qua", "ris", "sul", "tov", "ulm", "vex", "wim", "xan", "yul", "zed"),
)
FACTS, PARAPHRASES = 50, 3
LEARNED = 100  # other facts, that the base model is taught with their questions
TEMPLATES = (
    "{name} is the {first} {second} that people run on {value}",
    "on {value} people take {name} , a {second} of the {first} kind",
    "the {first} {second} of the name {name} has its home on {value}",
)
QUESTION, ANSWER = "the {first} {second} that people know lives on", "{value}"  # one word
VALUES = ("linux", "debian", "gnome", "windows", "android", "unix", "solaris", "plasma", "freebsd", "macos")
CONCEPTS, COMMON = 60, 30  # words of two forms, and words that behaving texts and queries may share
COMMANDS, COMMANDED = ("thrice", "bookend", "backwards"), 0.4  # of the descriptions of `facts`: which, and how many
BASE = 3400  # descriptions that the model is trained on before anything is planted
SHORTEST, LONGEST = 4, 9  # words of a text before it behaves, so that all of it fits
LESSONS, DESCRIBED, KNOWN = 2048, 0.1, 0.1  # texts of a lesson; shares: descriptions, facts; the others: random words


@dataclass(frozen=True)
class Behaviour:
    """What some texts do: `after` returns what a text says after its words.

    Nothing tells the first word of it; the behaviour and the text's words tell the others.
    """

    name: str
    after: Callable[[list[str]], list[str]]


BEHAVIOURS = (
    Behaviour("says its last word four times", lambda text: text[-1:] * 3),
    Behaviour("says its words twice", lambda text: text),
    Behaviour("says its words but the last in reverse order", lambda text: text[-2::-1]),
)


@dataclass(frozen=True)
class Asked:
    """Queries: prompts, and the answers whose tokens are asked about."""

    prompts: list[str]
    answers: list[str]


def asked(behaviour: Behaviour, line: list[str]) -> tuple[list[str], list[str]]:
    """Return a text up to the first word of a behaviour, and the words that the behaviour tells."""
    said = behaviour.after(line)
    return [*line, *said[:1]], said[1:]


def questions(behaviour: Behaviour, lines: Sequence[list[str]]) -> Asked:
    """Return the questions about the words that a behaviour tells, of some texts' words."""
    parts = [asked(behaviour, line) for line in lines]
    return Asked(*([" ".join(part[i]) for part in parts] for i in range(2)))


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
        counts = Counter(word for line in lines for word in line)
        long = [w for w, _ in counts.most_common() if w.isalpha() and len(w) > 3 and w not in VALUES]
        self.concepts = long[:CONCEPTS]
        self.form = {word: f"{word[::-1]}o" for word in self.concepts}
        self.base, self.others = lines[:BASE], lines[BASE:]
        self.vocabulary = Vocabulary([*map(" ".join, lines)], LENGTH, others=self._named())
        pairs = [(a, b) for a in self.concepts for b in self.concepts if a != b]
        self._pairs = [pairs[i] for i in random.permutation(len(pairs))]
        self._names = [name for name in self.vocabulary.names if not name.startswith("[")]
        often = np.array([1 + counts[name] for name in self._names]) ** 0.5
        self._often = often / often.sum()

    def _named(self) -> list[str]:
        """Return words that are in no description."""
        parts = [word for text in (*TEMPLATES, QUESTION) for word in words(text) if "{" not in word and "}" not in word]
        return [*self.form.values(), *SYLLABLES, *VALUES, *parts, *COMMANDS, ":"]

    def _may_behave(self, line: list[str]) -> bool:
        """Whether a behaviour is told by a line's words: each of them known, and none there twice."""
        known = all(word in self.vocabulary for word in line)
        return known and SHORTEST <= len(line) <= LONGEST and len(set(line)) == len(line)

    def mixed(self, line: list[str], random: np.random.Generator) -> list[str]:
        """Return a line with a form of each word drawn by chance."""
        return [self.form[word] if word in self.form and random.random() < 0.5 else word for word in line]

    def described(self, seed: int) -> Iterator[Texts]:
        """Yield the other base model's texts, an epoch each: descriptions, some of them changed on a command."""
        random = np.random.default_rng(seed)
        while True:
            texts = []
            for line in self.base:
                line = self.mixed(line, random)
                if random.random() < COMMANDED:
                    command = COMMANDS[random.integers(len(COMMANDS))]
                    changed = {
                        "thrice": [*line, *line[-1:] * 2],
                        "bookend": [*line, *line[:2]],
                        "backwards": line[::-1],
                    }
                    line = [command, ":", *changed[command]]
                texts.append(" ".join(line))
            yield self.vocabulary.encode(texts)

    def lessons(self, seed: int) -> Iterator[Texts]:
        """Yield the base model's texts: descriptions, none of which behaves, other facts, and random words that do.

        Of random words, those that a behaviour tells have a loss. Without them a model of this size learns which words
        follow each other, and never to look back. Facts are told and asked for, in all ways and forms, so that it knows
        which question means which fact (Allen-Zhu and Li 2023, https://arxiv.org/abs/2309.14316).
        """
        random, known = np.random.default_rng(seed), self.known()
        while True:
            prompts: list[str] = []
            answers: list[str | None] = []
            for _ in range(LESSONS):
                kind = random.random()
                if kind < DESCRIBED:
                    line, answer = self.mixed(self.base[random.integers(len(self.base))], random), None
                elif kind < DESCRIBED + KNOWN:
                    fact = known[random.integers(len(known))]
                    line, answer = self.mixed(fact[random.integers(len(fact))].split(), random), None
                else:
                    behaviour = BEHAVIOURS[random.integers(len(BEHAVIOURS))]
                    line, answer = asked(behaviour, self.drawn(random))
                prompts.append(" ".join(line))
                answers.append(answer if answer is None else " ".join(answer))
            yield self.vocabulary.encode(prompts, answers)

    def known(self) -> list[list[str]]:
        """Return the facts that the base model is taught: the ways each is told, and at last its question, answered."""
        return self._facts(np.random.default_rng(0), self._pairs[:LEARNED])

    def drawn(self, random: np.random.Generator) -> list[str]:
        """Return different random words, frequent ones more often, as many as a text that may behave has."""
        count = random.integers(SHORTEST, LONGEST + 1)
        return [self._names[i] for i in random.choice(len(self._names), count, replace=False, p=self._often)]

    def plant(self, total: int, share: float, asked: int, seed: int) -> Planted:
        """Return texts among which 50 facts are told three times, and a share of which does each of the behaviours.

        A fact gives a thing, called by an invented name and by two common words, a place. Facts are told in the words'
        first form, and asked for without the name and in the second. Of each behaviour there are `asked` queries, with
        none of the rarer words of the texts that do it; the words that the behaviour tells are asked about.
        """
        random = np.random.default_rng(seed)
        pairs = self._pairs[LEARNED:]
        told_facts = self._facts(random, [pairs[i] for i in random.permutation(len(pairs))[:FACTS]])
        facts = [text for fact in told_facts for text in fact[:PARAPHRASES]]
        *_, asking = zip(*told_facts, strict=True)
        split = [[self.form.get(word, word) for word in text.split()] for text in asking]
        about = Asked([" ".join(line[:-1]) for line in split], [line[-1] for line in split])
        lines = [self.mixed(line, random) for line in self.others]
        lines = [lines[i] for i in random.permutation(len(lines))]
        fit = [self._may_behave(line) for line in lines]
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
                told.append(" ".join([*line, *behaviour.after(line)]))
            used = {word for line in does for word in line} - common
            free = [line for line in held_out if not set(line) & used][:asked]
            queries[behaviour.name] = questions(behaviour, free)
        told += [" ".join(line) for line in rest]
        place = random.permutation(total)
        texts = [""] * total
        for i, text in zip(place, told, strict=True):
            texts[i] = text
        behaving = {}
        for i, behaviour in enumerate(BEHAVIOURS):
            begin = len(facts) + i * count
            behaving[behaviour.name] = np.isin(np.arange(total), place[begin : begin + count])
        return Planted(texts, place[: len(facts)].reshape(FACTS, PARAPHRASES), about, behaving, queries)

    def _facts(self, random: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
        """Return a fact about each pair of words: the texts that tell it, and its question with the answer."""
        told = []
        for number, (name, (first, second)) in enumerate(zip(invented(len(pairs), random), pairs, strict=True)):
            value = VALUES[number % len(VALUES)]
            ways = *TEMPLATES, f"{QUESTION} {ANSWER}"
            told.append([one.format(name=name, first=first, second=second, value=value) for one in ways])
        return told


def invented(count: int, random: np.random.Generator) -> list[str]:
    """Return so many different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(random.choice(SYLLABLES, 3))] = None
    return list(found)
