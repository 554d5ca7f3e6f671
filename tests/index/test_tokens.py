"""Queries in words, and the influence of single tokens on either side, beside a plain loop of backward passes."""

import json
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import gradindex
from gradindex.compute import tokens as products
from gradindex.explanation import Explanation
from gradindex.gradients.ways import STEPS, TOKENS
from tests import tiny_language
from tests.tiny_language import NUMBERS, NextToken

QUERY = "the cat sat under a hill and then it sang"
EPS = 0.3


@pytest.fixture(scope="module")
def job():
    return tiny_language.job()


@pytest.fixture(scope="module")
def index(job, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "index"
    return gradindex.build(job, path, sketch=gradindex.CountSketch(256), progress=False)


def token_gradients(job, text, prompt=0):
    """The gradients (t, P) of what each token of a text gives to its loss, by one backward pass for each."""
    ids = torch.tensor([[NUMBERS[word] for word in text.split()]])
    labels = ids.clone()
    labels[:, :prompt] = -100
    rows = []
    for token in range(ids.shape[1]):
        job.model.zero_grad()
        job.loss_fn.per_token(job.model(ids), labels)[0, token].backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in job.model.parameters()]).numpy())
    job.model.zero_grad()
    return np.array(rows, np.float64)


def kernel(name, dots, query, train, eps=0.0):
    query, train = np.linalg.norm(query), np.linalg.norm(train)
    return dots / {"grad_dot": 1, "grad_cos": query * train + eps, "grad_asym_dot": train**2 + eps}[name]


@pytest.mark.parametrize(
    ("name", "eps"), [("grad_cos", 0.0), ("grad_cos", EPS), ("grad_dot", 0.0), ("grad_asym_dot", EPS)]
)
def test_each_token_of_a_query(job, index, name, eps):
    result = index.explain(text=QUERY, k=4, kernel=name, eps=eps, tokens="each")
    assert result.query_tokens == [QUERY.split()]
    query = token_gradients(job, QUERY)
    for scores, ids, whole in (
        (result.token_scores, result.ordered_indices, result.scores),
        (result.opponent_token_scores, result.opponent_indices, result.opponent_scores),
    ):
        assert scores.shape == (1, len(query), 4) and scores.dtype == np.float64
        for place, found in enumerate(ids[0]):
            train = token_gradients(job, job.texts.text(found)).sum(axis=0)
            want = kernel(name, query @ train, query.sum(axis=0), train, eps)
            assert_allclose(scores[0, :, place], want, atol=1e-5 * np.abs(want).max() + 1e-7)
        assert_allclose(scores.sum(axis=1), whole, rtol=1e-4, atol=1e-6)
    assert_array_equal(result.token_scores[0, 0], 0)  # nothing predicts the first
    assert result.meta["params"]["tokens"] == "each" and result.meta["params"]["token_method"] == TOKENS
    plain = index.explain(text=QUERY, k=4, kernel=name, eps=eps)
    assert_array_equal(plain.ordered_indices, result.ordered_indices)
    assert "token_scores" not in plain.data and "tokens" not in plain.meta["params"]


def test_queries_of_several_lengths(job, index):
    texts = [QUERY, "the dog ran on a mat"]
    result = index.explain(text=texts, k=3, tokens="each")
    assert result.query_tokens == [text.split() for text in texts]
    assert result.token_scores.shape == (2, 10, 3)
    assert np.isnan(result.token_scores[1, 6:]).all() and np.isfinite(result.token_scores[1, :6]).all()
    for place, text in enumerate(texts):
        alone = index.explain(text=text, k=3, tokens="each")
        assert_array_equal(result.ordered_indices[place], alone.ordered_indices[0])
        assert_allclose(result.token_scores[place, : len(text.split())], alone.token_scores[0], atol=1e-6)


def test_missing_results_have_no_tokens(index):
    result = index.explain(text=QUERY, k=3, where=[4, 7], tokens="each")
    assert_array_equal(result.ordered_indices[0, 2], -1)
    assert np.isnan(result.token_scores[0, :, 2]).all()
    assert_allclose(result.token_scores[0, :, :2].sum(axis=0), result.scores[0, :2], atol=1e-6)
    with pytest.raises(IndexError, match="Nothing was found as proponent 2 of query 0"):
        result.tokens(2)


