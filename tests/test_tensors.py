"""Arrays and torch tensors by their type."""

import numpy as np
import pytest
import torch

from gradindex.data import tensors


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_number_makes_a_sample_not_finite(make, bad):
    values = np.zeros((3, 2, 2), np.float32)
    values[1, 0, 1] = bad
    assert tensors.are_finite(make(values)).tolist() == [True, False, True]
    assert tensors.are_finite(make(values[:, 0, 1])).tolist() == [True, False, True]
    assert tensors.are_finite(make(np.array([[3], [4]]))).tolist() == [True, True]


def test_an_array_becomes_what_the_example_is():
    found = tensors.like(np.arange(3.0), torch.zeros(1, dtype=torch.float16))
    assert found.dtype == torch.float16 and found.tolist() == [0, 1, 2]
    array = np.arange(3)
    assert tensors.like(array, np.zeros(1)) is array


def test_parts_one_behind_the_other():
    both = [torch.zeros(2, 3), torch.ones(1, 3)]
    assert torch.equal(tensors.concatenate(both), torch.cat(both))
    mixed = tensors.concatenate([np.zeros((2, 3), np.float32), both[1]])
    assert isinstance(mixed, np.ndarray) and mixed.sum(axis=1).tolist() == [0, 0, 3]


def test_rows_are_taken_of_either():
    rows = np.array([2, 0])
    assert tensors.take(torch.arange(3), rows).tolist() == tensors.take(np.arange(3), rows).tolist() == [2, 0]
    assert tensors.take(torch.arange(3), slice(1, None)).tolist() == [1, 2]
