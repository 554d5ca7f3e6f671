"""Explanation: access, and JSON there and back."""

import copy
import json
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gradindex import Explanation


def explanation():
    return Explanation(
        {"name": "Index", "params": {"k": 2}},
        {
            "scores": np.array([[2.5, np.nan], [1.0, -3.0]]),
            "small": np.array([[0.1], [np.nan]], np.float32),
            "ordered_indices": np.array([[3, -1], [0, 2**53 + 1]], np.int64),
            "exact": np.array([[True, False], [True, True]]),
            "labels": np.array([[1, 2], [3, 4]], np.uint8),
            "objects": [[{"text": "a"}, "b"], [None, 3]],
            "none_at_all": np.empty((2, 0), np.int32),
            "parts": {"a": np.ones((1, 2), np.float32), "b": (np.zeros(2, np.int16), np.ones(1, bool))},
        },
    )


class TestAccess:
    def test_attributes_are_the_data(self):
        found = explanation()
        assert found.scores is found.data["scores"]
        assert found.meta["name"] == "Index"
        assert {"scores", "ordered_indices", "to_json", "meta"} <= set(dir(found))

    def test_unknown_attribute_names_those_there_are(self):
        with pytest.raises(AttributeError, match="no 'score'; it has scores, small, ordered_indices"):
            _ = explanation().score
        assert not hasattr(explanation(), "score")

    def test_item_access_warns(self):
        found = explanation()
        with pytest.warns(DeprecationWarning, match=r"explanation\['scores'\] is deprecated, use explanation\.scores"):
            scores = found["scores"]
        assert scores is found.scores

    def test_repr_shows_shapes(self):
        assert "scores[2, 2]" in repr(explanation())
        assert "Index" in repr(explanation())

    def test_copies(self):
        found = explanation()
        for again in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
            assert_array_equal(again.scores, found.scores)


class TestJson:
    def test_round_trip(self):
        found = explanation()
        again = Explanation.from_json(found.to_json())
        assert again.meta == found.meta
        assert list(again.data) == list(found.data)
        for name in ("scores", "small", "ordered_indices", "exact", "labels", "none_at_all"):
            assert again.data[name].dtype == found.data[name].dtype, name
            assert_array_equal(again.data[name], found.data[name], strict=True)
        assert again.objects == found.objects

    def test_round_trip_of_parts(self):
        parts = Explanation.from_json(explanation().to_json()).parts
        assert_array_equal(parts["a"], np.ones((1, 2), np.float32), strict=True)
        assert isinstance(parts["b"], tuple)
        assert_array_equal(parts["b"][0], np.zeros(2, np.int16), strict=True)
        assert_array_equal(parts["b"][1], np.ones(1, bool), strict=True)

    def test_it_is_strict_json(self):
        def refuse(name):
            raise AssertionError(f"{name} is not JSON")

        saved = json.loads(explanation().to_json(), parse_constant=refuse)
        assert saved["data"]["scores"] == [[2.5, None], [1.0, -3.0]]
        assert saved["data"]["ordered_indices"][1][1] == 2**53 + 1
        assert saved["data"]["objects"][0][0] == {"text": "a"}

    def test_lists_of_tensors_and_arrays(self):
        import torch

        found = Explanation({}, {"objects": [[torch.ones(2), np.float32(0.5), np.arange(2)]]})
        assert json.loads(found.to_json())["data"]["objects"] == [[[1.0, 1.0], 0.5, [0, 1]]]

    def test_the_original_is_left_alone(self):
        found = explanation()
        found.to_json()
        assert np.isnan(found.scores[0, 1])

    @pytest.mark.parametrize(
        "text",
        [
            "[]",
            "{}",
            '{"meta": {}}',
            '{"meta": {}, "data": [1]}',
            '{"meta": {}, "data": {}, "dtypes": {"scores": "float64"}}',
            '{"meta": {}, "data": {"a": [1]}, "dtypes": {"a": "no such type"}}',
        ],
    )
    def test_other_json_is_refused(self, text):
        with pytest.raises(ValueError, match="Not an explanation"):
            Explanation.from_json(text)

    def test_text_that_is_no_json(self):
        with pytest.raises(ValueError, match="Expecting"):
            Explanation.from_json("nonsense")
