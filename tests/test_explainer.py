"""GradientSimilarity against naive loops, in both frameworks: values, forms of input, side effects, the index."""

import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.oracles import KERNELS, kernel, points

X, Y = points(12)
QUERIES, LABELS = points(3, seed=1)


def ranked(scores):
    """Return scores descending and their ids, equal ones by id."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), order


def by_id(explanation):
    """Return scores (m, n) in the order of the training samples."""
    out = np.empty_like(explanation.scores)
    np.put_along_axis(out, explanation.ordered_indices, explanation.scores, 1)
    return out


def assert_explains(explanation, expected, tolerance=1e-5):
    """Compare with oracle scores (m, n); the tolerance is relative to each query's largest |score|."""
    scores, ids = explanation.scores, explanation.ordered_indices
    assert scores.shape == ids.shape == expected.shape
    assert scores.dtype == np.float64
    assert ids.dtype == np.int64
    assert_array_equal(np.sort(ids, axis=1), np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
    assert (np.diff(scores, axis=1) <= 0).all()
    error = np.abs(by_id(explanation) - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() <= tolerance


def flat_loss(kit):
    """A hinge: flat, with a gradient of exactly zero, for labels below the output."""
    if kit.name == "pytorch":
        return lambda output, y: (y - output).relu().sum()
    import tensorflow as tf

    return lambda y, output: tf.reduce_sum(tf.nn.relu(y - output))


class TestAgainstTheLoop:
    """The digits, a CNN trained for three epochs, all three kernels."""

    n, m = 200, 10

    @pytest.fixture
    def data(self, kit, digits):
        x, y, x_test, y_test = digits
        return kit.images(x[: self.n]), y[: self.n], kit.images(x_test[: self.m]), y_test[: self.m]

    @pytest.fixture
    def truth(self, kit, data):
        """Gradients of the naive loop, of the queries and of the training set."""
        return self._loop(kit, data, kit.cnn(), np.float32)

    @pytest.fixture
    def wide(self, kit, data):
        """The same with the model and the images in float64."""
        return self._loop(kit, data, kit.double(kit.cnn()), np.float64)

    def _loop(self, kit, data, model, dtype):
        x, y, x_test, y_test = data
        if (kit.name, dtype) not in _TRUTH:
            pairs = (x_test.astype(dtype), y_test), (x.astype(dtype), y)
            _TRUTH[kit.name, dtype] = [kit.gradients(model, kit.loss, *pair) for pair in pairs]
        return _TRUTH[kit.name, dtype]

    @pytest.mark.parametrize("precompute", [False, True])
    @pytest.mark.parametrize("sim_fn", KERNELS)
    def test_scores_equal_the_naive_loop(self, kit, data, truth, sim_fn, precompute):
        x, y, x_test, y_test = data
        explainer = kit.explainer(kit.cnn(), kit.loss, sim_fn, precompute_grads=precompute).fit(x, y)
        assert_explains(explainer.explain(x_test, y_test), kernel(sim_fn, *truth))

    @pytest.mark.parametrize("sim_fn", KERNELS)
    def test_error_against_float64_is_as_small_as_the_loops(self, kit, data, truth, wide, sim_fn):
        x, y, x_test, y_test = data
        expected = kernel(sim_fn, *wide)
        scale = np.abs(expected).max(axis=1, keepdims=True)
        explainer = kit.explainer(kit.cnn(), kit.loss, sim_fn).fit(x, y)
        ours = np.abs(by_id(explainer.explain(x_test, y_test)) - expected) / scale
        loops = np.abs(kernel(sim_fn, *truth) - expected) / scale
        # Both are single precision, summed in different orders: as large means within a factor of two, and both
        # are far below the 1e-5 that is promised.
        assert np.sqrt((ours**2).mean()) <= 2 * np.sqrt((loops**2).mean()) < 1e-6

    def test_order_is_that_of_the_naive_loop(self, kit, data, truth):
        x, y, x_test, y_test = data
        explanation = kit.explainer(kit.cnn(), kit.loss, "grad_dot").fit(x, y).explain(x_test, y_test)
        scores, order = ranked(kernel("grad_dot", *truth))
        gaps = -np.diff(scores, axis=1)
        clear = (gaps[:, 1:] > 1e-3) & (gaps[:, :-1] > 1e-3)  # places with no near tie on either side
        assert clear.sum() > 100
        assert_array_equal(explanation.ordered_indices[:, 1:-1][clear], order[:, 1:-1][clear])

    def test_kept_gradients_are_those_of_the_loop(self, kit, data, truth):
        x, y, *_ = data
        explainer = kit.explainer(kit.cnn(), kit.loss, precompute_grads=True).fit(x, y)
        assert explainer.grad_X_train.shape == truth[1].shape
        assert explainer.grad_X_train.dtype == np.float32
        assert_allclose(explainer.grad_X_train, truth[1], rtol=0, atol=1e-5 * np.abs(truth[1]).max())

    @pytest.mark.parametrize("sim_fn", KERNELS)
    def test_precomputing_changes_no_score(self, kit, data, sim_fn):
        x, y, x_test, y_test = data
        lazy, eager = (
            kit.explainer(kit.cnn(), kit.loss, sim_fn, precompute_grads=flag).fit(x, y).explain(x_test, y_test)
            for flag in (False, True)
        )
        assert lazy.scores.dtype == eager.scores.dtype
        assert_array_equal(lazy.scores, eager.scores)
        assert_array_equal(lazy.ordered_indices, eager.ordered_indices)

    def test_batch_size_changes_no_score_beyond_rounding(self, kit, data):
        x, y, x_test, y_test = data
        whole, odd = (
            kit.explainer(kit.cnn(), kit.loss, "grad_cos", batch_size=size).fit(x, y).explain(x_test, y_test)
            for size in (None, 7)
        )
        assert_explains(odd, by_id(whole))


_TRUTH: dict[tuple, list[np.ndarray]] = {}


class TestResult:
    def test_meta(self, kit):
        import gradindex

        explainer = kit.explainer(kit.mlp(), kit.loss, "grad_asym_dot", precompute_grads=True).fit(X, Y)
        assert explainer.explain(QUERIES, LABELS).meta == {
            "name": "GradientSimilarity",
            "type": ["whitebox"],
            "explanations": ["local"],
            "params": {
                "sim_fn_name": "grad_asym_dot",
                "store_grads": True,
                "backend_name": kit.name,
                "task_name": "classification",
            },
            "version": gradindex.__version__,
        }

    def test_default_kernel_is_the_inner_product(self, kit):
        model = kit.mlp()
        expected = kernel(
            "grad_dot", kit.gradients(model, kit.loss, QUERIES, LABELS), kit.gradients(model, kit.loss, X, Y)
        )
        assert_explains(kit.explainer(model, kit.loss).fit(X, Y).explain(QUERIES, LABELS), expected)

    @pytest.mark.parametrize("sim_fn", KERNELS)
    @pytest.mark.parametrize("index", [None, "Flat"])
    def test_denominators_grow_by_1e_7(self, torch_kit, sim_fn, index):
        model, plain = torch_kit.mlp(), torch_kit.loss

        def faint(output, y):  # gradients around 1e-4, whose squares are less than 1e-7
            return plain(output, y) * 1e-4

        truth = [torch_kit.gradients(model, faint, *pair) for pair in ((QUERIES, LABELS), (X, Y))]
        explainer = torch_kit.explainer(model, faint, sim_fn, index=index).fit(X, Y)
        assert_explains(explainer.explain(QUERIES, LABELS, k=12), kernel(sim_fn, *truth))

    def test_most_and_least_similar(self, kit):
        explanation = kit.explainer(kit.mlp(), kit.loss).fit(X, Y).explain(QUERIES, LABELS)
        assert explanation.most_similar.shape == explanation.least_similar.shape == (3, 5, 4)
        assert explanation.most_similar.dtype == X.dtype
        for row in range(3):
            ids = explanation.ordered_indices[row]
            assert_array_equal(explanation.most_similar[row], X[ids[:5]])
            assert_array_equal(explanation.least_similar[row], X[[ids[-1], ids[-2], ids[-3], ids[-4], ids[-5]]])

    def test_fewer_than_five_training_samples(self, torch_kit):
        explanation = (
            torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X[:3], Y[:3]).explain(QUERIES[:1], LABELS[:1])
        )
        ids = explanation.ordered_indices[0]
        assert_array_equal(explanation.most_similar, X[ids][None])
        assert_array_equal(explanation.least_similar, X[ids[::-1]][None])

    def test_copies_of_a_sample_score_alike(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss, "grad_cos").fit(np.tile(X[:3], (3, 1)), np.tile(Y[:3], 3))
        scores = by_id(explainer.explain(QUERIES, LABELS)).reshape(3, 3, 3)
        assert_allclose(scores, scores[:, :1] + np.zeros((3, 3, 3)), rtol=0, atol=1e-6)

    def test_equal_scores_keep_the_order_of_the_training_set(self, kit):
        # Flat losses: gradients, and so scores, of exactly zero for all but one sample.
        loss, labels = flat_loss(kit), np.full((12, 1), -9, np.float32)
        labels[7] = 9
        explainer = kit.explainer(kit.mlp(outputs=1), loss, task="regression").fit(X, labels)
        found = explainer.explain(X[7], labels[7])
        assert_array_equal(found.ordered_indices, [[7, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]])
        assert_array_equal(explainer.explain(X[7], labels[7], k=3).ordered_indices, [[7, 0, 1]])

    def test_k_cuts_both_ends(self, torch_kit):
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X, Y)
        every, some = explainer.explain(QUERIES, LABELS), explainer.explain(QUERIES, LABELS, k=4)
        assert_array_equal(some.scores, every.scores[:, :4])
        assert_array_equal(some.ordered_indices, every.ordered_indices[:, :4])
        assert_array_equal(some.opponent_scores, every.scores[:, :-5:-1])
        assert_array_equal(some.opponent_indices, every.ordered_indices[:, :-5:-1])
        assert_array_equal(some.least_similar, every.least_similar[:, :4])

    def test_k_of_all(self, torch_kit):
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X, Y)
        found = explainer.explain(QUERIES, LABELS, k=len(X))
        assert_array_equal(found.opponent_scores, found.scores[:, ::-1])

    def test_item_access_works_and_warns(self, torch_kit):
        explanation = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X, Y).explain(QUERIES, LABELS)
        with pytest.warns(DeprecationWarning, match=r"use explanation\.scores"):
            scores = explanation["scores"]
        assert scores is explanation.scores is explanation.data["scores"]

    def test_json_round_trip(self, torch_kit):
        from gradindex import Explanation

        explanation = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X, Y).explain(QUERIES, LABELS)
        again = Explanation.from_json(explanation.to_json())
        assert again.meta == explanation.meta
        assert list(again.data) == list(explanation.data)
        for name, value in explanation.data.items():
            assert again.data[name].dtype == value.dtype
            assert_array_equal(again.data[name], value)

    def test_fit_returns_itself_and_keeps_what_it_was_given(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss)
        assert explainer.fit(X, Y) is explainer
        assert explainer.X_train is X
        assert explainer.Y_train is Y
        assert explainer.grad_X_train is None
        assert "12 training samples" in repr(explainer)