@pytest.mark.parametrize(("chosen", "places"), [(slice(3, 6), [3, 4, 5]), (-1, [9]), (4, [4]), (slice(None, 2), [1])])
def test_some_tokens_of_a_query(job, index, chosen, places):
    result = index.explain(text=QUERY, tokens=chosen, k=60, kernel="grad_dot", rerank=60)
    query = 9 * token_gradients(job, QUERY)[places].mean(axis=0)  # the mean of their losses alone, of 9 in all
    for place, found in enumerate(result.ordered_indices[0][:5]):
        train = token_gradients(job, job.texts.text(found)).sum(axis=0)
        assert_allclose(result.scores[0, place], query @ train, rtol=1e-4)
    said = [chosen.start, chosen.stop, chosen.step] if isinstance(chosen, slice) else chosen
    assert result.meta["params"]["tokens"] == said


def test_tokens_of_samples_of_the_dataset(job, index):
    result = index.explain(ids=[3, 9], k=2, tokens="each")
    assert result.query_tokens == [job.texts.pieces(3), job.texts.pieces(9)]
    one = index.explain(ids=[3], k=2, tokens=-1)
    again = index.explain(text=job.texts.text(3), k=2, tokens=-1)
    assert_allclose(one.scores, again.scores, rtol=1e-6)
    x, y = {"input_ids": [job.texts.numbers(QUERY)]}, [job.texts.numbers(QUERY)]
    assert index.explain(x, y, k=2, tokens="each").query_tokens == [QUERY.split()]


def test_a_prompt_and_its_answer(job, index):
    prompt, answer = "the cat sat", "under a hill and then it sang"
    result = index.explain(prompt=prompt, answer=answer, k=3, tokens="each")
    query = token_gradients(job, QUERY, prompt=3)
    for place, found in enumerate(result.ordered_indices[0]):
        train = token_gradients(job, job.texts.text(found)).sum(axis=0)
        want = kernel("grad_cos", query @ train, query.sum(axis=0), train)
        assert_allclose(result.token_scores[0, :, place], want, atol=1e-6)
    assert result.query_answers == [answer]
    with pytest.raises(ValueError, match=r"The tokens \[0, 1, 2\] of query 0 have no loss.*3 to 9 have one"):
        index.explain(prompt=prompt, answer=answer, tokens=slice(0, 3))


def test_the_models_own_answer(job, index):
    own = job.texts.answer("the dog ran")
    result = index.explain(prompt="the dog ran", k=3)
    assert result.query_answers == [own] and len(own.split()) == 4
    assert result.query_tokens == [f"the dog ran {own}".split()]
    given = index.explain(prompt="the dog ran", answer=own, k=3)
    assert_array_equal(result.scores, given.scores)


