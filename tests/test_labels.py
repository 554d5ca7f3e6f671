"""Labels: their forms, and predictions in the form of the training labels."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gradindex.data import labels

LOGITS = np.array([[0.1, 2.0, -1.0], [3.0, 0.0, 0.0]], np.float32)


def no_losses(outputs, y):
    raise AssertionError("losses are needed for single outputs only")


def torch_tensor(array):
    import torch

    return torch.tensor(array)


class TestForms:
    def test_one_hot(self):
        assert labels.is_one_hot(np.eye(3))
        assert labels.is_one_hot(np.eye(3, dtype=int)[[0, 0, 2]])
        assert labels.is_one_hot(torch_tensor(np.eye(3)))

    @pytest.mark.parametrize(
        "y",
        [
            None,
            np.array([0, 1]),
            np.ones((3, 1)),
            np.zeros((2, 3)),
            np.ones((2, 2)),
            np.array([[0.5, 0.5]]),
            np.array([[2, -1]]),
            {"a": np.eye(2)},
            np.eye(4).reshape(1, 4, 4),
        ],
    )
    def test_not_one_hot(self, y):
        assert labels.is_one_hot(y) is False

    @pytest.mark.parametrize(
        "y", [np.array([2, 0]), np.array([[2], [0]]), np.eye(3)[[2, 0]], torch_tensor(np.array([2, 0]))]
    )
    def test_as_classes(self, y):
        assert_array_equal(labels.as_classes(y), [2, 0])

    def test_as_classes_of_numbers(self):
        assert_array_equal(labels.as_classes(np.array([[0.5], [1.5]])), [0.5, 1.5])

    @pytest.mark.parametrize("y", [None, {"a": np.ones(2)}, (np.ones(2),), np.ones((2, 3)), np.array(["a", "b"])])
    def test_as_classes_of_anything_else(self, y):
        assert labels.as_classes(y) is None

    def test_predicted_classes(self):
        found = labels.predicted_classes(LOGITS)
        assert_array_equal(found, [1, 0])
        assert found.dtype == np.int64
        assert labels.predicted_classes(None) is None
        assert labels.predicted_classes(np.ones((2, 1))) is None
        assert labels.predicted_classes(np.ones((2, 3, 4))) is None

    def test_as_array_keeps_types(self):
        import torch

        for dtype in (np.float64, np.float32, np.int64, np.uint8, np.bool_):
            assert labels.as_array(torch.tensor(np.ones(2, dtype))).dtype == dtype
        assert labels.as_array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
        assert_array_equal(labels.as_array(torch.ones(2, requires_grad=True)), [1, 1])


class TestFromOutputs:
    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32])
    def test_classes(self, dtype):
        found = labels.from_outputs(LOGITS, np.array([0, 2, 1], dtype), no_losses, 1)
        assert_array_equal(found, np.array([1, 0], dtype))
        assert found.dtype == dtype

    def test_column(self):
        found = labels.from_outputs(LOGITS, np.array([[0], [2]]), no_losses, 1)
        assert_array_equal(found, [[1], [0]])

    def test_one_hot(self):
        found = labels.from_outputs(LOGITS, np.eye(3, dtype=np.float32), no_losses, 1)
        assert_array_equal(found, [[0, 1, 0], [1, 0, 0]])
        assert found.dtype == np.float32

    @pytest.mark.parametrize("class_axis", [1, -1])
    def test_a_class_for_every_position(self, class_axis):
        outputs = np.zeros((2, 3, 4))  # segmentation: (m, c, s) in torch, (m, s, c) in Keras
        outputs[1, 2, 3] = 1
        sites = 4 if class_axis == 1 else 3
        found = labels.from_outputs(outputs, np.zeros((5, sites), np.int64), no_losses, class_axis)
        expected = np.zeros((2, sites))
        expected[1, 3 if class_axis == 1 else 2] = 2 if class_axis == 1 else 3
        assert_array_equal(found, expected)
        hot = labels.from_outputs(outputs, np.zeros((5, 3, 4)), no_losses, class_axis)
        assert_array_equal(hot.argmax(class_axis), expected)
        assert_array_equal(hot.sum(class_axis), np.ones_like(expected))

    @pytest.mark.parametrize("like", [np.array([0.0, 1.0]), np.array([[1], [-1]]), np.array([3, 8, 3])])
    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_a_single_output_takes_the_label_of_the_smaller_loss(self, like, shape):
        outputs = np.array([-5.0, 5.0, 9.0]).reshape(shape)

        def losses(out, y):  # a margin: the larger label for positive outputs
            middle = like.mean() if like.ndim == 2 else (like.min() + like.max()) / 2
            return -(y.reshape(3) - middle) * out.reshape(3)

        found = labels.from_outputs(outputs, like, losses, 1)
        assert found.shape == (3, *like.shape[1:])
        assert found.dtype == like.dtype
        assert_array_equal(found.ravel(), [like.min(), like.max(), like.max()])

    @pytest.mark.parametrize(
        ("loss", "outputs"),
        [
            (lambda o, y: np.logaddexp(0, -(2 * y - 1) * o), LOGITS),
            (lambda o, y: -np.log(np.where(y == 1, o, 1 - o) + 1e-9), 1 / (1 + np.exp(-LOGITS))),
            (lambda o, y: np.maximum(0, 1 - (2 * y - 1) * o), LOGITS),
        ],
    )
    @pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1)])
    def test_several_labels_at_once(self, loss, outputs, shape):
        """All that are above the loss's threshold are predicted, and maps of one class by place."""
        like = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], np.uint8).reshape(3, *shape)

        def losses(out, y):
            return loss(out.astype(float), y.astype(float)).reshape(len(out), -1).sum(1)

        found = labels.from_outputs(outputs.reshape(2, *shape), like, losses, 1)
        assert_array_equal(found, np.array([[1, 1, 0], [1, 0, 0]], np.uint8).reshape(2, *shape), strict=True)

    def test_several_labels_need_a_threshold(self):
        like = np.array([[1, 0, 1], [0, 0, 0]], np.float32)

        def weighted(out, y):
            return (np.where(y == 1, 3, 1) * np.logaddexp(0, -(2 * y - 1) * out)).sum(1)

        with pytest.raises(ValueError, match=r"several at once, and neither 0 nor 0.5 is where.*Pass the labels"):
            labels.from_outputs(LOGITS, like, weighted, 1)
        with pytest.raises(ValueError, match="several at once"):
            labels.from_outputs(LOGITS, np.array([[1, 0, 2], [0, 0, 0]]), no_losses, 1)

    @pytest.mark.parametrize(("like", "count"), [(np.array([0, 1, 2]), 3), (np.array([1, 1]), 1)])
    def test_a_single_output_needs_two_labels(self, like, count):
        with pytest.raises(ValueError, match=rf"labels {count} distinct values.*Pass Y"):
            labels.from_outputs(np.ones((2, 1)), like, no_losses, 1)

    @pytest.mark.parametrize("like", [None, {"a": np.ones(3)}, (np.ones(3),), ["a", "b"]])
    def test_labels_that_are_not_numbers(self, like):
        with pytest.raises(ValueError, match=r"not numbers in one array.*Pass Y"):
            labels.from_outputs(LOGITS, like, no_losses, 1)


class TestSeveralLabels:
    """Rows of zeros and ones, several ones in a row: each label that lowers the loss is predicted."""

    LIKE = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], np.float32)

    def losses(self, outputs, y):
        return np.logaddexp(0, np.where(y > 0, -outputs, outputs)).sum(1)

    def test_each_output_above_one_half(self):
        logits = np.array([[3.0, -1.0, 0.5], [-2.0, -1.0, -3.0]], np.float32)
        found = labels.from_outputs(logits, self.LIKE, self.losses, 1)
        assert_array_equal(found, [[1, 0, 1], [0, 0, 0]])
        assert found.dtype == np.float32
