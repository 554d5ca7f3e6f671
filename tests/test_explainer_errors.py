"""GradientSimilarity refuses bad input: in the promised order, with words that help, and without losing anything."""

import re
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gradindex import IndexExistsError
from tests.oracles import points

X, Y = points(12)
QUERIES, LABELS = points(3, seed=1)
OPTIONS = {
    "sim_fn": "'grad_dot' | 'grad_cos' | 'grad_asym_dot'",
    "task": "'classification' | 'regression'",
    "backend": "'tensorflow' | 'pytorch'",
}


def fitted(kit, **options):
    return kit.explainer(kit.mlp(), kit.loss, **options).fit(X, Y)


class TestConstruction:
    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("value", ["nonsense", None, "GRAD_DOT", 3])
    def test_unknown_word_lists_the_options(self, kit, name, value):
        from gradindex import GradientSimilarity

        options = {"backend": kit.name, name: value}
        words = re.escape(f"Unknown {name} {value!r}") + ".*" + re.escape(OPTIONS[name])
        with pytest.raises(ValueError, match=words):
            GradientSimilarity(kit.mlp(), kit.loss, **options)

    def test_missing_framework_says_what_to_type(self, kit, monkeypatch):
        model, loss = kit.mlp(), kit.loss
        package = {"pytorch": "torch", "tensorflow": "tensorflow"}[kit.name]
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=re.escape(f"pip install 'gradindex[{package}]'")):
            kit.explainer(model, loss)

    @pytest.mark.parametrize("device", [1.5, ["cpu"], object()])
    def test_device_of_a_bad_type(self, kit, device):
        with pytest.raises(TypeError, match=rf"`device` must be .*got {type(device).__name__}"):
            kit.explainer(kit.mlp(), kit.loss, device=device)

    def test_nothing_trainable(self, kit):
        model = kit.mlp()
        kit.freeze_all(model)
        with pytest.raises(ValueError, match="no trainable parameters"):
            kit.explainer(model, kit.loss)

    def test_model_of_the_other_framework(self, kit):
        from tests.oracles import kit as get

        other = get({"pytorch": "tensorflow", "tensorflow": "pytorch"}[kit.name])
        with pytest.raises(TypeError, match=r"Expected a (Keras 3 model|torch\.nn\.Module), got"):
            kit.explainer(other.mlp(), kit.loss)

    def test_unknown_parameter(self, kit):
        with pytest.raises(ValueError, match=r"Unknown parameters \['nope'\]\. The trainable ones are: "):
            kit.explainer(kit.mlp(), kit.loss, parameters=["nope"])

    def test_reset_with_an_untrainable_model_keeps_the_old_one(self, kit):
        explainer = fitted(kit, precompute_grads=True)
        before, frozen = explainer.explain(QUERIES, LABELS), kit.mlp(seed=5)
        kit.freeze_all(frozen)
        with pytest.raises(ValueError, match="no trainable parameters"):
            explainer.reset_predictor(frozen)
        assert explainer.predictor is not frozen
        assert_array_equal(explainer.explain(QUERIES, LABELS).scores, before.scores)


class TestOrder:
    """Everything is wrong at once; mending the first error brings up the second, and so on."""

    def make(self, kit, model, **options):
        from gradindex import GradientSimilarity

        return GradientSimilarity(model, kit.loss, **{"backend": kit.name, **options})

    @pytest.fixture
    def untrainable(self, kit):
        model = kit.mlp()
        kit.freeze_all(model)
        return model

    def test_sim_fn_then_task_then_backend_then_import(self, kit, untrainable, monkeypatch):
        from gradindex import GradientSimilarity

        loss, words = kit.loss, {"sim_fn": "a", "task": "b", "backend": "c"}
        for package in ("torch", "tensorflow"):
            monkeypatch.setitem(sys.modules, package, None)
        for name in ("sim_fn", "task", "backend"):
            with pytest.raises(ValueError, match=f"Unknown {name}"):
                GradientSimilarity(untrainable, loss, device=1.5, **words)
            del words[name]
        with pytest.raises(ImportError, match="pip install"):
            GradientSimilarity(untrainable, loss, device=1.5, backend=kit.name)

    def test_device_then_trainable(self, kit, untrainable):
        with pytest.raises(TypeError, match="`device`"):
            self.make(kit, untrainable, device=1.5)
        with pytest.raises(ValueError, match="no trainable parameters"):
            self.make(kit, untrainable)

    def test_frozen_then_fit_then_label_then_shape(self, kit):
        model = kit.mlp()
        kit.freeze(model)
        with pytest.warns(UserWarning, match="2 parameters of the model are frozen"):
            explainer = self.make(kit, model, task="regression")
        with pytest.raises(ValueError, match="call fit before explain"):
            explainer.explain(QUERIES[:, :2], None, k=99)
        explainer.fit(X, Y)
        with pytest.raises(ValueError, match="Regression task requires"):
            explainer.explain(QUERIES[:, :2], None, k=99)
        with pytest.raises(ValueError, match=r"shape \(2,\)"):
            explainer.explain(QUERIES[:, :2], LABELS, k=99)
        with pytest.raises(ValueError, match="k is 99"):
            explainer.explain(QUERIES, LABELS, k=99)