class TestQueries:
    def test_single_query_without_batch_axis(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(X, Y)
        expected = explainer.explain(QUERIES[:1], LABELS[:1])
        for label in (LABELS[0], int(LABELS[0]), LABELS[:1], [int(LABELS[0])]):
            found = explainer.explain(QUERIES[0], label)
            assert_explains(found, by_id(expected))
            assert found.most_similar.shape == (1, 5, 4)

    def test_a_single_image_equals_its_place_in_a_batch(self, kit, digits):
        x, y, x_test, y_test = digits
        explainer = kit.explainer(kit.cnn(), kit.loss).fit(kit.images(x[:30]), y[:30])
        batch = explainer.explain(kit.images(x_test[:4]), y_test[:4])
        alone = explainer.explain(kit.images(x_test[:4])[2], y_test[2])
        assert_explains(alone, by_id(batch)[2:3])

    def test_one_label_for_many_queries(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(X, Y)
        expected = explainer.explain(QUERIES, np.full(3, 2))
        for label in (2, [2], np.array(2), np.array([2]), np.array([[2]])):
            assert_array_equal(explainer.explain(QUERIES, label).scores, expected.scores)

    def test_an_empty_batch_of_queries_is_an_error(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(X, Y)
        with pytest.raises(ValueError, match="no queries"):
            explainer.explain(QUERIES[:0], LABELS[:0])

    def test_one_query_one_feature(self, kit):
        column = X[:, :1]
        explainer = kit.explainer(kit.mlp(inputs=1), kit.loss).fit(column, Y)
        expected = explainer.explain(QUERIES[:, :1], LABELS)
        assert_array_equal(explainer.explain(QUERIES[:, 0], LABELS).scores, expected.scores)
        assert_explains(explainer.explain(QUERIES[1, :1], LABELS[1]), by_id(expected)[1:2])


class TestLabels:
    """Every form of a label gives the scores of plain int64 classes."""

    @pytest.fixture
    def expected(self, kit):
        return kit.explainer(kit.mlp(), kit.loss).fit(X, Y).explain(QUERIES, LABELS).scores

    @pytest.mark.parametrize(
        "form",
        [list, lambda y: y.astype(np.int32), lambda y: y.astype(np.uint8), lambda y: y[:, None], "tensor"],
        ids=["list", "int32", "uint8", "(n,1)", "tensor"],
    )
    def test_forms(self, kit, expected, form):
        form = kit.tensor if form == "tensor" else form
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(X, form(Y))
        assert_allclose(explainer.explain(QUERIES, form(LABELS)).scores, expected, rtol=1e-6)
        assert_allclose(explainer.explain(QUERIES, LABELS).scores, expected, rtol=1e-6)

    def test_one_hot(self, kit, expected):
        eye = np.eye(3, dtype=np.float32)
        explainer = kit.explainer(kit.mlp(), kit.named_loss("one_hot")).fit(X, eye[Y])
        assert_allclose(explainer.explain(QUERIES, eye[LABELS]).scores, expected, rtol=1e-4, atol=1e-6)

    def test_prediction_of_classes(self, kit):
        model = kit.mlp()
        predicted = kit.predict(model, QUERIES).argmax(1)
        assert (predicted != LABELS).any()  # else the test could not fail
        explainer = kit.explainer(model, kit.loss).fit(X, Y)
        assert_array_equal(explainer.explain(QUERIES).scores, explainer.explain(QUERIES, predicted).scores)

    @pytest.mark.parametrize("form", ["(n,1)", "one-hot", "list", "float", "int32 tensor"])
    def test_prediction_takes_the_form_of_the_training_labels(self, kit, form):
        model, eye = kit.mlp(), np.eye(3, dtype=np.float32)
        predicted = kit.predict(model, QUERIES).argmax(1)
        loss = kit.named_loss("one_hot") if form == "one-hot" else kit.loss
        shape = {
            "(n,1)": lambda y: y[:, None],
            "one-hot": lambda y: eye[y],
            "list": lambda y: [int(label) for label in y],
            "float": lambda y: y.astype(np.int16),
            "int32 tensor": lambda y: kit.tensor(y.astype(np.int32)),
        }[form]
        explainer = kit.explainer(model, loss).fit(X, shape(Y))
        found, expected = explainer.explain(QUERIES), explainer.explain(QUERIES, shape(predicted))
        assert_array_equal(found.scores, expected.scores)

    @pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
    @pytest.mark.parametrize("kind", ["binary_logits", "binary_probabilities"])
    def test_prediction_of_a_single_output(self, kit, kind, shape):
        model = kit.mlp(outputs=1, activation="sigmoid" if "prob" in kind else None)
        loss = kit.named_loss(kind)
        binary = (Y > 0).astype(np.float32).reshape(shape)
        queries, _ = points(20, seed=3)
        threshold = 0.5 if "prob" in kind else 0.0
        predicted = (kit.predict(model, queries)[:, 0] > threshold).astype(np.float32)
        assert 0 < predicted.sum() < 20
        explainer = kit.explainer(model, loss).fit(X, binary)
        found = explainer.explain(queries)
        assert_array_equal(found.scores, explainer.explain(queries, predicted.reshape(shape)).scores)
        truth = [
            kit.gradients(model, loss, queries, predicted[:, None]),
            kit.gradients(model, loss, X, binary.reshape(-1, 1)),
        ]
        assert_explains(found, kernel("grad_dot", *truth))

    def test_type_of_the_training_labels_is_taken_on(self, kit):
        model, loss = kit.mlp(outputs=1), kit.named_loss("binary_logits")
        binary = kit.explainer(model, loss).fit(X, (Y > 0).astype(np.float32)[:, None])
        classes = kit.explainer(kit.mlp(), kit.loss).fit(X, Y)
        ones = np.ones((3, 1), np.float32), np.ones(3, np.int64)
        for explainer, given in zip((binary, classes), ones, strict=True):
            expected = explainer.explain(QUERIES, given)
            for label in (1, 1.0, [1], np.array([[1]]), np.uint8(1), True):
                assert_array_equal(explainer.explain(QUERIES, label).scores, expected.scores)

    def test_regression(self, kit):
        model, loss = kit.mlp(outputs=1), kit.named_loss("mse")
        target, asked = X[:, :1] * 2, QUERIES[:, :1] * 2
        truth = [kit.gradients(model, loss, QUERIES, asked), kit.gradients(model, loss, X, target)]
        explainer = kit.explainer(model, loss, "grad_cos", task="regression")
        assert_explains(explainer.fit(X, target).explain(QUERIES, asked), kernel("grad_cos", *truth))
        # Labels (n,) against outputs (n, 1) must not broadcast to (n, n).
        assert_explains(explainer.fit(X, target[:, 0]).explain(QUERIES, asked[:, 0]), kernel("grad_cos", *truth))


class TestLosses:
    @pytest.mark.parametrize("name", ["mean", "sum", "(1,)", "(1,1)", "scalar"])
    def test_every_shape_and_reduction_is_the_loss_of_one_sample(self, kit, name):
        model = kit.mlp()
        truth = [kit.gradients(model, kit.losses()["sum"], *pair) for pair in ((QUERIES, LABELS), (X, Y))]
        explainer = kit.explainer(model, kit.losses()[name]).fit(X, Y)
        assert_explains(explainer.explain(QUERIES, LABELS), kernel("grad_dot", *truth))


class TestInputs:
    @pytest.fixture
    def expected(self, kit):
        return kit.explainer(kit.mlp(), kit.loss).fit(X, Y).explain(QUERIES, LABELS)

    def test_float64_arrays(self, kit, expected):
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(X.astype(np.float64), Y)
        found = explainer.explain(QUERIES.astype(np.float64), LABELS)
        assert_explains(found, by_id(expected))
        assert found.most_similar.dtype == np.float64

    def test_float64_model_with_float32_arrays(self, kit, expected):
        explainer = kit.explainer(kit.mlp(double=True), kit.loss, precompute_grads=True).fit(X, Y)
        assert explainer.grad_X_train.dtype == np.float64
        scale = np.abs(expected.scores).max()
        assert explainer.explain(QUERIES, LABELS).scores.shape == expected.scores.shape
        if kit.name == "tensorflow":  # the same initial weights but for their precision
            return
        model = kit.double(kit.mlp())
        found = kit.explainer(model, kit.loss).fit(X, Y).explain(QUERIES, LABELS)
        assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-5 * scale)

    def test_framework_tensors(self, kit, expected):
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(kit.tensor(X), kit.tensor(Y))
        found = explainer.explain(kit.tensor(QUERIES), kit.tensor(LABELS))
        assert_array_equal(found.scores, expected.scores)
        assert isinstance(found.most_similar, np.ndarray)
        assert_array_equal(found.most_similar, expected.most_similar)

    def test_samples_of_a_tensor_keep_their_type(self, kit):
        integers = (X * 100).astype(np.int64) + 2**30 + 1  # float32 could not hold these
        explainer = kit.explainer(*_divided(kit)).fit(kit.tensor(integers), Y)
        found = explainer.explain(kit.tensor(integers[:2]), Y[:2])
        assert found.most_similar.dtype == np.int64
        assert_array_equal(found.most_similar[0], integers[found.ordered_indices[0, :5]])

    @pytest.mark.parametrize("part", ["array", "tensor", "numbers"])
    def test_list_of_arrays(self, kit, expected, part):
        parts = {
            "array": list,
            "tensor": lambda x: [kit.tensor(row) for row in x],
            "numbers": lambda x: [row.tolist() for row in x],
        }[part]
        explainer = kit.explainer(kit.mlp(), kit.loss).fit(parts(X), Y)
        found = explainer.explain(parts(QUERIES), LABELS)
        assert_explains(found, by_id(expected))
        assert isinstance(found.most_similar, list)
        assert isinstance(found.least_similar[0], list)
        assert_allclose(np.array(found.most_similar), expected.most_similar)
        assert_allclose(np.array(found.least_similar), expected.least_similar)
        single = explainer.explain(parts(QUERIES)[0], LABELS[0])
        assert_explains(single, by_id(expected)[:1])

    @pytest.mark.parametrize("kind", ["dict", "str", "ragged"])
    def test_list_of_objects(self, kit, kind):
        objects = {
            "dict": [dict(zip("abcd", row.tolist(), strict=True)) for row in X],
            "str": ["".join(chr(65 + int(abs(v) * 9)) for v in row) for row in X],
            "ragged": [np.concatenate([row, np.zeros(i % 3, np.float32)]) for i, row in enumerate(X)],
        }[kind]
        model, seen = kit.recorder()
        explainer = kit.explainer(model, kit.loss).fit(objects, Y)
        found = explainer.explain(objects[4:6], Y[4:6])
        assert seen
        if kind != "ragged":  # arrays arrive as a tensor of one
            assert all(isinstance(x, list | tuple) and len(x) == 1 for x in seen)
            assert {str(x[0]) for x in seen} == {str(item) for item in objects}
        truth = kit.gradients(model, kit.loss, objects, Y)
        assert_explains(found, kernel("grad_dot", truth[4:6], truth))
        assert isinstance(found.most_similar, list)
        assert found.most_similar[0][0] is objects[found.ordered_indices[0, 0]]
        assert found.least_similar[1][0] is objects[found.ordered_indices[1, -1]]
        single = explainer.explain(objects[5], Y[5])
        assert_explains(single, by_id(found)[1:])
        predicted = explainer.explain(objects[:3])
        assert predicted.ordered_indices.shape == (3, 12)

    @pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "tuple"])
    def test_several_inputs(self, kit, as_dict):
        def pack(x):
            return {"a": x, "b": x[..., :2]} if as_dict else (x, x[..., :2])

        loss, model = kit.loss, kit.two_inputs(as_dict)
        explainer = kit.explainer(model, loss, "grad_cos", precompute_grads=True).fit(pack(X), Y)
        found = explainer.explain(pack(QUERIES), LABELS)

        # A linear layer's gradient is the outer product of (softmax − one-hot) and its input.
        def gradients(x, y):
            a, b = x, x[:, :2]
            inputs = np.hstack([a, b]).astype(np.float64)
            weight, bias = _dense(kit, model)
            logits = inputs @ weight + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            delta = p / p.sum(1, keepdims=True) - np.eye(3)[y]
            outer = np.einsum("ni,no->nio", inputs, delta).reshape(len(x), -1)
            return np.hstack([outer, delta])

        assert_explains(found, kernel("grad_cos", gradients(QUERIES, LABELS), gradients(X, Y)))
        part = found.most_similar["a"] if as_dict else found.most_similar[0]
        assert_array_equal(part[0], X[found.ordered_indices[0, :5]])
        single = explainer.explain(pack(QUERIES[1]), LABELS[1])
        assert_explains(single, by_id(found)[1:2])

    def test_arguments_are_not_changed(self, torch_kit):
        x, y, q = X.copy(), Y.copy(), QUERIES.copy()
        for array in (x, y, q):
            array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(x, y).explain(q)


