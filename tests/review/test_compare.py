"""Two indexes compared: overlaps by hand, and what came and went."""

import json
from functools import partial

import numpy as np
import pytest

import gradindex
from gradindex.search.compare import compare, overlap, rank_biased_overlap
from tests.jobs import digits, digits_job, longer_job, other_model_job


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return gradindex.build(digits_job(), folder / "a"), gradindex.build(other_model_job(), folder / "b")


def test_overlaps_by_hand():
    one = np.array([[1, 2, 3], [1, 2, 3], [1, 2, -1]])
    other = np.array([[3, 2, 1], [4, 5, 6], [1, 2, -1]])
    assert overlap(one, other).tolist() == [1, 0, pytest.approx(2 / 3)]
    p = 0.5
    # X is 0, 1, 3: (3/3) p³ + (1 − p)/p · (0 + (1/2) p² + (3/3) p³)
    assert rank_biased_overlap(one, other, p)[0] == pytest.approx(p**3 + (1 - p) / p * (p**2 / 2 + p**3))
    assert rank_biased_overlap(one, other, p)[1] == 0
    assert rank_biased_overlap(one[:1], one[:1], p)[0] == pytest.approx(1)
    assert 0 < rank_biased_overlap(one, other, p)[2] < 1


def test_the_first_places_weigh_most():
    ids = np.arange(10)[None]
    first, last = ids.copy(), ids.copy()
    first[0, 0], last[0, 9] = 99, 99
    assert rank_biased_overlap(ids, first) < rank_biased_overlap(ids, last) < 1


def test_what_came_and_went_is_what_explain_says(indexes):
    a, b = indexes
    x, _ = digits()
    found = compare(a, b, x[:4], k=6)
    before, after = (index.explain(x[:4], k=6) for index in indexes)
    for side, name in ((found.proponents, "ordered_indices"), (found.opponents, "opponent_indices")):
        one, other = getattr(before, name), getattr(after, name)
        for i in range(4):
            assert set(side.gone(i)) == set(one[i]) - set(other[i]) and set(side.came(i)) == set(other[i]) - set(one[i])
            assert side.overlap[i] == len(set(one[i]) & set(other[i])) / 6
    assert found.predictions_before.tolist() == before.query_predictions.tolist()
    assert found.predictions_after.tolist() == after.query_predictions.tolist()
    assert found.proponents.overlap.mean() < 1
    assert json.loads(json.dumps(found.to_json()))["by_query"][0]["proponents"]["gone"] == found.proponents.gone(0)


def test_an_index_is_like_itself_but_for_what_was_removed(indexes, tmp_path):
    a = indexes[0]
    same = compare(a, a, ids=[3, 14], k=5)
    assert same.proponents.overlap.tolist() == [1, 1] and np.allclose(same.opponents.rank_biased, 1)
    gone = int(same.proponents.before[0, 1])
    other = gradindex.build(digits_job(), tmp_path / "index")
    other.remove([gone])
    less = compare(a, other, ids=[3], k=5)
    assert less.proponents.gone(0) == [gone] and less.proponents.overlap.tolist() == [0.8]


def test_wrong_arguments(indexes, tmp_path):
    a, b = indexes
    with pytest.raises(ValueError, match="persistence must lie between 0 and 1, got 1"):
        compare(a, b, ids=[3], persistence=1)
    with pytest.raises(ValueError, match="k is 999, but there are only 240 samples"):
        compare(a, b, ids=[3], k=999)
    longer = gradindex.build(partial(longer_job, 300)(), tmp_path / "index")
    with pytest.raises(
        ValueError,
        match=r"The jobs have 240 and 300 samples, so an id need not mean the same.*leave its rows in the dataset",
    ):
        compare(a, longer, ids=[3])
