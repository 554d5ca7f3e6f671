"""Other measures beside the kernels: BM25 and hidden vectors as candidates and as columns."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gradindex
from gradindex.search import lexical
from tests.index.test_select import text_job
from tests.jobs import ROWS, digits, digits_job

TOPICS = "stack queue heap", "tea coffee milk", "north south east west"


def text_of(i):
    return f"{TOPICS[i % 3]} number{i}"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    job = digits_job(render=text_of)
    return gradindex.build(job, tmp_path_factory.mktemp("lexical") / "i", sketch=gradindex.CountSketch(8))


def hidden():
    """The cosines of all samples' hidden vectors (n, n)."""
    import torch

    model = digits_job().model
    with torch.no_grad():
        found = np.tanh(model[0](torch.from_numpy(digits()[0])).numpy().astype(np.float64))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found @ found.T


def test_hidden_neighbours_are_candidates_and_a_column(index):
    cosines, ids = hidden(), [5, 6]
    found = index.explain(ids=ids, k=8, rerank=8, candidates_from="hidden")
    assert found.hidden.shape == found.opponent_hidden.shape == (2, 8)
    for line, query in enumerate(ids):
        assert_allclose(found.hidden[line], cosines[query, found.ordered_indices[line]], atol=1e-5)
        assert_allclose(found.opponent_hidden[line], cosines[query, found.opponent_indices[line]], atol=1e-5)
        gradients = index.explain(ids=ids, k=8, rerank=8)
        assert found.checked[line] > gradients.checked[line]
        assert found.scores[line].sum() >= gradients.scores[line].sum() - 1e-6  # the union finds no worse
    assert "hidden" in found.to_arrow().column_names
    assert found.meta["params"]["candidates_from"] == ["hidden"]


def test_every_candidate_is_evaluated(index):
    """Rows of eight numbers hardly find anything: the true neighbours come from the other measure."""
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    exact, cosines = gradients[5] @ gradients.T, hidden()[5]
    nearest = np.argsort(-cosines)[:40]
    found = index.explain(ids=[5], k=10, rerank=40, candidates_from=("hidden",))
    assert found.exact.all()
    assert_allclose(found.scores[0], exact[found.ordered_indices[0]], atol=1e-5)
    best = -np.sort(-exact[nearest])[:10]
    assert (found.scores[0] >= best - 1e-5).all()


