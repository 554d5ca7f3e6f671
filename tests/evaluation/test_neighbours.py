"""Labels of neighbours of right and of wrong predictions, on a case that can be done by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.evaluation import neighbour_labels
from gradindex.evaluation.neighbours import Shares, shares


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Scores along the first axis are (1, 0, −1), so that the queries (1, 0) are predicted 0.

    A query's gradient with its prediction is that of the first two samples. The last one's, which is labelled 1 and at
    −100 times the input, has a cosine of .26 with it, and the largest inner product of all.
    """
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0], [0, 0], [-1, 0]]))
    x = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [-100, 0]], np.float32)
    job = gradindex.Job(model, nn.functional.cross_entropy, (x, np.array([0, 0, 2, 1, 1])))
    return gradindex.build(job, tmp_path_factory.mktemp("shares") / "index", sketch=gradindex.Identity())


X, Y = np.array([[1, 0]] * 4, np.float32), np.array([0, 0, 1, 2])


def test_shares_are_those_done_by_hand(index):
    found = {one.kernel: one for one in neighbour_labels(index, X, Y, k=2)}
    assert list(found) == ["grad_dot", "grad_cos", "grad_asym_dot"]
    for kernel in ("grad_cos", "grad_asym_dot"):  # both neighbours have the label 0
        assert found[kernel].right == Shares(2, true=1, predicted=1, neither=0)
        assert found[kernel].wrong == Shares(2, true=0, predicted=1, neither=0)
    assert found["grad_dot"].right == Shares(2, true=0.5, predicted=0.5, neither=0.5)  # 1 and 0
    assert found["grad_dot"].wrong == Shares(2, true=0.25, predicted=0.5, neither=0.25)
    assert found["grad_dot"].to_dict()["wrong"]["true"] == 0.25


def test_with_its_true_label_a_query_finds_others(index):
    (cos,) = neighbour_labels(index, X, Y, k=1, kernels=["grad_cos"], predicted=False)
    assert cos.right == Shares(2, true=1, predicted=1, neither=0)
    assert cos.wrong == Shares(2, true=0.5, predicted=0, neither=0.5)  # of both it is the sample with the label 2


def test_all_samples_and_no_wrong_prediction(index):
    (cos,) = neighbour_labels(index, X[:2], Y[:2], k=100, kernels=["grad_cos"])
    assert cos.right == Shares(2, true=0.4, predicted=0.4, neither=0.6)  # all five samples
    assert cos.wrong is None


def test_places_that_stayed_empty_do_not_count():
    assert shares([[1, 7], [0, 7]], [1, 1], [1, 0], [[1, 0], [1, 0]]) == Shares(2, true=0.5, predicted=1, neither=0)
    assert shares(np.zeros((0, 2)), [], [], np.zeros((0, 2))) is None


def test_an_index_of_another_metric_has_one_kernel(index, tmp_path):
    other = gradindex.build(index.job, tmp_path / "index", metric="cos-x")
    (found,) = neighbour_labels(other, X, Y, k=3)
    assert found.kernel == "cos-x"
    assert found.wrong.predicted == pytest.approx(2 / 3) and found.wrong.true == pytest.approx(1 / 6)  # 0, 0, 2


def test_whitened_rows_are_asked_too(index, tmp_path):
    whitened = gradindex.build(index.job, tmp_path / "index", whiten=True)
    kernels = [one.kernel for one in neighbour_labels(whitened, X, Y, k=2)]
    assert kernels == ["grad_dot", "grad_cos", "grad_asym_dot", "white_dot", "white_cos"]


def test_what_has_no_classes_is_refused(index, tmp_path):
    with pytest.raises(ValueError, match="y is missing: give the true labels"):
        neighbour_labels(index, X, None)
    job = gradindex.Job(nn.Linear(2, 1), nn.functional.mse_loss, (X, np.ones((4, 1), np.float32)), task="regression")
    numbers = gradindex.build(job, tmp_path / "index")
    with pytest.raises(ValueError, match="are no classes, one for each query"):
        neighbour_labels(numbers, X, np.ones((4, 1), np.float32))
