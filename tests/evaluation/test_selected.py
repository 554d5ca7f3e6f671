"""Hubs, norms and the factors of a cosine, on constructed cases and against loops."""

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex import evaluation, relevance
from gradindex.evaluation import selected as s
from tests.evaluation.jobs import blobs, experiment

RNG = np.random.default_rng(0)


def test_occurrences_are_counted_over_all_places():
    assert s.occurrences([[0, 2], [2, 3], [2, -1]], 5).tolist() == [1, 0, 3, 1, 0]


def test_skewness_by_numbers():
    # Counts 0, 0, 0, 4: mean 1, variance (1 + 1 + 1 + 9) / 4 = 3, third moment (-1 -1 -1 + 27) / 4 = 6.
    assert s.skewness([0, 0, 0, 4]) == pytest.approx(6 / 3**1.5)
    assert s.skewness([1, 2, 3]) == pytest.approx(0)
    assert s.skewness([4, 4, 4, 0]) == pytest.approx(-6 / 3**1.5)
    assert np.isnan(s.skewness([2, 2]))


def test_the_share_of_the_commonest():
    nearest = [0] * 5 + [1] * 3 + [2] * 2 + list(range(3, 13))
    assert s.won_by_commonest(nearest, 13, commonest=2) == pytest.approx(8 / 20)
    assert s.won_by_commonest(nearest, 13) == pytest.approx((5 + 3 + 2 + 7) / 20)
    assert s.won_by_commonest(np.arange(40), 40) == pytest.approx(10 / 40)


def test_norms_of_the_selected_against_all():
    norms = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    found = s.selected([[4, 0], [4, 1], [2, 3]], 5, norms)
    assert found.norm == pytest.approx(50 / 3)  # of 50, 50, 3 over that of all
    assert found.counts.tolist() == [1, 1, 1, 1, 2]
    assert s.selected([[4]], 5).norm is None
    assert s.selected([[4], [-1]], 5, norms).norm == pytest.approx(50 / 3)  # the second found nothing
    assert s.selected([[0], [1]], 2, np.zeros(2)).to_dict() == {"skew": None, "won": 1.0, "norm": None}
    with pytest.raises(ValueError, match=r"norms must be \(5,\), got shape \(4,\)"):
        s.selected([[4]], 5, norms[:4])
    with pytest.raises(ValueError, match=r"positions must be \(m, k\) below 4"):
        s.selected([[4]], 4)


def hub_job(hubs=3):
    """A linear model whose training samples are alike but for a few of a thousandfold norm."""
    x = RNG.standard_normal((60, 5)).astype(np.float32)
    x[:hubs] *= 1000
    model = nn.Linear(5, 3, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    return gradindex.Job(model, nn.functional.cross_entropy, (x, RNG.integers(0, 3, 60)))


def test_inner_products_select_samples_of_extreme_norm_and_cosines_do_not():
    job = hub_job()
    queries = RNG.standard_normal((200, 5)).astype(np.float32)
    norms = np.linalg.norm(gradindex.exact_gradients(job, np.arange(60)), axis=1)
    found = {
        name: s.selected(metric.top(queries, RNG.integers(0, 3, 200), k=1)[0], 60, norms)
        for name, metric in relevance.metrics(["GD", "GC"], job).items()
    }
    assert found["GD"].counts[:3].sum() > 180
    assert found["GD"].norm > 500 and found["GC"].norm < 2
    assert found["GD"].won > 0.9 > 0.6 > found["GC"].won
    assert found["GD"].skew > 3 > found["GC"].skew


def test_an_index_tells_what_it_selects(tmp_path):
    """Each stored sample without itself, by a loop over exact scores."""
    job = hub_job()
    index = gradindex.build(job, tmp_path / "index", sketch=gradindex.Identity())
    rows = gradindex.exact_gradients(job, np.arange(60)).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    for kernel, scores in (("grad_dot", rows @ rows.T), ("grad_cos", rows @ rows.T / np.outer(norms, norms))):
        np.fill_diagonal(scores, -np.inf)
        expected = s.selected(np.argsort(-scores, axis=1)[:, :4], 60, norms)
        found = s.selected_by(index, kernel=kernel, queries=100, k=4)
        assert np.abs(found.counts - expected.counts).sum() <= 8  # stored rows are float16
        assert found.won == pytest.approx(expected.won, abs=0.05)
        assert found.norm == pytest.approx(expected.norm, rel=0.05)
        assert found.skew == pytest.approx(expected.skew, rel=0.05)
    index.remove([0, 7])
    found = s.selected_by(index, kernel="grad_dot", queries=100, k=4)
    assert len(found.counts) == 58
    assert found.counts.sum() == 58 * 4
    assert set(np.argsort(found.counts)[-2:]) == {0, 1}  # the hubs that are left, samples 1 and 2


def test_a_single_sample_has_no_neighbours(tmp_path):
    job = hub_job()
    index = gradindex.build(job, tmp_path / "index", sketch=gradindex.Identity())
    with pytest.raises(ValueError, match="1 query and 1 neighbour"):
        s.selected_by(index, queries=0)


def last_gradients(model, parameters, x, y):
    rows = []
    for one, label in zip(torch.as_tensor(x), torch.as_tensor(y), strict=True):
        loss = nn.functional.cross_entropy(model(one[None]), label[None])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]).numpy())
    return np.array(rows)