def _dense(kit, model):
    arrays = {name.replace("/", "."): value for name, value in kit.state(model).items()}
    by_rank = {value.ndim: value.astype(np.float64) for value in arrays.values()}
    return (by_rank[2].T if kit.name == "pytorch" else by_rank[2]), by_rank[1]


def _divided(kit):
    """Return a model of int64 inputs and its loss."""
    if kit.name == "pytorch":
        import torch

        class Scale(torch.nn.Module):
            def forward(self, x):
                return (x.double() / 2**31).float()

        return torch.nn.Sequential(Scale(), kit.mlp()), kit.loss
    import keras

    inputs = keras.Input((4,), dtype="int64")
    return keras.Model(inputs, kit.mlp()(keras.ops.cast(inputs, "float32") / 2.0**31)), kit.loss


class TestModelIsLeftAlone:
    def test_batchnorm_statistics_weights_and_random_state(self, kit):
        model = kit.with_batchnorm()
        before = kit.state(model)
        random = _random_state(kit)
        explainer = kit.explainer(model, kit.loss, precompute_grads=True).fit(X, Y)
        explainer.explain(QUERIES)
        for name, value in kit.state(model).items():
            assert_array_equal(value, before[name], err_msg=name)
        assert_array_equal(_random_state(kit), random)

    def test_predictions_and_gradients_are_those_of_inference(self, kit):
        model = kit.with_batchnorm()
        truth = [
            kit.gradients(model, kit.loss, QUERIES, kit.predict(model, QUERIES).argmax(1)),
            kit.gradients(model, kit.loss, X, Y),
        ]
        explainer = kit.explainer(model, kit.loss).fit(X, Y)
        found = explainer.explain(QUERIES)
        assert_explains(found, kernel("grad_dot", *truth))
        assert_array_equal(explainer.explain(QUERIES).scores, found.scores)

    def test_unused_head_warns_by_name_and_counts_as_zeros(self, kit):
        model, name = kit.with_unused_head()
        explainer = kit.explainer(model, kit.loss, precompute_grads=True)
        with pytest.warns(UserWarning, match=name):
            explainer.fit(X, Y)
        used = 4 * 3 + 3
        assert explainer.grad_X_train.shape == (12, used + 4 * 2 + 2)
        zeros = (explainer.grad_X_train == 0).all(0)
        assert zeros.sum() == 10
        truth = kit.gradients(model, kit.loss, X, Y)
        assert_allclose(explainer.grad_X_train, truth, atol=1e-6)
        assert_explains(explainer.explain(X[:2], Y[:2]), kernel("grad_dot", truth[:2], truth))

    def test_frozen_parameters_are_counted_and_left_out(self, kit):
        model = kit.mlp()
        frozen = kit.freeze(model)
        with pytest.warns(UserWarning, match=rf"^{frozen} parameters .*frozen"):
            explainer = kit.explainer(model, kit.loss, precompute_grads=True)
        assert explainer.fit(X, Y).grad_X_train.shape == (12, 6 * 3 + 3)
        truth = kit.gradients(model, kit.loss, X, Y)
        assert_explains(explainer.explain(X[:2], Y[:2]), kernel("grad_dot", truth[:2], truth))

    def test_batchnorm_statistics_do_not_count_as_frozen(self, kit):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kit.explainer(kit.with_batchnorm(), kit.loss)

    def test_torch_modes_and_grad(self, torch_kit):
        import torch

        model = torch_kit.with_batchnorm().train()
        model[2].eval()  # a mixture
        modes = [module.training for module in model.modules()]
        kept = torch.full_like(model[0].weight, 7.0)
        model[0].weight.grad = kept
        torch_kit.explainer(model, torch_kit.loss, precompute_grads=True).fit(X, Y).explain(QUERIES)
        assert [module.training for module in model.modules()] == modes
        assert model[0].weight.grad is kept
        assert (kept == 7).all()
        assert model[3].weight.grad is None
        assert not any(module._forward_hooks for module in model.modules())

    def test_torch_random_state_of_a_model_that_always_draws(self, torch_kit):
        import torch
        from torch.nn import functional

        class Noisy(torch.nn.Sequential):
            def forward(self, x):
                return super().forward(functional.dropout(x, 0.01, training=True))

        model = Noisy(*torch_kit.mlp())
        before = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no two passes agree
            torch_kit.explainer(model, torch_kit.loss, precompute_grads=True).fit(X, Y).explain(QUERIES)
        assert torch.equal(torch.get_rng_state(), before)

    def test_modes_come_back_after_an_error(self, torch_kit):
        model = torch_kit.with_batchnorm().train()

        def broken(output, y):
            raise RuntimeError("no loss today")

        with pytest.raises(RuntimeError, match="no loss today"):
            torch_kit.explainer(model, broken, precompute_grads=True).fit(X, Y)
        assert all(module.training for module in model.modules())

    def test_selected_parameters(self, kit):
        model = kit.mlp()
        explainer = kit.explainer(model, kit.loss, precompute_grads=True, parameters="last_layer").fit(X, Y)
        truth = kit.gradients(model, kit.loss, X, Y)[:, -(6 * 3 + 3) :]
        assert_allclose(explainer.grad_X_train, truth, atol=1e-6)


