"""What the pictures of influence show, read back from the figures."""

import numpy as np
import pytest

from gradindex.plots.influence import plot_influence, plot_self_influence

X = np.array([[0.0, 0], [1, 2], [3, 1], [2, 2]])
SCORES = np.array([0.1, -0.3, 0.2, 0.0])


def points(figure):
    drawn = figure.axes[0].collections[0]
    return {
        tuple(place): value for place, value in zip(drawn.get_offsets().tolist(), drawn.get_array(), strict=True)
    }, drawn


def test_samples_are_coloured_by_their_influence_about_zero():
    found, drawn = points(plot_influence(X, SCORES, [1.0, 1.0], title="k-NN"))
    assert found == {tuple(place): value for place, value in zip(X.tolist(), SCORES, strict=True)}
    assert drawn.norm.vmin == -drawn.norm.vmax
    assert drawn.cmap.name == "coolwarm"
    assert list(drawn.get_array()[-2:]) == [0.2, -0.3]  # the strongest on top


def test_the_test_sample_is_a_cross_and_self_influence_has_none():
    figure = plot_influence(X, SCORES, [1.0, 0.5], title="k-NN")
    (cross,) = figure.axes[0].lines
    assert (cross.get_marker(), *cross.get_xydata()[0]) == ("x", 1.0, 0.5)
    assert figure.axes[0].get_title() == "k-NN"
    figure = plot_influence(X, SCORES)
    assert not figure.axes[0].lines
    _, drawn = points(figure)
    assert (drawn.norm.vmin, drawn.norm.vmax) == pytest.approx(np.percentile(SCORES, [1, 99]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:, :1], SCORES), r"Expected x \(n, 2\) and influence \(n,\).*got \(4, 1\) and \(4,\)"),
        ((X, SCORES[:2]), r"got \(4, 2\) and \(2,\)"),
        ((X[:0], SCORES[:0]), r"n > 0, got \(0, 2\)"),
        ((X, SCORES, [1.0]), r"Expected z of shape \(2,\), got \(1,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_influence(*arguments)


VALUES = np.array([1e-3, 1e-2, 0.5, 2.0, 0.0])
LOSSES = np.array([0.1, 0.2, 1.0, 3.0, 0.05])
MARKED = np.array([False, False, False, True, False])


def test_self_influence_is_counted_and_set_against_the_loss():
    figure = plot_self_influence(VALUES, LOSSES, MARKED, title="digits", marked_title="changed")
    counts, scatter = figure.axes
    assert sum(bar.get_height() for bar in counts.patches) == 4
    assert [text.get_text() for text in counts.get_legend().get_texts()] == ["all others", "changed"]
    plain, marked = (drawn.get_offsets().tolist() for drawn in scatter.collections)
    assert plain == [[0.1, 1e-3], [0.2, 1e-2], [1.0, 0.5]]
    assert marked == [[3.0, 2.0]]
    assert (scatter.get_xscale(), scatter.get_yscale()) == ("log", "log")
    assert figure.get_suptitle() == "digits (1 zeros not drawn)"


def test_losses_may_be_missing_or_negative():
    (only,) = plot_self_influence(VALUES).axes
    assert only.get_legend() is None
    assert plot_self_influence(VALUES, LOSSES - 0.5).axes[1].get_xscale() == "linear"
    assert plot_self_influence(VALUES, LOSSES + 1).axes[1].get_xscale() == "linear"  # less than a decade


def test_self_influence_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one shape \(n,\), got \(5,\), \(4,\), \(5,\)"):
        plot_self_influence(VALUES, LOSSES[:4])
    with pytest.raises(ValueError, match="No self-influence is positive"):
        plot_self_influence([0.0, 0.0])