def cosine(one, other):
    return one @ other.T / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))


def mlp(bias=True, width=7):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 4, bias=bias)).double()


@pytest.mark.parametrize(
    ("model", "last"),
    [
        (mlp(), 2),
        (mlp(bias=False), 2),
        (mlp(width=4), 2),  # as many inputs as outputs
        (nn.Sequential(nn.Linear(2, 4).double()), 0),  # logistic regression, the study's own case
    ],
    ids=["bias", "no bias", "square", "logistic regression"],
)
def test_the_factors_of_the_last_layer(model, last):
    x, y = (part[:50] for part in blobs())
    job = gradindex.Job(model, nn.functional.cross_entropy, (x.astype(np.float64), y))
    found = s.last_layer_factors(job, x[:6].astype(np.float64), y[:6], ids=np.arange(10, 50))
    rows = last_gradients(model, list(model[last].parameters()), x.astype(np.float64), y)
    np.testing.assert_allclose(found.cosine, cosine(rows[:6], rows[10:50]), atol=1e-6)
    with torch.no_grad():
        received = model[:last](torch.as_tensor(x).double()).numpy()
        residual = model(torch.as_tensor(x).double()).softmax(1).numpy() - np.eye(4)[y]
    if model[last].bias is not None:
        received = np.c_[received, np.ones(50)]
    np.testing.assert_allclose(found.residual, cosine(residual[:6], residual[10:50]), atol=1e-6)
    np.testing.assert_allclose(found.hidden, cosine(received[:6], received[10:50]), atol=1e-6)
    same = y[:6, None] == y[10:50]
    assert (found.residual[same] >= 0).all()  # the study's section 5
    every = s.last_layer_factors(job, x[:2].astype(np.float64))
    assert every.cosine.shape == (2, 50)


def test_the_factors_of_a_keras_model():
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(4)])
    x, y = (part[:30] for part in blobs())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    job = gradindex.Job(model, loss, (x, y))
    found = s.last_layer_factors(job, x[:5], y[:5])
    logits = np.asarray(model(x), np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = p / p.sum(axis=1, keepdims=True) - np.eye(4)[y]
    received = np.c_[np.asarray(model.layers[0](x), np.float64), np.ones(30)]
    np.testing.assert_allclose(found.residual, cosine(residual[:5], residual), atol=1e-4)
    np.testing.assert_allclose(found.hidden, cosine(received[:5], received), atol=1e-4)
    np.testing.assert_allclose(found.cosine, found.residual * found.hidden)


def test_a_last_layer_that_is_not_linear_is_refused():
    x, y = RNG.standard_normal((6, 1, 8)).astype(np.float32), np.arange(6) % 2
    model = nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 8), nn.Flatten())
    job = gradindex.Job(model, nn.functional.cross_entropy, (x, y))
    with pytest.raises(ValueError, match=r"The last layer receives an array \(3, 8\) of each sample"):
        s.last_layer_factors(job, x[:2])

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.last(self.first(x[:, 0]))))

    job = gradindex.Job(Twice(), nn.functional.cross_entropy, (x, y))
    with pytest.raises(ValueError, match="is no product of its output's gradient and its input"):
        s.last_layer_factors(job, x[:2])


def test_an_evaluation_tells_what_each_metric_selects():
    result = evaluation.evaluate(experiment(), ["dot-x", "GC", "FK"], ("class",), repeats=2, k=5)
    told = result.meta["selected"]["class"]
    assert [len(told[name]) for name in ("dot-x", "GC", "FK")] == [2, 2, 2]
    split = experiment().split(0)
    x = split.x_test[np.random.default_rng(0).permutation(len(split.x_test))[:60]].astype(np.float64)
    train = split.x_train.astype(np.float64)
    nearest = np.argsort(-(x @ train.T), axis=1, kind="stable")[:, :5]
    expected = s.selected(nearest, len(train), np.linalg.norm(train, axis=1)).to_dict()
    assert told["dot-x"][0] == pytest.approx(expected)
    won = np.mean([one["won"] for one in told["GC"]])
    assert f"GC {won:.2f}" in result.notes()[-1]
    assert result.notes()[-1].startswith(
        "Queries whose nearest sample is one of the 10 commonest (class labels): dot-x 1"
    )


def test_a_sample_whose_layer_receives_nothing_has_its_bias_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 2))
        model[0].bias.zero_()
    x, y = np.array([[-1.0, -1.0], [2.0, 1.0]]), np.array([0, 1])
    job = gradindex.Job(model, nn.functional.cross_entropy, (x, y))
    found = s.last_layer_factors(job, x, y)
    rows = last_gradients(model, list(model[2].parameters()), x, y)
    np.testing.assert_allclose(found.cosine, cosine(rows, rows), atol=1e-6)
    assert found.hidden[0, 1] == pytest.approx(1 / np.sqrt(1 + 4 + 1))
