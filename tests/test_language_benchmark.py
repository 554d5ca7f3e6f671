"""The benchmark of language models: what it plants, what it asks, and what a lesson's loss is of."""

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("transformers")

import language
import language_models as lm
import language_texts as lt

LINE = ["one", "two", "three", "four"]


@pytest.fixture(scope="module")
def source():
    if "GRADINDEX_DATA" not in os.environ:
        pytest.skip("GRADINDEX_DATA names no folder of data")
    return lt.Source(lm.debian()[0])


@pytest.fixture(scope="module")
def planted(source):
    return source.plant(5000, 0.02, 50, 7)


def said(texts, row, names, labelled):
    """Return the words of a row that have a loss, or those that have none."""
    chosen = (texts.labels[row] != lm.IGNORED) == labelled
    return [names[number] for number in texts.tokens[row][chosen & (texts.mask[row] == 1)]]


def test_a_behaviour_is_asked_for_from_its_second_word():
    found = [lt.asked(behaviour, LINE) for behaviour in lt.BEHAVIOURS]
    assert found == [
        ([*LINE, "four"], ["four", "four"]),
        ([*LINE, "one"], ["two", "three", "four"]),
        ([*LINE, "three"], ["two", "one"]),
    ]


def test_a_lesson_has_a_loss_of_what_is_told(source):
    lesson, names = next(source.lessons(0)), source.vocabulary.names
    lines = {" ".join(line) for line in source.base}
    first = {form: word for word, form in source.form.items()}
    behaving = described = 0
    for row in range(300):
        before, told = said(lesson, row, names, False)[1:], said(lesson, row, names, True)
        assert told[-1] == "[end]" or lesson.mask[row].all()
        if before:
            behaving += 1
            assert any(lt.asked(one, before[:-1]) == (before, told[:-1]) for one in lt.BEHAVIOURS)
        else:
            described += " ".join(first.get(word, word) for word in told[:-1]) in lines
    assert behaving > 150
    assert described > 10


def test_facts_are_asked_for_in_other_words(source, planted):
    first = {form: word for word, form in source.form.items()}
    common = {word for text in (*lt.TEMPLATES, lt.QUESTION) for word in lm.words(text)}
    for rows, prompt, answer in zip(planted.facts, planted.questions.prompts, planted.questions.answers, strict=True):
        asked = [word for word in prompt.split() if word not in common]
        assert len(asked) == 2
        for row in rows:
            told = planted.texts[row].split()
            assert {first[word] for word in asked} <= set(told)
            assert answer in told
            assert not set(asked) & set(told)
    pairs = {tuple(first[word] for word in prompt.split() if word in first) for prompt in planted.questions.prompts}
    assert len(pairs) == lt.FACTS
    learned = {tuple(first.get(word, word) for word in fact[-1].split()[1:3]) for fact in source.known()}
    assert len(learned) == lt.LEARNED
    assert not pairs & learned


def test_queries_behave_with_other_words(source, planted):
    ordinary = np.ones(len(planted.texts), bool)
    for name in planted.behaving:
        ordinary &= ~planted.behaving[name]
    ordinary[planted.facts.ravel()] = False
    counts = Counter(word for row in np.flatnonzero(ordinary) for word in planted.texts[row].split())
    common = {word for word, _ in counts.most_common(lt.COMMON)}
    for behaviour in lt.BEHAVIOURS:
        marked = planted.behaving[behaviour.name]
        assert marked.sum() == 100
        used = set()
        for row in np.flatnonzero(marked):
            line = planted.texts[row].split()
            fits = [n for n in range(lt.SHORTEST, lt.LONGEST + 1) if line[n:] == behaviour.after(line[:n])]
            assert fits, line
            used |= set(line)
        queries = planted.queries[behaviour.name]
        assert len(queries.prompts) == 50
        for prompt, answer in zip(queries.prompts, queries.answers, strict=True):
            *line, begun = prompt.split()
            assert [begun, *answer.split()] == behaviour.after(line)
            assert not set(line) & (used - common)


def test_training_lowers_the_loss_of_the_words_asked_for():
    vocabulary = lm.Vocabulary(["a b c d e"] * 3, 8)
    texts = vocabulary.encode(["a c", "b c"], ["d", "e"], ends=False)
    model = lm.new_model(vocabulary, lm.Shape(width=16, layers=1, heads=2), 0)
    before = lm.share_answered(model, texts), lm.mean_loss(model, texts)
    lm.train(model, texts, lm.Shape(batch=2, rate=1e-2), 0, steps=100)
    assert lm.share_answered(model, texts) == 1 > before[0]
    assert lm.mean_loss(model, texts) < 0.3 < before[1]


def test_seeds_are_averaged_and_choices_compared():
    losses = [
        {"random": 3.0, "bm25": 2.5, "all": 2.0, "grad_cos": 2.25},
        {"random": 2.0, "bm25": 3, "all": 2, "grad_cos": 1},
    ]
    rows = [{"part": "selection", "seed": i, "what": "games", "loss": loss} for i, loss in enumerate(losses)]
    (mean,) = language.mean_rows([language.compared(row) for row in rows])
    assert (mean["seed"], mean["seeds"]) == ("mean", 2)
    assert mean["loss"]["random"] == 2.5
    assert mean["below random and bm25"]["grad_cos"] == pytest.approx((0.25 + 1) / 2)
    assert mean["below all"]["grad_cos"] == pytest.approx((-0.25 + 1) / 2)