class TestFit:
    def test_empty(self, kit):
        explainer = kit.explainer(kit.mlp(), kit.loss)
        for x, y in ((X[:0], Y[:0]), ([], [])):
            with pytest.raises(ValueError, match="training set is empty"):
                explainer.fit(x, y)

    def test_different_lengths(self, kit):
        with pytest.raises(ValueError, match="X has 12 samples but Y has 3"):
            kit.explainer(kit.mlp(), kit.loss).fit(X, Y[:3])
        with pytest.raises(ValueError, match="X has 12 samples but Y has 1"):
            kit.explainer(kit.mlp(), kit.loss).fit(X, Y[:1])

    def test_parts_of_different_lengths(self, kit):
        with pytest.raises(ValueError, match=r"different numbers of samples: \[3, 12\]"):
            kit.explainer(kit.two_inputs(False), kit.loss).fit((X, X[:3, :2]), Y)

    def test_no_labels(self, kit):
        with pytest.raises(ValueError, match="no labels"):
            kit.explainer(kit.mlp(), kit.loss).fit(X, None)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("tensor", [False, True])
    @pytest.mark.parametrize("options", [{}, {"precompute_grads": True}, {"index": "Flat"}])
    def test_data_that_is_not_finite_names_the_ids(self, kit, value, tensor, options):
        bad = X.copy()
        bad[[2, 7], 1] = value
        with pytest.raises(ValueError, match=r"data of samples \[2, 7\] holds NaN or infinity"):
            kit.explainer(kit.mlp(), kit.loss, **options).fit(kit.tensor(bad) if tensor else bad, Y)

    def test_labels_that_are_not_finite_name_the_ids(self, kit):
        y = X[:, :1].copy()
        y[5] = np.nan
        with pytest.raises(ValueError, match=r"label of samples \[5\] holds NaN"):
            kit.explainer(kit.mlp(outputs=1), kit.named_loss("mse"), task="regression").fit(X, y)

    @pytest.mark.parametrize("options", [{"precompute_grads": True}, {"index": "Flat"}, {}])
    def test_a_loss_that_is_not_finite_names_the_ids(self, kit, options):
        y = X[:, :1].copy()
        y[9] = 1e30  # its square is more than float32 holds
        explainer = kit.explainer(kit.mlp(outputs=1), kit.named_loss("mse"), task="regression", **options)
        with pytest.raises(ValueError, match=r"loss of samples \[9\] holds NaN or infinity"):
            explainer.fit(X, y).explain(QUERIES, QUERIES[:, :1])

    def test_a_refused_fit_loses_nothing(self, kit):
        explainer = fitted(kit, precompute_grads=True)
        before = explainer.explain(QUERIES, LABELS)
        bad = X.copy()
        bad[0, 0] = np.nan
        for x, y in ((bad, Y), (X, Y[:3]), (X[:0], Y[:0]), (X, None)):
            with pytest.raises(ValueError, match=r"NaN|but Y has|empty|no labels"):
                explainer.fit(x, y)
        assert explainer.X_train is X
        assert explainer.grad_X_train.shape[0] == 12
        assert_array_equal(explainer.explain(QUERIES, LABELS).scores, before.scores)

    def test_an_index_of_something_else_is_not_overwritten(self, kit, tmp_path):
        import gradindex

        out = tmp_path / "index"
        fitted(kit, index="Flat", index_path=out)
        other = kit.explainer(kit.mlp(), kit.loss, index="Flat", index_path=out)
        with pytest.raises((IndexExistsError, gradindex.MismatchError), match=re.escape(str(out))):
            other.fit(X[:6], Y[:6])
        assert len(gradindex.load(out)) == 12


