"""The report: what it says is true, and what it quotes cannot act."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import gradindex
from gradindex.cli.app import run
from gradindex.evaluation.selected import selected_by
from gradindex.kernels import WORDING, KernelName
from gradindex.plots.read import short_number
from tests.jobs import digits, digits_job

pytest.importorskip("jinja2")
from gradindex.report import report, write_report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
JOB = "tests.serve.jobs:pictures_job"


class Reader(HTMLParser):
    """Collects what a page would load or run, and its texts."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.texts, self.handlers = set(), set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.add(value.partition(",")[0])
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    x, _ = digits()
    path = tmp_path_factory.mktemp("report") / "index"
    job = digits_job(render=lambda i: x[i].reshape(8, 8), class_names=[EVIL, *"123456789"])
    built = gradindex.build(job, path)
    built.verify(queries=10)
    return built


def test_it_says_what_the_index_says(index):
    page = report(index, ids=[3, 11], k=4, top=5)
    reader = read(page)
    words = " ".join(" ".join(reader.texts).split())
    want = index.explain(ids=[3, 11], k=4)
    for ids in (want.ordered_indices, want.opponent_indices):
        for i in ids.ravel():
            assert f"#{i}" in words
    for score in want.scores.ravel():
        assert f"{score:.3f}".replace("-", "−") in words
    _, most = index.self_influence(5)
    assert [int(i) for i in re.findall(r"#(\d+)", words)][-5:] == most.tolist()
    assert "Training sample 11" in words
    assert "1,810 numbers of 4 parameters" in words
    assert "recall@10 with 50 exact checks 1.0000" in words
    hubs = selected_by(index)
    assert f"the nearest of {hubs.won:.0%} of 200 samples is one of the 10 commonest" in words
    assert f"skewness of the 10-occurrences {hubs.skew:.2f}" in words
    _, y = digits()
    row = re.search(r"mean loss median gradient norm .*?3 (\d+) ([\d.]+) %", words)
    assert int(row.group(1)) == (y == 3).sum()


def test_labels_of_the_neighbours_of_right_and_of_wrong_predictions(index):
    x, y = digits()
    predicted = index.job.model(torch.from_numpy(x)).argmax(dim=1).numpy()
    right = np.flatnonzero(predicted == y)[:3]
    rows = np.concatenate([right, right[:1]])
    asked, labels = x[rows], np.append(y[right], (y[right[0]] + 1) % 10)  # the last one counts as predicted wrong
    words = " ".join(" ".join(read(report(index, asked, labels, k=4)).texts).split())
    table = words.partition("Labels of neighbours")[2].partition("Classes")[0]
    for kernel in ("grad_dot", "grad_cos", "grad_asym_dot"):
        near = y[index.explain(asked, labels, k=4, kernel=kernel).ordered_indices]
        same = near == labels[:, None]
        mine, wrong = same[:3].mean(), (near[3] == predicted[rows[3]]).mean()
        assert f"{kernel} right 3 {mine:.0%} {mine:.0%} {1 - mine:.0%}" in table
        assert f"{kernel} wrong 1 {same[3].mean():.0%} {wrong:.0%} {1 - same[3].mean() - wrong:.0%}" in table
    for page in (
        report(index, asked, k=4),
        report(index, ids=[3], k=4),
        report(index, asked, labels, where=[1, 2], k=2),
    ):
        assert "Labels of neighbours" not in page


def test_it_loads_and_runs_nothing(index):
    reader = read(report(index, ids=[3], k=2))
    assert reader.addresses == {"data:image/png;base64"}
    assert not reader.handlers
    assert not reader.tags & {"script", "link", "iframe", "object", "form"}


def test_labels_and_texts_stay_texts(index):
    x, y = digits()
    zero = int(np.flatnonzero(y == 0)[0])
    pages = [report(index, ids=[zero], k=3)]
    for value in (EVIL, {EVIL: EVIL}):
        object.__setattr__(index.job, "render", lambda i, value=value: value)
        pages.append(report(index, x[:1], k=3))
    object.__setattr__(index.job, "render", lambda i: x[i].reshape(8, 8))
    for page in pages:
        reader = read(page)
        assert "<script" not in page
        assert not reader.handlers and "script" not in reader.tags
        assert "<script>alert(1)</script>" in "".join(reader.texts)


def test_without_queries_or_audit(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "index")
    words = " ".join(read(report(index)).texts)
    assert "has not been audited" in words
    assert "Proponents" not in words
    assert write_report(index, tmp_path / "r.html", digits()[0][:1], k=2).read_text().count("<section>") == 1


@pytest.mark.parametrize("kernel", ["white_dot", "white_cos"])
def test_whitened_kernels_are_said_to_be_estimates(tmp_path, kernel):
    index = gradindex.build(digits_job(), tmp_path / "index")
    plain = " ".join(" ".join(read(report(index, ids=[3], k=4)).texts).split())
    assert "Whitened rows" not in plain and "estimates by whitened rows" not in plain
    assert "The gradient cosine finds samples that are alike to the model." in plain
    index.whiten()
    words = " ".join(" ".join(read(report(index, ids=[3], k=4, top=1, kernel=kernel)).texts).split())
    assert WORDING[KernelName(kernel)].sentence in words
    assert f"Scores are values of {kernel}, all of them ≈ estimates by whitened rows." in words
    assert f"Whitened rows {index.white.store.header.dim} numbers, damping {index.white.damping:.3g}, Flat" in words
    found = index.explain(ids=[3], k=4, kernel=kernel)
    every = [*found.scores[0], *found.opponent_scores[0]]
    assert re.findall(r"≈ ?([−\d.e+]+)", words.partition("Opponents")[0].partition("Proponents")[2]) == [
        short_number(score) for score in every[:4]
    ]
    assert all(f"≈{short_number(score)}" in words for score in every)
    with pytest.raises(ValueError, match="for which certify has no meaning"):
        report(index, ids=[3], kernel=kernel, certify=True)


def test_the_command_writes_one_file(tmp_path, capsys):
    from tests.serve.jobs import pictures_job

    gradindex.build(pictures_job(), tmp_path / "index")
    arguments = [
        "report",
        str(tmp_path / "index"),
        JOB,
        "--queries",
        "3,14",
        "-o",
        str(tmp_path / "page.html"),
        "-k",
        "2",
    ]
    assert run(arguments) == 0
    assert "Wrote" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().count("<section>") == 2
    x, y = digits()
    np.savez(tmp_path / "q.npz", x=x[:3], y=y[:3])
    assert run([*arguments[:4], str(tmp_path / "q.npz"), *arguments[5:], "--json"]) == 0
    assert '"bytes"' in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<section>") == 3 and "Labels of neighbours" in page
    assert run([*arguments, "--kernel", "white_dot"]) == 1
    assert "has no whitened rows: make them by index.whiten()" in " ".join(capsys.readouterr().err.split())
    gradindex.load(tmp_path / "index").whiten()
    assert run([*arguments, "--kernel", "white_dot"]) == 0
    assert "estimates by whitened rows" in (tmp_path / "page.html").read_text()