def _random_state(kit):
    if kit.name == "pytorch":
        import torch

        return torch.get_rng_state().numpy().copy()
    import tensorflow as tf

    return tf.random.get_global_generator().state.numpy().copy()


class TestDevice:
    @pytest.mark.parametrize("device", ["cpu", "object"])
    def test_scores_do_not_depend_on_how_the_device_is_named(self, kit, device):
        model = kit.mlp()
        expected = kit.explainer(model, kit.loss).fit(X, Y).explain(QUERIES, LABELS)
        if kit.name == "pytorch":
            import torch

            device = torch.device("cpu") if device == "object" else "cpu"
        else:
            device = "/device:CPU:0" if device == "object" else "CPU:0"
        found = kit.explainer(model, kit.loss, device=device).fit(X, Y).explain(QUERIES, LABELS)
        assert_array_equal(found.scores, expected.scores)

    def test_device_belongs_to_the_object(self, kit):
        one = kit.explainer(kit.mlp(), kit.loss, device="CPU:0" if kit.name == "tensorflow" else "cpu")
        two = kit.explainer(kit.mlp(), kit.loss)
        assert one.device is not None
        assert two.device is None


class TestResetPredictor:
    def test_kept_gradients_are_computed_anew(self, kit):
        one, two = kit.mlp(seed=0), kit.mlp(seed=5)
        expected = kit.explainer(two, kit.loss).fit(X, Y).explain(QUERIES, LABELS)
        explainer = kit.explainer(one, kit.loss, precompute_grads=True).fit(X, Y)
        old = explainer.explain(QUERIES, LABELS)
        explainer.reset_predictor(two)
        assert explainer.predictor is two
        assert explainer.grad_X_train is None
        found = explainer.explain(QUERIES, LABELS)
        assert not np.allclose(old.scores, found.scores)
        assert_array_equal(found.scores, expected.scores)
        assert explainer.grad_X_train is not None

    def test_index_is_built_anew(self, kit):
        one, two = kit.mlp(seed=0), kit.mlp(seed=5)
        expected = kit.explainer(two, kit.loss, "grad_cos").fit(X, Y).explain(QUERIES, LABELS, k=3)
        explainer = kit.explainer(one, kit.loss, "grad_cos", index="Flat").fit(X, Y)
        explainer.reset_predictor(two)
        found = explainer.explain(QUERIES, LABELS, k=3)
        assert_array_equal(found.ordered_indices, expected.ordered_indices)
        assert_allclose(found.scores, expected.scores, rtol=1e-5)

    def test_before_fit(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss)
        explainer.reset_predictor(kit.mlp(seed=5))
        assert explainer.fit(X, Y).explain(QUERIES).scores.shape == (3, 12)

    def test_a_second_fit_replaces_the_first(self, torch_kit):
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, precompute_grads=True).fit(X, Y)
        found = explainer.fit(X[:6], Y[:6]).explain(QUERIES, LABELS)
        assert explainer.grad_X_train.shape[0] == 6
        assert_array_equal(
            found.scores,
            torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X[:6], Y[:6]).explain(QUERIES, LABELS).scores,
        )


