"""What the pictures show, read back from the figures: samples, texts, frames and bars."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

import gradindex
from gradindex.explanation import Explanation
from gradindex.plots import plot_distributions, plot_similar
from tests.jobs import digits, trained

SAME, OTHER, PALE = "#0072b2", "#d55e00", "#c4c4c4"
N, M = 12, 2
RNG = np.random.default_rng(0)
X_TRAIN = RNG.random((N, 4, 4))
X_QUERY = RNG.random((M, 4, 4))
Y_TRAIN = np.arange(N) % 3  # 0, 1, 2, 0, …
P_TRAIN = np.where(np.arange(N) == 3, 2, Y_TRAIN)  # sample 3 is taken for a 2
Y_QUERY = np.array([0, 2])
P_QUERY = np.array([1, 2])
BY_SAMPLE = RNG.uniform(-1, 1, (M, N))


def ranking(scores=BY_SAMPLE, kernel="grad_cos", **data):
    """An explanation that ranks all samples by `scores` (m, n)."""
    order = np.argsort(-scores, axis=1)
    data = {"scores": np.take_along_axis(scores, order, 1), "ordered_indices": order, **data}
    return Explanation({"params": {"sim_fn_name": kernel}}, data)


def top(**changes):
    """An explanation as `Index.explain` gives it: 3 on each side, one estimated, one missing."""
    data = {
        "scores": np.array([[0.9, 0.8, 0.7], [0.6, 0.5, np.nan]]),
        "ordered_indices": np.array([[4, 0, 7], [2, 5, -1]]),
        "exact": np.array([[True, False, True], [True, True, False]]),
        "opponent_scores": np.array([[-0.9, -0.8, -0.7], [-0.6, -0.5, -0.4]]),
        "opponent_indices": np.array([[1, 3, 6], [8, 9, 10]]),
        "opponent_exact": np.ones((2, 3), bool),
        "labels": np.array([[1, 0, 1], [2, 2, 0]]),
        "predictions": np.array([[1, 0, 2], [2, 2, 0]]),
        "opponent_labels": np.array([[1, 0, 0], [2, 0, 1]]),
        "query_labels": np.array([0, 2]),
        "query_predictions": np.array([1, 2]),
    }
    return Explanation({"params": {"kernel": "grad_cos"}}, {**data, **changes})


def cells(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def drawn(axes):
    (image,) = axes.images
    return np.asarray(image.get_array())


def frame(axes):
    spine = axes.spines["left"]
    return to_hex(spine.get_edgecolor()), spine.get_linestyle()


def texts(figure):
    return [text.get_text() for text in figure.texts]


def legend(figure):
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def boxes(figure):
    """Extents of all texts that are drawn."""
    figure.get_figure(root=True).draw_without_rendering()
    found = [*figure.texts, *(t for one in figure.legends for t in one.get_texts())]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels(), *axes.get_xticklabels()]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text() and text.get_visible()]


# plot_similar


def test_a_full_ranking_shows_the_first_and_the_last_samples():
    result = ranking()
    figure = plot_similar(result, X_QUERY, X_TRAIN, Y_QUERY, Y_TRAIN, k=4)
    found = cells(figure)
    assert len(figure.axes) == M * (1 + 4 + 4)
    for row in range(M):
        np.testing.assert_array_equal(drawn(found[f"query {row}"]), X_QUERY[row])
        ascending = np.argsort(BY_SAMPLE[row])
        for side, ids in (("most similar", ascending[::-1]), ("least similar", ascending)):
            for column in range(4):
                axes, i = found[f"{side} {row} {column}"], ids[column]
                np.testing.assert_array_equal(drawn(axes), X_TRAIN[i])
                assert axes.get_title() == f"label {Y_TRAIN[i]}"
                assert float(axes.get_xlabel().replace("−", "-")) == pytest.approx(BY_SAMPLE[row, i], abs=5e-4)
                same = Y_TRAIN[i] == Y_QUERY[row]
                assert frame(axes) == ((SAME, "solid") if same else (OTHER, "dashed"))
    assert texts(figure) == ["Query", "Most similar (gradient cosine)", "Least similar (gradient cosine)"]
    assert legend(figure) == ["label of the query", "another label"]


def test_an_index_result_brings_labels_predictions_and_exactness():
    figure = plot_similar(top(), X_QUERY, X_TRAIN)
    found = cells(figure)
    assert found["query 0"].get_title() == "label 0, pred. 1"
    assert found["most similar 0 2"].get_title() == "label 1, pred. 2"
    assert found["least similar 0 1"].get_title() == "label 0"
    assert [found[f"most similar 0 {c}"].get_xlabel() for c in range(3)] == ["0.900", "≈0.800", "0.700"]
    assert found["least similar 1 2"].get_xlabel() == "−0.400"
    np.testing.assert_array_equal(drawn(found["least similar 1 2"]), X_TRAIN[10])
    assert [frame(found[f"most similar 0 {c}"])[0] for c in range(3)] == [OTHER, SAME, OTHER]
    assert legend(figure)[-1] == "≈ estimated score"


def test_a_missing_result_is_an_empty_cell():
    axes = cells(plot_similar(top(), X_QUERY, X_TRAIN))["most similar 1 2"]
    assert not axes.images
    assert [text.get_text() for text in axes.texts] == ["none"]
    assert (axes.get_title(), axes.get_xlabel()) == ("", "")


def test_given_labels_and_predictions_replace_those_of_the_result():
    outputs = np.eye(3)[P_TRAIN] + 0.1
    figure = plot_similar(
        top(), X_QUERY, X_TRAIN, np.eye(3)[[1, 1]], 2 - Y_TRAIN, query_predictions=[2, 0], train_predictions=outputs
    )
    found = cells(figure)
    assert found["query 0"].get_title() == "label 1, pred. 2"
    assert found["most similar 0 1"].get_title() == "label 2, pred. 0"
    assert found["least similar 0 1"].get_title() == "label 2, pred. 2"
    assert frame(found["most similar 0 0"])[0] == SAME


def test_class_names_stand_on_two_lines_when_long():
    names = ["ankle boot", "sneaker", "a bag of uncommon size"]
    found = cells(plot_similar(top(), X_QUERY, X_TRAIN, class_names=names))
    assert found["query 0"].get_title() == "ankle boot\npred. sneaker"
    assert found["least similar 0 1"].get_title() == "ankle boot"
    assert found["query 1"].get_title() == "a bag of uncommon…\npred. a bag of un…"


def test_the_prediction_stands_for_an_unknown_label():
    figure = plot_similar(top(query_labels=None), X_QUERY, X_TRAIN)
    found = cells(figure)
    assert found["query 0"].get_title() == "pred. 1"
    assert [frame(found[f"most similar 0 {c}"])[0] for c in range(3)] == [SAME, OTHER, SAME]


def test_without_any_labels_frames_are_neutral_and_need_no_legend():
    figure = plot_similar(ranking(), X_QUERY, X_TRAIN)
    assert {frame(axes)[0] for axes in figure.axes} == {"#444444"}
    assert not figure.legends


def test_pictures_in_the_result_do_without_the_training_set():
    order = np.argsort(-BY_SAMPLE, axis=1)
    result = ranking(most_similar=X_TRAIN[order[:, :5]], least_similar=X_TRAIN[order[:, :-6:-1]])
    figure = plot_similar(result, X_QUERY, k=7)
    assert len(figure.axes) == M * 11
    np.testing.assert_array_equal(drawn(cells(figure)["least similar 1 4"]), X_TRAIN[order[1, -5]])


def test_opponents_are_optional_and_k_is_cut_to_what_there_is():
    assert len(plot_similar(ranking(), X_QUERY, X_TRAIN, opponents=False).axes) == M * 6
    assert len(plot_similar(top(), X_QUERY, X_TRAIN, k=50, opponents=False).axes) == M * 4


@pytest.mark.parametrize("shape", [(4, 4, 1), (1, 4, 4)])
def test_one_channel_may_come_first_or_last(shape):
    result = ranking(BY_SAMPLE[:1])
    figure = plot_similar(result, X_QUERY[0].reshape(shape), X_TRAIN.reshape(N, *shape))
    np.testing.assert_array_equal(drawn(cells(figure)["query 0"]), X_QUERY[0])


def test_colours_may_come_first_or_last_and_share_one_range():
    colours = RNG.integers(0, 256, (N, 5, 6, 3), dtype=np.uint8)
    last = plot_similar(ranking(), colours[:M], colours)
    first = plot_similar(ranking(), colours[:M].transpose(0, 3, 1, 2), colours.transpose(0, 3, 1, 2))
    for figure in (last, first):
        np.testing.assert_allclose(drawn(cells(figure)["query 1"]), colours[1] / 255)


@pytest.mark.parametrize(
    ("low", "high", "limits"), [(0, 255, (0, 255)), (0, 1, (0, 1)), (0, 16, (0, 16)), (-2, 3, (-2, 3))]
)
def test_equal_values_look_equal_in_all_pictures(low, high, limits):
    x = low + (high - low) * np.linspace(0, 1, N * 16).reshape(N, 4, 4)
    figure = plot_similar(ranking(), x[:M], x, k=N)
    assert {axes.images[0].get_clim() for axes in figure.axes} == {limits}


def test_a_dataset_of_pairs_gives_its_pictures():
    pairs = list(zip(X_TRAIN, Y_TRAIN, strict=True))
    np.testing.assert_array_equal(drawn(cells(plot_similar(top(), X_QUERY, pairs))["most similar 0 0"]), X_TRAIN[4])


def test_no_text_overlaps_another_or_leaves_the_figure():
    names = ["T-shirt/top", "Ankle boot", "Pullover"]
    for result in (top(), ranking()):
        figure = plot_similar(result, X_QUERY, X_TRAIN, Y_QUERY, Y_TRAIN, train_predictions=P_TRAIN, class_names=names)
        found = boxes(figure)
        for i, (text, box) in enumerate(found):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
            for other, second in found[i + 1 :]:
                assert not box.overlaps(second), (text, other)


def test_it_draws_into_a_given_figure_or_subfigure(tmp_path):
    figure = Figure(figsize=(6, 8))
    upper, lower = figure.subfigures(2)
    assert plot_similar(top(), X_QUERY, X_TRAIN, figure=upper) is upper
    plot_distributions(ranking(), Y_TRAIN, figure=lower)
    assert len(figure.axes) == M * 7 + M
    figure.savefig(tmp_path / "both.png")
    for _, box in boxes(upper):
        assert upper.bbox.y0 <= box.y0 and box.y1 <= upper.bbox.y1


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        plot_similar(ranking(), X_QUERY, X_TRAIN, k=0)


def test_training_pictures_are_needed_for_an_index_result():
    with pytest.raises(ValueError, match="pass the training pictures as X_train"):
        plot_similar(top(), X_QUERY)


def test_too_few_pictures_or_labels_are_refused():
    with pytest.raises(ValueError, match="X_train has 5 pictures but the result names sample 7"):
        plot_similar(top(), X_QUERY, X_TRAIN[:5])
    with pytest.raises(ValueError, match="y_train has 5 entries but the result names sample 7"):
        plot_similar(top(), X_QUERY, X_TRAIN, y_train=Y_TRAIN[:5])
    with pytest.raises(ValueError, match="X_query has 1 pictures but the result has 2 queries"):
        plot_similar(top(), X_QUERY[:1], X_TRAIN)
    with pytest.raises(ValueError, match="y_query has 1 entries but the result has 2 queries"):
        plot_similar(top(), X_QUERY, X_TRAIN, [1])


def test_labels_must_be_classes_or_one_hot():
    with pytest.raises(ValueError, match=r"y_train must be classes \(n,\) or one-hot rows \(n, c\), got shape"):
        plot_similar(top(), X_QUERY, X_TRAIN, y_train=np.full((N, 3), 0.3))


@pytest.mark.parametrize("shape", [(16,), (4, 4, 2), (1, 1, 4, 4)])
def test_what_is_not_a_picture_is_refused(shape):
    with pytest.raises(ValueError, match=r"Expected pictures of shape \(h, w\).*reshape them first"):
        plot_similar(ranking(), np.zeros((M, *shape)), X_TRAIN)


# plot_distributions


def means(scores, groups):
    return [scores[groups == one].mean() for one in range(3)]


def test_bars_are_the_mean_scores_per_class():
    figure = plot_distributions(ranking(), Y_TRAIN, P_TRAIN, y_query=Y_QUERY, query_predictions=P_QUERY)
    found = cells(figure)
    assert len(figure.axes) == 2 * M
    for row in range(M):
        for name, groups, own in (("true", Y_TRAIN, Y_QUERY), ("predicted", P_TRAIN, P_QUERY)):
            axes = found[f"{name} {row}"]
            widths = [bar.get_width() for bar in axes.patches]
            np.testing.assert_allclose(widths, means(BY_SAMPLE[row], groups))
            colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
            assert colours == [SAME if one == own[row] else PALE for one in range(3)]
            (text,) = axes.texts
            assert float(text.get_text().replace("−", "-")) == pytest.approx(widths[own[row]], abs=5e-4)
        assert [t.get_text() for t in found[f"true {row}"].get_yticklabels()] == ["0", "1", "2"]
    assert found["true 0"].get_title() == "Mean gradient cosine, by true class"
    assert found["predicted 0"].get_title() == "Mean gradient cosine, by predicted class"
    assert found["true 0"].get_ylabel() == "label 0\npred. 1"


def test_pictures_and_names_stand_at_the_left():
    names = ["shirt", "shoe", "bag"]
    figure = plot_distributions(
        ranking(), np.eye(3)[Y_TRAIN], X_query=X_QUERY, y_query=np.eye(3)[Y_QUERY], class_names=names
    )
    found = cells(figure)
    np.testing.assert_array_equal(drawn(found["query 1"]), X_QUERY[1])
    assert found["query 1"].get_title() == "bag"
    assert [t.get_text() for t in found["true 1"].get_yticklabels()] == names
    assert [t.get_fontweight() for t in found["true 1"].get_yticklabels()] == ["normal", "normal", "bold"]


def test_a_class_that_is_never_predicted_has_no_bar():
    predictions = np.where(Y_TRAIN == 1, 0, Y_TRAIN)
    axes = cells(plot_distributions(ranking(), Y_TRAIN, predictions, y_query=Y_QUERY))["predicted 0"]
    assert np.isnan(axes.patches[1].get_width())
    assert axes.patches[0].get_width() == pytest.approx(BY_SAMPLE[0, predictions == 0].mean())


def test_of_many_classes_the_highest_and_the_own_are_shown():
    scores = np.tile(np.linspace(1, 0.1, N), (M, 1))
    axes = cells(plot_distributions(ranking(scores), np.arange(N), y_query=[11, 0], max_classes=4))
    assert [t.get_text() for t in axes["true 0"].get_yticklabels()] == ["0", "1", "2", "11"]
    assert [t.get_text() for t in axes["true 1"].get_yticklabels()] == ["0", "1", "2", "3"]
    assert axes["true 0"].patches[3].get_width() == pytest.approx(0.1)


def test_cosines_share_one_axis_and_inner_products_do_not():
    scores = BY_SAMPLE * [[1.0], [0.1]]
    for kernel, same in (("grad_cos", True), ("grad_dot", False)):
        found = cells(plot_distributions(ranking(scores, kernel), Y_TRAIN, P_TRAIN))
        assert found["true 0"].get_xlim() == found["predicted 0"].get_xlim()
        assert (found["true 0"].get_xlim() == found["true 1"].get_xlim()) is same


def test_words_are_labels_too():
    words = np.array(["no", "yes"])[np.arange(N) % 2]
    axes = cells(plot_distributions(ranking(), words, y_query=["yes", "no"]))["true 0"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        [BY_SAMPLE[0, 0::2].mean(), BY_SAMPLE[0, 1::2].mean()]
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["no", "yes"]


def test_distributions_need_every_score():
    with pytest.raises(ValueError, match="only the top 3 of 12: explain with GradientSimilarity"):
        plot_distributions(top(), Y_TRAIN)
    with pytest.raises(ValueError, match="y_train has 10 labels but the result ranks other samples, 12 a query"):
        plot_distributions(ranking(), Y_TRAIN[:10])
    with pytest.raises(ValueError, match="y_train has 12 labels but train_predictions has 11"):
        plot_distributions(ranking(), Y_TRAIN, P_TRAIN[:11])
    with pytest.raises(ValueError, match="y_train is None"):
        plot_distributions(ranking(), None)


# Both, on what the package computes


def test_real_explanations_are_drawn(tmp_path):
    x, y = digits(60)
    explainer = gradindex.GradientSimilarity(trained(), nn.CrossEntropyLoss(), "grad_cos", backend="pytorch")
    result = explainer.fit(x, y).explain(x[:3], y[:3])
    figure = plot_similar(result, x[:3].reshape(-1, 8, 8), x.reshape(-1, 8, 8), y[:3], y)
    found = cells(figure)
    for row in range(3):  # a training sample is its own nearest neighbour
        np.testing.assert_array_equal(drawn(found[f"most similar {row} 0"]), x[row].reshape(8, 8))
        assert found[f"most similar {row} 0"].get_xlabel() == "1.000"
    figure.savefig(tmp_path / "similar.png")
    bars = cells(plot_distributions(result, y, y_query=y[:3]))
    by_sample = np.empty(60)
    by_sample[result.ordered_indices[2]] = result.scores[2]
    expected = [by_sample[y == one].mean() for one in range(10)]
    np.testing.assert_allclose([bar.get_width() for bar in bars["true 2"].patches], expected)
    assert (tmp_path / "similar.png").stat().st_size > 1000


def test_without_matplotlib_it_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: plot_similar(top(), X_QUERY, X_TRAIN), lambda: plot_distributions(ranking(), Y_TRAIN)):
        with pytest.raises(ImportError, match=r"pip install 'gradindex\[plots\]'"):
            draw()


def test_importing_it_loads_no_matplotlib_and_drawing_no_pyplot():
    code = (
        "import sys, numpy as np, gradindex.plots as p; from gradindex import Explanation;"
        "assert 'matplotlib' not in sys.modules;"
        "r = Explanation({}, {'scores': np.ones((1, 2)), 'ordered_indices': np.array([[0, 1]])});"
        "p.plot_similar(r, np.ones((1, 3, 3)), np.ones((2, 3, 3))); p.plot_distributions(r, [0, 1]);"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
