"""Sets of queries asked as one: against kernel values by plain loops of training steps, reduced in NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gradindex
from gradindex.search import best_of, sets
from tests import oracles
from tests.jobs import digits, digits_job

N, M, C, K = 60, 7, 5, 6
KERNELS = oracles.KERNELS


class Case:
    """An index of one framework's model on random points, queries, and the naive loop's gradients of all."""

    def __init__(self, kit, path, **options):
        model = kit.mlp()
        self.kit = kit
        (self.x, self.y), (self.queries, self.labels) = oracles.points(N), oracles.points(M + C, seed=1)
        self.index = gradindex.build(gradindex.Job(model, kit.loss, (self.x, self.y)), path, **options)
        self.train = kit.gradients(model, kit.loss, self.x, self.y)
        self.gradients = kit.gradients(model, kit.loss, self.queries, self.labels)

    def values(self, kernel):
        """The kernel values of the set (M, N), and of the contrast set (C, N)."""
        every = oracles.kernel(kernel, self.gradients, self.train, eps=0)
        return every[:M], every[M:]

    def explain(self, **options):
        return self.index.explain(self.queries[:M], self.labels[:M], k=K, **options)

    @property
    def against(self):
        return self.queries[M:], self.labels[M:]


@pytest.fixture(scope="module", params=["pytorch", "tensorflow"])
def case(request, tmp_path_factory):
    return Case(oracles.kit(request.param), tmp_path_factory.mktemp("sets") / "i")


@pytest.fixture(scope="module")
def torch_case(tmp_path_factory):
    return Case(oracles.kit("pytorch"), tmp_path_factory.mktemp("sets") / "i")


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory):
    sketch = gradindex.Landmark(landmarks=40, dims=16)
    return Case(oracles.kit("pytorch"), tmp_path_factory.mktemp("sets") / "i", sketch=sketch)


def assert_is(result, highest, lowest=None):
    """The answer of a set is the K highest of some values (N,), and the K lowest of the same or others."""
    lowest = highest if lowest is None else lowest
    size = max(np.abs(highest).max(), np.abs(lowest).max())
    assert result.scores.shape == (1, K)
    assert_allclose(result.scores[0], -np.sort(-highest)[:K], rtol=1e-4, atol=1e-5 * size)
    assert_allclose(result.scores[0], highest[result.ordered_indices[0]], rtol=1e-4, atol=1e-5 * size)
    assert_allclose(result.opponent_scores[0], np.sort(lowest)[:K], rtol=1e-4, atol=1e-5 * size)
    assert_allclose(result.opponent_scores[0], lowest[result.opponent_indices[0]], rtol=1e-4, atol=1e-5 * size)


REDUCED = {
    "mean": lambda values: values.mean(axis=0),
    "sum": lambda values: values.sum(axis=0),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reduce", REDUCED)
def test_a_mean_or_a_sum_is_that_of_the_values(case, kernel, reduce):
    values, _ = case.values(kernel)
    found = case.explain(kernel=kernel, reduce=reduce, rerank=N)
    assert_is(found, REDUCED[reduce](values))
    assert found.exact.all() and found.opponent_exact.all()
    assert found.meta["params"]["reduce"] == reduce and found.meta["params"]["queries"] == M


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_best_is_the_largest_value_of_any_query(case, kernel):
    values, _ = case.values(kernel)
    found = case.explain(kernel=kernel, reduce="max", rerank=N)
    assert_is(found, values.max(axis=0), values.min(axis=0))
    assert found.exact.all() and found.checked.tolist() == [N]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reduce", REDUCED)
def test_a_contrast_set_is_taken_off(case, kernel, reduce):
    values, away = case.values(kernel)
    found = case.explain(kernel=kernel, reduce=reduce, against=case.against, rerank=N)
    assert_is(found, REDUCED[reduce](values) - REDUCED[reduce](away))
    assert found.meta["params"]["against"] == C


def test_a_contrast_set_is_taken_off_each_query(case):
    values, away = case.values("grad_cos")
    found = case.explain(against=case.against, rerank=N)
    want = values - away.mean(axis=0)
    assert_allclose(found.scores, -np.sort(-want, axis=1)[:, :K], atol=1e-5)
    assert_allclose(found.opponent_scores, np.sort(want, axis=1)[:, :K], atol=1e-5)
    assert_array_equal(found.query_labels, case.labels[:M])


def test_a_contrast_set_may_be_ids(torch_case):
    ids = [3, 14]
    given = torch_case.explain(reduce="mean", against=(torch_case.x[ids], torch_case.y[ids]), rerank=N)
    named = torch_case.explain(reduce="mean", against=ids, rerank=N)
    assert_array_equal(given.ordered_indices, named.ordered_indices)
    assert_allclose(torch_case.explain(reduce="mean", against=(3, 14), rerank=N).scores, named.scores)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_sets_may_be_larger_than_what_is_handled_at_once(torch_case, reduce, monkeypatch):
    want = torch_case.explain(reduce=reduce, rerank=10)
    monkeypatch.setattr(sets, "AT_ONCE", 3)
    monkeypatch.setattr(best_of, "AT_ONCE", 3)
    found = torch_case.explain(reduce=reduce, rerank=10)
    assert_array_equal(found.ordered_indices, want.ordered_indices)
    assert_allclose(found.scores, want.scores, atol=1e-6)


def test_the_best_of_few_candidates_is_compared_with_all_queries(tmp_path):
    """Rows of eight numbers find other candidates for each query: a value is the largest over the set all the same."""
    case = Case(oracles.kit("pytorch"), tmp_path / "i", sketch=gradindex.CountSketch(8))
    values, _ = case.values("grad_cos")
    found = case.explain(reduce="max", rerank=K)
    assert found.checked[0] < N
    assert_allclose(found.scores[0], values.max(axis=0)[found.ordered_indices[0]], atol=1e-5)
    assert_allclose(found.opponent_scores[0], values.min(axis=0)[found.opponent_indices[0]], atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("options", [{"reduce": "mean"}, {"reduce": "sum", "against": True}, {"reduce": "max"}])
def test_answers_of_sets_are_proved(landmarks, kernel, options):
    against = {"against": landmarks.against} if options.get("against") else {}
    found = landmarks.explain(kernel=kernel, certify=True, **(options | against))
    values, away = landmarks.values(kernel)
    assert found.proved.all() and found.opponent_proved.all()
    if options["reduce"] == "max":
        assert_is(found, values.max(axis=0), values.min(axis=0))
    else:
        total = REDUCED[options["reduce"]](values)
        assert_is(found, total - away.sum(axis=0) if against else total)


def test_what_is_not_proved_of_a_set_has_a_bound(landmarks):
    values, _ = landmarks.values("grad_cos")
    for reduce, highest in (("mean", values.mean(axis=0)), ("max", values.max(axis=0))):
        found = landmarks.explain(reduce=reduce, certify=True, max_checks=K)
        left = np.setdiff1d(np.arange(N), found.ordered_indices[0])
        assert found.exact.all() and not found.proved[0]
        assert highest[left].max() <= max(found.bound_left[0], found.scores[0, -1]) + 1e-5


def test_estimates_of_a_set_are_those_of_the_stored_rows(torch_case):
    every = torch_case.index.scores(torch_case.queries[:M], torch_case.labels[:M])
    best = torch_case.explain(reduce="max", rerank=0)
    assert_allclose(best.scores[0], every.max(axis=0)[best.ordered_indices[0]], atol=1e-5)
    assert_allclose(best.scores[0], -np.sort(-every.max(axis=0))[:K], atol=1e-5)
    assert not best.exact.any() and not best.opponent_exact.any()
    mean = torch_case.explain(reduce="mean", rerank=0)
    assert_allclose(mean.scores[0], every.mean(axis=0)[mean.ordered_indices[0]], atol=1e-2)


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("sets") / "i", whiten=True)


@pytest.mark.parametrize("kernel", ["white_dot", "white_cos"])
def test_whitened_kernels_of_sets(whitened, kernel):
    index = whitened
    x, y = (part[:8] for part in digits())
    every = index.scores(x, y, kernel=kernel).astype(np.float64)
    size = np.abs(every).max()
    for options, high, low in (
        ({"reduce": "mean"}, every.mean(axis=0), every.mean(axis=0)),
        ({"reduce": "max"}, every.max(axis=0), every.min(axis=0)),
        ({"reduce": "sum", "against": range(8, 12)}, *2 * [every.sum(axis=0) - _of(index, kernel).sum(axis=0)]),
    ):
        found = index.explain(x, y, k=K, kernel=kernel, **options)
        assert_allclose(found.scores[0], -np.sort(-high)[:K], atol=2e-3 * size)
        assert_allclose(found.opponent_scores[0], np.sort(low)[:K], atol=2e-3 * size)
        assert not found.exact.any()


def _of(index, kernel):
    return index.scores(ids=np.arange(8, 12), kernel=kernel).astype(np.float64)


def test_a_set_is_one_row_without_a_label_of_its_own(torch_case):
    found = torch_case.explain(reduce="mean", where={"label": [0, 1]})
    assert not hasattr(found, "query_labels") and not hasattr(found, "query_predictions")
    assert set(np.unique(found.labels)) <= {0, 1}
    assert len(found.to_arrow()) == 2 * K
    assert gradindex.Explanation.from_json(found.to_json()).meta["params"]["queries"] == M
    assert len(found.view[1]) == 1 and found.view[2] is None
    assert torch_case.index.explain(ids=[4, 5], reduce="mean", k=2).view[2].tolist() == [4]


def test_a_query_of_zeros_counts_as_zero(torch_case):
    """A gradient of zero has the kernel value 0 with everything, in a mean, too."""
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]])
    asked = sets.make(torch_case.index.labelled(torch_case.queries[:2], torch_case.labels[:2]), "mean", None)
    chunks = lambda _: iter([(slice(0, 2), vectors, np.array([5.0, 0.0]))])  # noqa: E731
    assert_allclose(next(asked.vectors(chunks, unit=True))[1], [[0.3, 0.4]])


def test_what_has_no_meaning_is_refused(torch_case):
    with pytest.raises(
        ValueError, match=r"Unknown reduce 'median'. Expected one of: 'each' \| 'mean' \| 'sum' \| 'max'"
    ):
        torch_case.explain(reduce="median")
    with pytest.raises(ValueError, match="reduce='max' takes the best of the queries, of which a contrast set's mean"):
        torch_case.explain(reduce="max", against=[1])
    with pytest.raises(ValueError, match=r"eps = 0\.1 changes the cosine of each query in another way"):
        torch_case.explain(reduce="mean", eps=0.1)
    with pytest.raises(ValueError, match="ids is empty"):
        torch_case.explain(reduce="mean", against=[])
    with pytest.raises(ValueError, match=r"against is a dict of \['x'\]: expected queries in words, some of \['a"):
        torch_case.explain(reduce="mean", against={"x": torch_case.x})
    values = oracles.kernel("grad_cos", torch_case.gradients[:M], torch_case.train, eps=0.1)
    assert_is(torch_case.explain(reduce="max", eps=0.1, rerank=N), values.max(axis=0), values.min(axis=0))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    pytest.importorskip("torch")
    from tests import tiny_language

    job = tiny_language.job(40)
    return gradindex.build(job, tmp_path_factory.mktemp("sets") / "i"), job.texts


def test_sets_and_contrasts_in_words(texts):
    index, reader = texts
    x, y = reader.encode(prompt="the cat", answer="sat on")
    ran = {"prompt": "the cat", "answer": "ran on"}
    want = index.explain(x, y, k=4, against=reader.encode(**ran), rerank=40)
    found = index.explain(prompt="the cat", answer="sat on", k=4, rerank=40, against=ran)
    assert_array_equal(found.ordered_indices, want.ordered_indices)
    assert_allclose(found.scores, want.scores, atol=1e-6)
    two = ["the cat sat on a mat", "the dog sat on a mat and then it barked"]
    several = index.explain(text=two, reduce="mean", k=4, rerank=40)
    each = index.explain(text=two, k=40, rerank=40)
    order = np.argsort(each.ordered_indices, axis=1)
    values = np.take_along_axis(each.scores, order, 1).mean(axis=0)
    assert_allclose(several.scores[0], values[several.ordered_indices[0]], atol=1e-5)
    chosen = index.select(text=two, budget="21tokens")
    assert 10 < chosen.tokens.sum() <= 21
    with pytest.raises(ValueError, match="tokens='each' tells the influence on the tokens of one query, and a set has"):
        index.explain(text="the cat sat", tokens="each", reduce="mean")
    with pytest.raises(ValueError, match="groups cannot be asked about together with reduce or against"):
        index.explain(text="the cat sat", groups="x", reduce="mean")