class TestIndex:
    @pytest.fixture
    def data(self, kit, digits):
        x, y, x_test, y_test = digits
        return kit.images(x), y, kit.images(x_test[:25]), y_test[:25]

    @pytest.mark.parametrize("sim_fn", KERNELS)
    def test_recall_is_one_with_rerank(self, kit, data, sim_fn):
        x, y, x_test, y_test = data
        model = kit.cnn()
        exact = kit.explainer(model, kit.loss, sim_fn, precompute_grads=True).fit(x, y).explain(x_test, y_test)
        found = kit.explainer(model, kit.loss, sim_fn, index="Flat").fit(x, y).explain(x_test, y_test, rerank=100)
        assert found.scores.shape == found.opponent_scores.shape == (25, 10)
        assert found.ordered_indices.dtype == found.opponent_indices.dtype == np.int64
        assert found.exact.all()
        assert found.opponent_exact.all()
        assert _recall(found.ordered_indices, exact.ordered_indices[:, :10]) == 1.0
        assert _recall(found.opponent_indices, exact.ordered_indices[:, -10:]) == 1.0
        scale = np.abs(exact.scores).max(1, keepdims=True)
        assert (np.abs(found.scores - exact.scores[:, :10]) <= 1e-5 * scale).all()
        assert (np.abs(found.opponent_scores - exact.scores[:, :-11:-1]) <= 1e-5 * scale).all()
        assert (np.diff(found.scores) <= 0).all()
        assert (np.diff(found.opponent_scores) >= 0).all()

    def test_samples_of_both_sides(self, torch_kit):
        found = (
            torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, index="Flat").fit(X, Y).explain(QUERIES, LABELS, k=7)
        )
        assert_array_equal(found.most_similar, X[found.ordered_indices[:, :5]])
        assert_array_equal(found.least_similar, X[found.opponent_indices[:, :5]])

    def test_default_k_is_ten_or_all(self, torch_kit):
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, index="Flat").fit(X, Y)
        assert explainer.explain(QUERIES, LABELS).scores.shape == (3, 10)
        assert explainer.fit(X[:4], Y[:4]).explain(QUERIES, LABELS).scores.shape == (3, 4)

    def test_without_rerank_scores_are_estimates(self, torch_kit):
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, "grad_cos", index="Flat").fit(X, Y)
        found = explainer.explain(QUERIES, LABELS, k=4, rerank=0)
        assert found.exact.shape == found.opponent_exact.shape == (3, 4)
        assert not found.exact.any()
        assert not found.opponent_exact.any()
        every = by_id(
            torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, "grad_cos").fit(X, Y).explain(QUERIES, LABELS)
        )
        assert_allclose(found.scores, np.take_along_axis(every, found.ordered_indices, 1), atol=0.2)

    @pytest.mark.parametrize("factory", ["auto", "SQ8", "IVF4,Flat", "HNSW8"])
    def test_factories(self, torch_kit, factory, digits):
        x, y, x_test, y_test = digits
        x, x_test = x[:200].reshape(200, -1), x_test[:5].reshape(5, -1)
        model = torch_kit.mlp(inputs=64, outputs=10)
        exact = by_id(
            torch_kit.explainer(model, torch_kit.loss, "grad_cos").fit(x, y[:200]).explain(x_test, y_test[:5])
        )
        explainer = torch_kit.explainer(model, torch_kit.loss, "grad_cos", index=factory).fit(x, y[:200])
        found = explainer.explain(x_test, y_test[:5], k=5)
        assert found.exact.all()
        assert_allclose(found.scores, np.take_along_axis(exact, found.ordered_indices, 1), rtol=1e-4, atol=1e-6)

    def test_answers_do_not_depend_on_the_index(self, torch_kit):
        plain = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss).fit(X, Y).explain(QUERIES, LABELS, k=3)
        both = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, index="Flat", precompute_grads=True).fit(X, Y)
        assert both.grad_X_train.shape[0] == 12
        assert_array_equal(both.explain(QUERIES, LABELS, k=3).ordered_indices, plain.ordered_indices)

    def test_temporary_index_goes_with_its_explainer(self, torch_kit):
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, index="Flat").fit(X, Y)
        first = Path(explainer.index.store.path)
        assert first.exists()
        explainer.fit(X, Y)
        second = Path(explainer.index.store.path)
        gc.collect()
        assert not first.exists()
        assert second.exists()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del explainer
            gc.collect()
        assert not second.exists()
        assert not second.parent.exists()

    def test_index_path_holds_the_index(self, torch_kit, tmp_path):
        import gradindex

        out = tmp_path / "index"
        explainer = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, index="Flat", index_path=out).fit(X, Y)
        assert len(gradindex.load(out)) == 12
        explainer.fit(X[:6], Y[:6])  # its own index it may replace
        assert len(gradindex.load(out)) == 6
        del explainer
        gc.collect()
        assert out.exists()

    def test_list_of_objects(self, kit):
        objects = ["".join(chr(65 + int(abs(v) * 9)) for v in row) for row in X]
        model, _ = kit.recorder()
        plain = kit.explainer(model, kit.loss).fit(objects, Y).explain(objects[:2], Y[:2], k=4)
        found = kit.explainer(model, kit.loss, index="Flat").fit(objects, Y).explain(objects[:2], Y[:2], k=4)
        assert_array_equal(found.ordered_indices, plain.ordered_indices)
        assert found.most_similar == plain.most_similar
        assert found.least_similar == plain.least_similar