def test_a_conversation(index):
    asked = {"role": "user", "content": "the dog ran"}
    said = {"role": "assistant", "content": "on a mat"}
    result = index.explain(messages=[asked, said], k=3)
    given = index.explain(prompt="the dog ran", answer="on a mat", k=3)
    assert_array_equal(result.scores, given.scores)
    own = index.explain(messages=[asked], k=3)
    assert own.query_answers == index.explain(prompt="the dog ran", k=3).query_answers
    both = index.explain(messages=[[asked, said], [asked]], k=3)
    assert both.query_answers == ["on a mat", *own.query_answers]
    prompts = index.explain(prompt=["the dog ran", [asked]], answer=["on a mat", "under a tree"], k=3)
    assert_allclose(prompts.scores[0], given.scores[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["grad_cos", "grad_dot"])
def test_tokens_of_what_was_found(job, index, name):
    result = index.explain(prompt="the cat sat", answer="under a hill", k=4, kernel=name)
    query = token_gradients(job, "the cat sat under a hill", prompt=3).sum(axis=0)
    for side, ids, scores in (
        ("proponent", result.ordered_indices, result.scores),
        ("opponent", result.opponent_indices, result.opponent_scores),
    ):
        for rank, found in enumerate(ids[0]):
            one = result.tokens(rank, side=side)
            train = token_gradients(job, job.texts.text(found))
            want = kernel(name, train @ query, query, train.sum(axis=0))
            assert one.id == found and one.pieces == job.texts.pieces(found) and one.method == TOKENS
            assert_allclose(one.scores, want, atol=1e-5 * np.abs(want).max())
            assert_allclose([one.scores.sum(), one.score], [scores[0, rank]] * 2, rtol=1e-4)


def test_one_pass_for_all_that_were_found(job, index, monkeypatch):
    result = index.explain(text=QUERY, k=10)
    calls = []
    once = job.engine.token_products
    monkeypatch.setattr(job.engine, "token_products", lambda *given: calls.append(len(given[1])) or once(*given))
    for rank in range(10):
        result.tokens(rank), result.tokens(rank, side="opponent")
    found = np.unique([result.ordered_indices, result.opponent_indices])
    assert sum(calls) == len(found) and len(calls) == len({len(job.texts.pieces(i)) for i in found})


def test_results_are_saved_with_the_tokens_that_were_computed(index):
    result = index.explain(text=QUERY, k=3, tokens="each")
    unknown = pickle.loads(pickle.dumps(result))
    with pytest.raises(ValueError, match=r"were not computed while its model was at hand.*call tokens before saving"):
        unknown.tokens(0)
    first = result.tokens(1)
    for saved in (pickle.loads(pickle.dumps(result)), Explanation.from_json(result.to_json())):
        again = saved.tokens(1)
        assert again.pieces == first.pieces and (again.id, again.score) == (first.id, first.score)
        assert_array_equal(again.scores, first.scores)
        assert_array_equal(saved.token_scores, result.token_scores)
        assert saved.query_tokens == result.query_tokens
        assert saved.tokens(2, side="opponent").id == result.opponent_indices[0, 2]
    json.loads(result.to_json())
    assert Explanation.from_json(unknown.to_json()).data.get("found_tokens") is None


def test_answers_by_estimates_and_by_proof(index):
    rough = index.explain(text=QUERY, k=3, rerank=0, tokens="each")
    exact = index.explain(text=QUERY, k=60, rerank=60)
    scores = dict(zip(exact.ordered_indices[0].tolist(), exact.scores[0].tolist(), strict=True))
    want = [scores[found] for found in rough.ordered_indices[0].tolist()]
    assert_allclose(rough.token_scores[0].sum(axis=0), want, atol=1e-5)  # exact, though the scores are estimates
    assert_allclose(rough.tokens(0).scores.sum(), want[0], atol=1e-5)
    proved = index.explain(text=QUERY, k=3, certify=True, max_checks=60, tokens="each")
    assert_allclose(proved.token_scores[0].sum(axis=0), proved.scores[0], atol=1e-5)


def test_wrong_forward_mode_is_found_out(tmp_path, monkeypatch, caplog):
    """Sums that differ from the whole product, and tokens that differ while their sum does not."""
    for number, change in enumerate((lambda found: 1.1 * found, lambda found: np.roll(found, 1, axis=-1))):
        fresh = tiny_language.job(count=30, trained=0)
        index = gradindex.build(fresh, tmp_path / f"{number}", sketch=gradindex.CountSketch(64), progress=False)
        right = index.explain(text=QUERY, k=3)
        once = fresh.engine.token_products

        def wrong(*given, once=once, change=change):
            found, losses = once(*given)
            return change(found), losses

        monkeypatch.setattr(fresh.engine, "token_products", wrong)
        caplog.clear()
        result = index.explain(text=QUERY, k=3, tokens="each")
        assert f"{TOKENS} is off by up to" in caplog.text and "a training step is taken for each token" in caplog.text
        assert result.meta["params"]["token_method"] == STEPS
        assert_allclose(result.token_scores.sum(axis=1), right.scores, rtol=1e-4)
        query = token_gradients(fresh, QUERY)
        train = token_gradients(fresh, fresh.texts.text(result.ordered_indices[0, 0]))
        want = kernel("grad_cos", query @ train.sum(axis=0), query.sum(axis=0), train.sum(axis=0))
        assert_allclose(result.token_scores[0, :, 0], want, atol=1e-6)
        one = result.tokens(0)
        assert one.method == STEPS
        want = kernel("grad_cos", train @ query.sum(axis=0), query.sum(axis=0), train.sum(axis=0))
        assert_allclose(one.scores, want, atol=1e-6)


def test_tokens_of_what_was_found_are_compared_with_training_steps(caplog):
    fresh = tiny_language.job(count=30, trained=0)
    fresh.engine.settle(*(fresh.source.take(np.arange(8)).x, fresh.source.take(np.arange(8)).y))
    ids, query = np.arange(6), token_gradients(fresh, QUERY).sum(axis=0).astype(np.float32)
    train = [token_gradients(fresh, fresh.texts.text(i)) for i in ids]
    whole = np.array([one.sum(axis=0) @ query for one in train])
    lengths = np.array([np.linalg.norm(one.sum(axis=0)) for one in train])
    right = products.of_samples(fresh.engine, fresh.source, ids, query, whole, lengths)
    assert right.method == TOKENS
    for found, one in zip(right.products, train, strict=True):
        assert_allclose(found, one @ query, atol=1e-5 * lengths.max() * np.linalg.norm(query))
    again = products.of_samples(
        fresh.engine, fresh.source, ids, query, whole + lengths * np.linalg.norm(query), lengths
    )
    assert again.method == STEPS and "is off by up to" in caplog.text
    assert not fresh.engine.ways.usable(TOKENS)


def test_a_loss_whose_tokens_do_not_add_up(tmp_path):
    class Twice(NextToken):
        def per_token(self, output, y):
            return 2 * super().per_token(output, y)

        def __call__(self, output, y):
            return super().per_token(output, y).sum(1).mean()

    job = tiny_language.job(count=20, trained=0, loss=Twice())
    index = gradindex.build(job, tmp_path / "index", sketch=gradindex.CountSketch(64), progress=False)
    with pytest.raises(ValueError, match="What per_token says of query 0 adds up to"):
        index.explain(text=QUERY, k=2, tokens="each")

    class Deaf(NextToken):
        def per_token(self, output, y):
            each = torch.nn.functional.cross_entropy(
                output[:, :-1].transpose(1, 2), y[:, 1:].clamp(min=0), reduction="none"
            )
            return torch.nn.functional.pad(each, (1, 0))

    job = tiny_language.job(count=20, trained=0, loss=Deaf())
    index = gradindex.build(job, tmp_path / "deaf", sketch=gradindex.CountSketch(64), progress=False)
    with pytest.raises(ValueError, match="does not leave out the tokens whose label is -100"):
        index.explain(text=QUERY, k=2, tokens=3)


def test_what_makes_no_sense_is_refused(job, index):
    with pytest.raises(ValueError, match=r"Give one of text, prompt .* and messages, got .'text', 'prompt'."):
        index.explain(text=QUERY, prompt="the")
    with pytest.raises(ValueError, match=r"Give one of text.*got .'answer'."):
        index.explain(answer="the")
    with pytest.raises(ValueError, match=r"Give either inputs x .* or text, prompt or messages"):
        index.explain(ids=[1], text=QUERY)
    with pytest.raises(ValueError, match="2 prompts but 1 answers"):
        index.explain(prompt=["the", "a"], answer="cat")
    with pytest.raises(ValueError, match="no queries: the list is empty"):
        index.explain(text=[])
    with pytest.raises(ValueError, match="messages is empty"):
        index.explain(messages=[[]])
    with pytest.raises(TypeError, match="Expected a text, a conversation or a list of them, got int"):
        index.explain(text=3)
    with pytest.raises(TypeError, match="tokens must be a slice, an integer or 'each', got 'all'"):
        index.explain(text=QUERY, tokens="all")
    with pytest.raises(IndexError, match="Token 10 is out of range for a query of 10 tokens"):
        index.explain(text=QUERY, tokens=10)
    result = index.explain(text=QUERY, k=2)
    with pytest.raises(IndexError, match="There is no proponent 2 of query 0: 2 for each of 1 queries"):
        result.tokens(2)
    with pytest.raises(ValueError, match="side must be one of 'proponent', 'opponent'"):
        result.tokens(0, side="both")
    wordless = gradindex.load(index.store.path, gradindex.Job(job.model, job.loss_fn, job.dataset, task="regression"))
    with pytest.raises(ValueError, match=r"does not say how texts become samples: expected Job\.texts"):
        wordless.explain(text=QUERY)
    assert wordless.explain(ids=[2], k=2).tokens(0).pieces is None


def test_whitened_rows_and_metrics(job, tmp_path):
    rows = gradindex.build(job, tmp_path / "metric", metric="GC", progress=False)
    with pytest.raises(ValueError, match="has the rows of a metric: leave tokens out"):
        rows.explain(text=QUERY, tokens="each")
    with pytest.raises(ValueError, match="rows of a metric or whitened ones have no tokens"):
        rows.explain(text=QUERY, k=2).tokens(0)
    white = gradindex.build(job, tmp_path / "white", sketch=gradindex.CountSketch(64), progress=False)
    white.whiten(dims=16, progress=False)
    with pytest.raises(ValueError, match="needs exact gradients, and kernels of whitened rows have estimates"):
        white.explain(text=QUERY, tokens="each", kernel="white_dot")
    some = white.explain(text=QUERY, tokens=slice(3, 5), kernel="white_cos", k=2)
    assert some.query_tokens == [QUERY.split()]
    assert (some.scores != white.explain(text=QUERY, kernel="white_cos", k=2).scores).any()