def test_removed_samples_and_filters_hold_for_other_candidates(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i", sketch=gradindex.CountSketch(8))
    near = index.explain(ids=[5], k=10, rerank=10, candidates_from="hidden").ordered_indices[0]
    index.remove(near[:3])
    found = index.explain(ids=[5], k=10, rerank=10, candidates_from="hidden")
    assert not set(near[:3]) & set(found.ordered_indices[0])
    labels = digits()[1]
    found = index.explain(ids=[5], k=3, where={"label": 7}, rerank=50, candidates_from="hidden")
    assert set(labels[found.ordered_indices[0]]) == {7}


def test_measures_of_sets_are_reduced_like_values(index):
    cosines = hidden()
    for reduce, want in (
        ("mean", cosines[:4].mean(axis=0)),
        ("sum", cosines[:4].sum(axis=0)),
        ("max", cosines[:4].max(axis=0)),
    ):
        found = index.explain(ids=range(4), k=5, reduce=reduce, candidates_from="hidden")
        assert_allclose(found.hidden[0], want[found.ordered_indices[0]], atol=1e-5)
    found = index.explain(ids=range(4), k=5, reduce="mean", against=[8, 9], candidates_from="hidden")
    want = cosines[:4].mean(axis=0) - cosines[[8, 9]].mean(axis=0)
    assert_allclose(found.hidden[0], want[found.ordered_indices[0]], atol=1e-5)
    each = index.explain(ids=range(4), k=5, against=[8, 9], candidates_from="hidden")
    want = cosines[:4] - cosines[[8, 9]].mean(axis=0)
    assert_allclose(each.hidden, np.take_along_axis(want, each.ordered_indices, 1), atol=1e-5)


def test_proofs_and_whitened_rows_have_the_columns(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i", whiten=True)
    cosines = hidden()
    for options in ({"kernel": "white_dot"}, {"certify": True}, {"rerank": 0}):
        found = index.explain(ids=[5], k=5, candidates_from="hidden", **options)
        plain = index.explain(ids=[5], k=5, **options)
        assert_array_equal(found.ordered_indices, plain.ordered_indices)
        assert_allclose(found.hidden[0], cosines[5, found.ordered_indices[0]], atol=1e-5)


def test_words():
    assert lexical.words("A Tea-pot, two_words: 3 CUPS!") == ["a", "tea", "pot", "two_words", "3", "cups"]


def test_bm25_without_its_package(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"BM25 needs bm25s, which is not installed. Type: pip install 'gradindex\[l"):
        index.explain(ids=[5], candidates_from="bm25")


def test_what_is_no_text_is_refused(index):
    with pytest.raises(ValueError, match=r"Unknown measure in candidates_from 'words'. Expected one of: 'bm25' \| 'hi"):
        index.explain(ids=[5], candidates_from="words")
    with pytest.raises(ValueError, match="BM25 needs the queries' texts, and this job has no way from inputs to text"):
        index.explain(digits()[0][:1], candidates_from="bm25")
    bare = gradindex.Index(index.store, digits_job())
    with pytest.raises(ValueError, match="BM25 compares texts, and this job's samples are none"):
        bare.explain(ids=[5], candidates_from="bm25")


class TestBm25:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("bm25s")

    def test_scores_are_the_formula(self):
        texts = ["tea tea milk", "Coffee and milk", "north", ""]
        found = lexical.Bm25(texts)("milk TEA, unknown")
        k1, b, sizes = 1.5, 0.75, np.array([3, 3, 1, 0])
        counts = {"milk": np.array([1, 1, 0, 0]), "tea": np.array([2, 0, 0, 0])}
        want = np.zeros(4)
        for count in counts.values():
            inverse = np.log(1 + (4 - (count > 0).sum() + 0.5) / ((count > 0).sum() + 0.5))
            want += inverse * count / (count + k1 * (1 - b + b * sizes / sizes.mean()))
        assert_allclose(found, want, rtol=1e-5)
        assert_array_equal(lexical.Bm25(texts)("unknown"), np.zeros(4))
        assert_array_equal(lexical.Bm25(["", ""])("tea"), np.zeros(2))

    def test_neighbours_by_words_are_candidates_and_a_column(self, index):
        found = index.explain(ids=[4], k=10, rerank=10, candidates_from=("bm25", "hidden"))
        scores = lexical.Bm25([text_of(i) for i in range(ROWS)])(text_of(4))
        assert_allclose(found.bm25[0], scores[found.ordered_indices[0]])
        assert_allclose(found.opponent_bm25[0], scores[found.opponent_indices[0]])
        assert {"bm25", "hidden"} <= set(found.to_arrow().column_names)
        every = index.explain(ids=[4], k=ROWS, rerank=ROWS, candidates_from="bm25")
        assert_allclose(every.bm25[0], scores[every.ordered_indices[0]])

    def test_texts_of_the_job_are_used(self, tmp_path):
        index = gradindex.build(text_job(), tmp_path / "i")
        found = index.explain(digits()[0][:2], digits()[1][:2], k=ROWS, rerank=ROWS, candidates_from="bm25")
        has = found.ordered_indices[0] == 0  # the queries are read as "w0", which sample 0 says alone
        assert (found.bm25[0][has] > 0).all() and (found.bm25[0][~has] == 0).all()

    def test_samples_that_are_added_have_scores(self, tmp_path):
        index = gradindex.build(digits_job(render=text_of), tmp_path / "i")
        index.explain(ids=[4], candidates_from="bm25")
        new = index.add((digits()[0][:3], digits()[1][:3]))
        found = index.explain(ids=[int(new[0])], k=ROWS + 3, rerank=ROWS + 3, candidates_from="bm25")
        assert np.isfinite(found.bm25).all()
        assert found.bm25[0][found.ordered_indices[0] == new[0]] == found.bm25.max()