def _recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)])


class TestZeroGradients:
    @pytest.mark.parametrize("sim_fn", KERNELS)
    @pytest.mark.parametrize("index", [None, "Flat"])
    def test_zero_training_gradient_scores_zero(self, kit, sim_fn, index):
        labels = np.full((12, 1), 9, np.float32)
        labels[3] = -9
        explainer = kit.explainer(kit.mlp(outputs=1), flat_loss(kit), sim_fn, task="regression", index=index)
        found = explainer.fit(X, labels).explain(QUERIES, labels[:3], k=12)
        assert np.isfinite(found.scores).all()
        scores = by_id(found)
        assert_array_equal(scores[:, 3], np.zeros(3))
        assert (np.delete(scores, 3, axis=1) != 0).all()

    @pytest.mark.parametrize("sim_fn", KERNELS)
    def test_zero_query_is_reported(self, kit, sim_fn):
        model, loss = kit.mlp(outputs=1), flat_loss(kit)
        explainer = kit.explainer(model, loss, sim_fn, task="regression").fit(X, np.full((12, 1), 9, np.float32))
        with pytest.warns(UserWarning, match=r"gradient of queries \[1\] is zero"):
            found = explainer.explain(QUERIES[:2], np.array([[9], [-9]], np.float32))
        assert (found.scores[0] != 0).any()
        assert_array_equal(found.scores[1], np.zeros(12))
        assert_array_equal(found.ordered_indices[1], np.arange(12))


def test_the_index_is_as_wide_as_few_samples_allow(torch_kit):
    from gradindex.sketch import CountSketch, Identity, widest

    assert widest(4096, 10**6) == Identity()
    assert widest(4097, 20_000) == CountSketch(4096)
    assert widest(4097, 20_001) == CountSketch(1024)
    options = {"index": "Flat", "sketch": CountSketch(8)}
    narrow = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, **options).fit(X, Y)
    assert narrow.index.store.header.dim == 8
    whole = torch_kit.explainer(torch_kit.mlp(), torch_kit.loss, index="Flat").fit(X, Y)
    assert whole.index.store.header.sketch["kind"] == "identity"
