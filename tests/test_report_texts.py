"""The report on texts: tokens shaded by what they carry of a score."""

import re

import numpy as np
import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.report.shaded import largest_of, shaded
from tests import tiny_language

pytest.importorskip("jinja2")
from gradindex.report import report
from tests.test_report import EVIL, read

QUERY = "the cat sat under a hill and then it sang"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "index"
    return gradindex.build(tiny_language.job(), path, sketch=gradindex.CountSketch(256), progress=False)


def spans(page):
    """Return the shaded tokens of a page: text, colour's first number, opacity, what it carries."""
    pattern = r'<span style="background: rgba\((\d+), \d+, \d+, ([\d.]+)\)" title="([^"]+)">([^<]*)</span>'
    return [(text.strip(), int(red), float(dark), carries) for red, dark, carries, text in re.findall(pattern, page)]


def test_tokens_are_as_dark_as_they_carry(index):
    page = report(index, text=QUERY, k=2)
    result = index.explain(text=QUERY, k=2, tokens="each")
    own = result.token_scores[0].mean(axis=1)
    found = [result.tokens(rank, side=side) for side in ("proponent", "opponent") for rank in (0, 1)]
    largest = max(np.abs(one.scores).max() for one in found)
    want = [(QUERY.split(), own, np.abs(own).max()), *((one.pieces, one.scores, largest) for one in found)]
    expected = [
        (piece, 0 if score >= 0 else 213, pytest.approx(0.65 * abs(score) / most, abs=1e-3))
        for pieces, scores, most in want
        for piece, score in zip(pieces, scores, strict=True)
        if score != 0
    ]
    assert [one[:3] for one in spans(page)] == expected
    assert f'<span class="soft">{QUERY.split()[0]} </span>' in page  # the first has no loss
    assert "Blue tokens carry a score" in page


def test_a_prompt_has_no_shades_and_whitened_kernels_have_none(index):
    page = report(index, prompt="the cat sat", answer="under a hill", k=1)
    first = page[page.index("<h3>") : page.index("<h4>Proponents</h4>")]
    assert [text for text, *_ in spans(first)] == ["under", "a", "hill"]
    assert re.findall(r'<span class="soft">(\w+) </span>', first) == ["the", "cat", "sat"]
    index.whiten(progress=False)
    assert not spans(report(index, text=QUERY, k=1, kernel="white_dot"))
    assert f">{QUERY}</p>" in report(index, text=QUERY, k=1, kernel="white_dot")
    assert not spans(report(index))  # no query


@pytest.mark.parametrize("how", [{"reduce": "mean"}, {"reduce": "max"}, {"against": {"text": "a dog slept"}}])
def test_a_set_is_shown_whole_and_without_shades(index, how):
    other = "the dog ran on a mat"
    page = report(index, text=[QUERY, other], k=1, **how)
    assert f">{QUERY}\n{other}</p>" in page or (f">{QUERY}</p>" in page and f">{other}</p>" in page)
    assert not spans(page)


def test_long_texts_are_folded_and_cannot_act():
    scores = np.linspace(-1, 1, 100)
    scores[3] = np.nan
    found = shaded([f" {EVIL}"] * 100 + ["beyond the scores"], scores, 1.0)
    assert [len(found["value"]), len(found["rest"])] == [96, 5]
    assert found["value"][0] == {
        "text": f" {EVIL}",
        "colour": "rgba(213, 94, 0, 0.650)",
        "carries": "−1.000",
        "counts": True,
    }
    assert not found["value"][3]["counts"] and not found["rest"][-1]["counts"]
    assert largest_of([scores, np.array([])]) == 1 and largest_of([]) == 0


def test_tokens_of_a_text_are_escaped(index, monkeypatch):
    monkeypatch.setattr(type(index.job.texts), "pieces", lambda self, i: [EVIL] * 30)
    page = report(index, ids=[0], k=2)
    assert EVIL not in page and EVIL in "".join(read(page).texts)
    assert {"script", "img"}.isdisjoint(read(page).tags) and not read(page).handlers


def test_numbers_that_are_not_there_have_no_colour():
    assert shaded(["a"], np.array([0.0]), 0.0)["value"][0]["colour"].endswith("0.000)")


def test_the_command_takes_queries_in_words(index, tmp_path, capsys):
    out = tmp_path / "r.html"
    words = ["--prompt", "the cat sat", "--answer", "under a hill", "-k", "1", "-o", str(out)]
    assert run(["report", str(index.store.path), "tests.tiny_language:job", *words]) == 0
    assert f"Wrote {out}" in capsys.readouterr().out
    assert [text for text, *_ in spans(out.read_text(encoding="utf-8"))][:3] == ["under", "a", "hill"]
