"""Training samples chosen for a validation set: against all pairs' scores, ranked by plain loops."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gradindex
from gradindex.cli.app import run
from gradindex.relevance.pooled import Pooled, pooled
from gradindex.search import select as choosing
from gradindex.search.select import Budget, parse_budget
from tests.jobs import ROWS, digits, digits_job

M = 9


class Texts:
    """Samples as texts: sample i has i % 7 + 1 tokens."""

    def encode(self, text=None, *, prompt=None, answer=None, messages=None):
        i = int(text if answer is None else answer)
        x, y = digits()
        return x[i : i + 1], y[i : i + 1]

    def text(self, i):
        return " ".join(self.pieces(i))

    def pieces(self, i):
        return [f"w{i}"] * (i % 7 + 1)

    def pieces_of(self, x, y=None):
        return ["w0"]

    def answer(self, prompt, max_new_tokens=64):
        return "0"


def text_job():
    return digits_job(texts=Texts(), columns={"name": [f"digit {i}" for i in range(ROWS)]})


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(text_job(), tmp_path_factory.mktemp("select") / "i", shard_rows=100)


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("select") / "i", whiten=True)


def validation():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x[ROWS : ROWS + M] / 16).astype(np.float32), y[ROWS : ROWS + M]


def in_turns(scores, count):
    """Each query takes the best sample that is left, in turns."""
    scores, chosen = scores.copy(), []
    for turn in range(count):
        best = int(scores[turn % len(scores)].argmax())
        chosen.append((best, turn % len(scores)))
        scores[:, best] = -np.inf
    return chosen


@pytest.mark.parametrize("kernel", ["grad_cos", "grad_dot", "grad_asym_dot"])
def test_all_pairs_are_ranked(index, kernel):
    x, y = validation()
    every = index.scores(x, y, kernel=kernel).astype(np.float64)
    mean = index.select(x, y, budget=20, kernel=kernel, hidden=False)
    assert_allclose(mean.scores, -np.sort(-every.mean(axis=0))[:20], rtol=1e-4)
    assert_allclose(mean.scores, every.mean(axis=0)[mean.ids], rtol=1e-4)
    best = index.select(x, y, budget=20, kernel=kernel, by="max", hidden=False)
    assert_allclose(best.scores, -np.sort(-every.max(axis=0))[:20], rtol=1e-4)
    assert_allclose(best.scores, every[best.queries, best.ids], rtol=1e-4)
    turns = index.select(x, y, budget=20, kernel=kernel, by="round-robin", hidden=False)
    assert list(zip(turns.ids.tolist(), turns.queries.tolist(), strict=True)) == in_turns(every, 20)


@pytest.mark.parametrize("kernel", ["white_dot", "white_cos"])
def test_whitened_rows_are_ranked(whitened, kernel):
    every = whitened.scores(ids=range(M), kernel=kernel).astype(np.float64)
    found = whitened.select(ids=range(M), budget="10%", kernel=kernel, hidden=False)
    assert len(found) == ROWS // 10 and found.kernel == kernel
    assert_allclose(found.scores, -np.sort(-every.mean(axis=0))[: len(found)], rtol=1e-3)
    assert whitened.select(ids=[0], budget=1, hidden=False).kernel == "white_dot"  # where there are whitened rows


@pytest.mark.parametrize("parts", [(1 << 24, 16), (64, 1)])
def test_parts_and_lists_of_any_size_give_the_same(index, monkeypatch, parts):
    """Also where every query wants the same samples, so that their lists run out again and again."""
    monkeypatch.setattr(choosing, "_NUMBERS", parts[0])
    monkeypatch.setattr(choosing, "_LEAST", parts[1])
    ids = np.zeros(M, np.int64)
    every = index.scores(ids=ids)
    found = index.select(ids=ids, budget=ROWS, by="round-robin", hidden=False)
    want = in_turns(every, ROWS)
    assert sorted(found.ids.tolist()) == list(range(ROWS))
    assert found.queries.tolist() == [query for _, query in want]
    assert_allclose(found.scores, every[found.queries, found.ids], atol=1e-5)
    assert_allclose(found.scores, [every[query, i] for i, query in want], atol=1e-5)


def test_only_what_is_allowed_is_chosen(index):
    found = index.select(ids=[0, 1], budget=5, where={"label": 3}, hidden=True)
    assert found.rows == int((digits()[1] == 3).sum())
    assert set(digits()[1][found.ids]) == set(digits()[1][found.hidden.ids]) == {3}
    assert found.table.column("label").to_pylist() == [3] * 5
    assert found.to_arrow().column("name").to_pylist() == [f"digit {i}" for i in found.ids]


def test_a_budget_of_tokens_is_used_up(index):
    order = index.select(ids=[0], budget=ROWS, hidden=False).ids
    found = index.select(ids=[0], budget="50tokens", hidden=False)
    sizes = order % 7 + 1
    want = int((np.cumsum(sizes) <= 50).sum())
    assert_array_equal(found.ids, order[:want])
    assert_array_equal(found.tokens, sizes[:want])
    assert sizes[: want + 1].sum() > 50
    with pytest.raises(ValueError, match="A budget of 1 tokens is less than the best sample takes"):
        index.select(ids=[6], budget="1tokens", hidden=False)


def test_hidden_vectors_choose_by_their_cosine(index):
    import torch

    x, y = validation()
    model = index.job.model
    with torch.no_grad():
        train, asked = (
            np.tanh(model[0](torch.from_numpy(part)).numpy().astype(np.float64)) for part in (digits()[0], x)
        )
    train, asked = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, asked))
    every = asked @ train.T
    for by, want in (("mean", every.mean(axis=0)), ("max", every.max(axis=0))):
        found = index.select(x, y, budget=12, by=by)
        assert_allclose(found.hidden.scores, -np.sort(-want)[:12], atol=1e-5)
        both = np.isin(found.ids, np.argsort(-want)[:12])
        assert found.overlap == both.mean()
        assert_array_equal(found.to_arrow().column("hidden").to_numpy(zero_copy_only=False), both)
    assert "Similarity of hidden vectors would choose" in str(found)


def test_texts_are_pooled_over_their_tokens_by_position():
    states = np.arange(24.0).reshape(2, 4, 3)
    mask = np.array([[1, 1, 1, 0], [0, 0, 1, 1]])
    tokens = np.ones((2, 4), np.int64)
    want = np.stack([(states[0, :3] * [[1], [2], [3]]).sum(0) / 6, (states[1, 2:] * [[1], [2]]).sum(0) / 3])
    assert_allclose(pooled(states, {"input_ids": tokens, "attention_mask": mask}, None), want)
    assert_allclose(pooled(states, states, np.where(mask, 5, -100)), want)
    every = (states * np.arange(1, 5)[:, None]).sum(1) / 10
    assert_allclose(pooled(states, {"input_ids": tokens}, None), every)
    assert_allclose(pooled(states, np.ones((2, 7)), np.zeros(2)), states.reshape(2, 12))


def test_pooled_vectors_of_texts_of_several_lengths_are_those_of_each_alone():
    torch = pytest.importorskip("torch")
    words = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 5), torch.nn.Linear(5, 9))
    x = [np.arange(n, dtype=np.int64) for n in (3, 5, 3, 1)]
    loss = lambda output, y: torch.nn.functional.cross_entropy(output[0], y[0])  # noqa: E731
    reader = Pooled(gradindex.Job(words, loss, (x, x)))
    found = reader(x, x)
    assert found.shape == (4, 5)
    for line, one in zip(found, x, strict=True):
        assert_allclose(reader([one], [one])[0], line, atol=1e-6)


def test_budgets():
    assert parse_budget("5%", 1000) == Budget(50)
    assert parse_budget("0.01%", 1000) == Budget(1)
    assert parse_budget(7, 10) == parse_budget("7", 10) == Budget(7)
    assert parse_budget("300tokens", 10) == Budget(10, 300)
    for given, says in (
        ("5 percent", "budget must be like '5%', 500 or '20000tokens', got '5 percent'"),
        ("101%", "not between 0 and 100 %"),
        (0, "no whole number of at least 1"),
        (0.05, "give a share as '5%'"),
        (11, "The budget is 11 samples, but there are only 10"),
    ):
        with pytest.raises(ValueError, match=says):
            parse_budget(given, 10)


def test_what_has_no_meaning_is_refused(index, whitened):
    with pytest.raises(ValueError, match=r"Unknown by 'best'. Expected one of: 'mean' \| 'max' \| 'round-robin'"):
        index.select(ids=[0], by="best")
    with pytest.raises(ValueError, match="has no whitened rows"):
        index.select(ids=[0], kernel="white_dot")
    with pytest.raises(ValueError, match="needs the samples' tokens, and this job has no texts"):
        whitened.select(ids=[0], budget="100tokens")


def test_the_command_writes_what_the_function_chooses(index, tmp_path, capsys):
    path, job = str(index.store.path), "tests.index.test_select:text_job"
    texts = tmp_path / "validation.jsonl"
    texts.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(4)), encoding="utf-8")
    out = tmp_path / "subset.parquet"
    asked = ["select", path, job, "--queries", str(texts), "--budget", "5%", "--by", "round-robin", "-o", str(out)]
    assert run(asked) == 0
    want = index.select(ids=range(4), by="round-robin")
    shown = capsys.readouterr().out
    assert "Chosen by round-robin gradient cosine: 12 of 240 samples (5.0%)" in shown
    table = pq.read_table(out)
    assert table.column("id").to_pylist() == want.ids.tolist()
    assert table.column("name").to_pylist() == [f"digit {i}" for i in want.ids]
    assert table.schema.metadata[b"gradindex.kernel"] == b"grad_cos"
    rows = tmp_path / "validation.npz"
    np.savez(rows, x=digits()[0][:4], y=digits()[1][:4])
    assert run(["select", path, job, "--queries", str(rows), "--by", "round-robin", "--no-hidden", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == want.ids.tolist() and found["overlap_with_hidden"] is None
    wordless = "tests.jobs:digits_job"
    assert run(["select", path, wordless, "--queries", str(texts)]) == 2
    assert "holds texts, and the job has none" in " ".join(capsys.readouterr().err.replace("│", "").split())