class TestExplain:
    def test_before_fit(self, kit):
        with pytest.raises(ValueError, match="call fit before explain"):
            kit.explainer(kit.mlp(), kit.loss).explain(QUERIES, LABELS)

    @pytest.mark.parametrize("options", [{}, {"index": "Flat"}])
    def test_regression_needs_labels(self, kit, options):
        explainer = kit.explainer(kit.mlp(outputs=1), kit.named_loss("mse"), task="regression", **options)
        explainer.fit(X, X[:, :1])
        sentence = "Regression task requires a target value. 'Y' must be provided."
        with pytest.raises(ValueError, match="^" + re.escape(sentence) + "$"):
            explainer.explain(QUERIES)

    @pytest.mark.parametrize("shape", [(3, 5), (5,), (3, 4, 1), (2, 3, 4), ()])
    def test_shape_of_x_names_both_shapes(self, kit, shape):
        got = shape if len(shape) < 2 else shape[1:]
        words = f"X has samples of shape {got} but the training data has shape (4,)"
        with pytest.raises(ValueError, match=re.escape(words)):
            fitted(kit).explain(np.zeros(shape, np.float32), LABELS[0])

    def test_shape_of_y_names_both_shapes(self, kit):
        with pytest.raises(ValueError, match=r"Y has samples of shape \(3,\) but the training data has shape \(\)"):
            fitted(kit).explain(QUERIES, np.eye(3)[LABELS])

    @pytest.mark.parametrize("y", [LABELS[:2], [0, 1, 2, 0], LABELS[:0]])
    def test_other_numbers_of_labels(self, kit, y):
        with pytest.raises(ValueError, match=f"X has 3 samples but Y has {len(y)}"):
            fitted(kit).explain(QUERIES, y)

    def test_parts_of_several_inputs(self, kit):
        pair = kit.explainer(kit.two_inputs(True), kit.loss).fit({"a": X, "b": X[:, :2]}, Y)
        with pytest.raises(ValueError, match=r"X is a dict of \['a'\] but the training data is a dict of \['a', 'b'\]"):
            pair.explain({"a": QUERIES}, LABELS)
        with pytest.raises(ValueError, match=r"X\['b'\] has samples of shape \(4,\) .*shape \(2,\)"):
            pair.explain({"a": QUERIES, "b": QUERIES}, LABELS)
        with pytest.raises(ValueError, match=r"different numbers of samples: \[1, 3\]"):
            pair.explain({"a": QUERIES, "b": QUERIES[:1, :2]}, LABELS)
        with pytest.raises(ValueError, match="X is a ndarray but the training data is a dict"):
            pair.explain(QUERIES, LABELS)

    @pytest.mark.parametrize("options", [{}, {"index": "Flat"}])
    def test_k(self, kit, options):
        explainer = fitted(kit, **options)
        for k in (0, -1, 2.5, "3"):
            with pytest.raises(ValueError, match=f"k must be a positive integer, got {k!r}"):
                explainer.explain(QUERIES, LABELS, k=k)
        with pytest.raises(ValueError, match="k is 13, but there are only 12 samples"):
            explainer.explain(QUERIES, LABELS, k=13)

    def test_negative_rerank(self, kit):
        with pytest.raises(ValueError, match="rerank must be 0 or more, got -1"):
            fitted(kit, index="Flat").explain(QUERIES, LABELS, rerank=-1)

    @pytest.mark.parametrize("options", [{}, {"index": "Flat"}])
    def test_queries_that_are_not_finite_are_named(self, kit, options):
        bad = QUERIES.copy()
        bad[1, 0] = np.nan
        explainer = fitted(kit, **options)
        with pytest.raises(ValueError, match=r"queries.* \[1\] holds NaN"):
            explainer.explain(bad, LABELS)
        with pytest.raises(ValueError, match=r"queries.* \[1\] holds NaN"):
            explainer.explain(bad)

    def test_a_single_output_with_three_labels_has_no_prediction(self, kit):
        explainer = kit.explainer(kit.mlp(outputs=1), kit.named_loss("mse")).fit(X, Y.astype(np.float32)[:, None])
        with pytest.raises(ValueError, match=r"one output .* 3 distinct values.*Pass Y"):
            explainer.explain(QUERIES)

    def test_errors_leave_the_explainer_usable(self, kit):
        explainer = fitted(kit, index="Flat")
        with pytest.raises(ValueError, match="shape"):
            explainer.explain(QUERIES[:, :2], LABELS)
        assert explainer.explain(QUERIES, LABELS, k=2).scores.shape == (3, 2)
