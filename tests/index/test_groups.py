"""Queries by groups of parameters, of one store, beside plain loops of backward passes."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import gradindex
from tests import tiny_language

FORMS = {"attention": "self_attn", "feed-forward": r"linear\d"}
QUERIES = [2, 5]


@pytest.fixture(scope="module")
def job():
    return tiny_language.job(count=60, trained=10)


@pytest.fixture(scope="module")
def index(job, tmp_path_factory):
    path = tmp_path_factory.mktemp("groups") / "index"
    return gradindex.build(job, path, sketch=gradindex.Groups(FORMS, dim=768), progress=False)


@pytest.fixture(scope="module")
def truth(job):
    """Gradients (n, P) by one backward pass for each text, and the group of every number."""
    rows = []
    for text in job.texts.texts:
        ids = torch.tensor([[tiny_language.NUMBERS[word] for word in text.split()]])
        job.model.zero_grad()
        job.loss_fn(job.model(ids), ids).backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in job.model.parameters()]).numpy())
    job.model.zero_grad()
    groups = []
    for name, parameter in job.model.named_parameters():
        group = "attention" if "self_attn" in name else "feed-forward" if "linear" in name else "others"
        groups += [group] * parameter.numel()
    return np.array(rows, np.float64), np.array(groups)


def values(truth, weights, kernel, eps=0.0):
    """Exact kernel values of the queries with all samples, where groups have these weights."""
    rows, groups = truth
    own = np.array([weights.get(group, 0.0) for group in groups])
    dots = (rows[QUERIES] * own) @ rows.T
    norms = np.sqrt(rows**2 @ own)
    if kernel == "grad_dot":
        return dots
    return dots / ((norms[QUERIES][:, None] * norms if kernel == "grad_cos" else norms**2) + eps)


@pytest.mark.parametrize(
    ("groups", "weights"),
    [
        ("attention", {"attention": 1}),
        (["attention", "others"], {"attention": 1, "others": 1}),
        ({"feed-forward": 2.0, "others": 0.5}, {"feed-forward": 2.0, "others": 0.5}),
    ],
)
@pytest.mark.parametrize(("kernel", "eps"), [("grad_cos", 0.0), ("grad_dot", 0.0), ("grad_asym_dot", 1e-3)])
def test_answers_are_those_of_the_groups_gradients(index, truth, groups, weights, kernel, eps):
    want = values(truth, weights, kernel, eps)
    result = index.explain(ids=QUERIES, k=5, rerank=60, kernel=kernel, eps=eps, groups=groups)
    order = np.argsort(-want, axis=1, kind="stable")
    assert_allclose(result.scores, np.take_along_axis(want, order[:, :5], 1), rtol=1e-4)
    assert_allclose(result.opponent_scores, np.take_along_axis(want, order[:, :-6:-1], 1), rtol=1e-4, atol=1e-7)
    for ids, scores in ((result.ordered_indices, result.scores), (result.opponent_indices, result.opponent_scores)):
        assert_allclose(np.take_along_axis(want, ids, 1), scores, rtol=1e-4, atol=1e-7)
    assert result.exact.all() and not result.proved.any()
    assert result.meta["params"]["groups"] == weights
    assert result.meta["params"]["searched"] == "scan of the store"


def test_estimates_come_from_the_groups_numbers(index, truth):
    for weights in ({"attention": 1.0}, {"feed-forward": 1.0}, {"others": 3.0}):
        want = values(truth, weights, "grad_cos")
        rough = index.explain(ids=QUERIES, k=60, rerank=0, groups=weights)
        found = np.take_along_axis(want, rough.ordered_indices, 1)
        assert not rough.exact.any()
        assert np.corrcoef(found.ravel(), rough.scores.ravel())[0, 1] > 0.9
        assert np.abs(found - rough.scores).mean() < 0.1
        assert_allclose(found[:, 0], 1, atol=1e-6)  # the query itself
        assert_allclose(rough.scores[:, 0], 1, atol=1e-3)


def test_few_exact_checks_find_the_best(index, truth):
    want = values(truth, {"attention": 1.0}, "grad_cos")
    result = index.explain(ids=QUERIES, k=3, rerank=20, groups="attention")
    assert (result.checked <= 40).all()
    for line in range(len(QUERIES)):
        assert len(np.intersect1d(result.ordered_indices[line], np.argsort(-want[line])[:3])) >= 2


def test_the_same_rows_answer_whole_queries(job, index, truth):
    groups = truth[1]
    result = index.explain(ids=QUERIES, k=60, rerank=60)
    want = values(truth, dict.fromkeys(np.unique(groups).tolist(), 1.0), "grad_cos")
    assert_allclose(result.scores, -np.sort(-want, axis=1), atol=1e-5)
    every = index.explain(ids=QUERIES, k=60, rerank=60, groups=[*FORMS, "others"])
    assert_allclose(every.scores, result.scores, atol=1e-5)
    again = gradindex.load(index.store.path, job)
    asked = {"ids": [1], "groups": "others", "k": 4}
    assert_array_equal(again.explain(**asked).scores, index.explain(**asked).scores)


def test_filters_removed_samples_and_queries_in_words(job, index, tmp_path):
    some = index.explain(text=job.texts.text(2), groups="attention", where=[4, 9, 11], k=5)
    assert_array_equal(np.sort(some.ordered_indices), [[-1, -1, 4, 9, 11]])
    assert np.isnan(some.scores[0, 3:]).all() and some.query_tokens == [job.texts.pieces(2)]
    fewer = gradindex.build(job, tmp_path / "index", sketch=gradindex.Groups("blocks", dim=64), progress=False)
    before = fewer.explain(ids=[3], groups="block", k=2) if "block" in fewer.projector.members else None
    assert before is None and list(fewer.projector.members) == ["others"]  # names without numbers of layers
    fewer.remove([3])
    assert 3 not in fewer.explain(ids=[3], groups="others", k=59).ordered_indices


def test_blocks_are_the_layers(tmp_path):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = body, nn.Linear(3, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x)))

    job = gradindex.Job(Net(), nn.CrossEntropyLoss(), (x, y))
    index = gradindex.build(job, tmp_path / "index", sketch=gradindex.Groups("blocks", dim=60), progress=False)
    assert index.projector.members == {
        "body.0": ["body.0.weight", "body.0.bias"],
        "body.2": ["body.2.weight", "body.2.bias"],
        "body.4": ["body.4.weight", "body.4.bias"],
        "others": ["head.weight", "head.bias"],
    }
    only = gradindex.build(
        gradindex.Job(job.model, job.loss_fn, job.dataset, parameters=r"body\.2"), tmp_path / "only", progress=False
    )
    found = index.explain(x[:3], y[:3], k=40, rerank=40, groups="body.2")
    want = only.explain(x[:3], y[:3], k=40, rerank=40)
    assert_array_equal(found.ordered_indices, want.ordered_indices)
    assert_allclose(found.scores, want.scores, atol=1e-5)
    assert "query_labels" in found.data and "query_labels" not in index.explain(x[:3], groups="body.2").data


def test_what_makes_no_sense_is_refused(job, index, tmp_path):
    plain = gradindex.build(job, tmp_path / "index", sketch=gradindex.CountSketch(64), progress=False)
    with pytest.raises(ValueError, match=r"groups needs an index whose rows have some: build it with sketch=gradindex"):
        plain.explain(ids=[1], groups="attention")
    with pytest.raises(ValueError, match=r"There is no group 'mlp'. Expected some of: attention, feed-forward, others"):
        index.explain(ids=[1], groups=["attention", "mlp"])
    for weights in ({"attention": -1.0}, {"attention": 0.0}, {"attention": float("nan")}, []):
        with pytest.raises(ValueError, match="Weights of groups must be 0 or more, and some more"):
            index.explain(ids=[1], groups=weights)
    with pytest.raises(ValueError, match="groups does not go with certify, tokens='each'"):
        index.explain(ids=[1], groups="attention", certify=True, tokens="each")
    with pytest.raises(ValueError, match="have no tokens"):
        index.explain(ids=[1], groups="attention", k=2).tokens(0)
