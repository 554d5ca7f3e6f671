"""What samples look like: renderers of a user's own, and inputs as they are."""

import io

import numpy as np
import pytest
from torch import nn

import gradindex
from gradindex.explanation import Explanation
from gradindex.plots import plot_scores
from gradindex.plots.html import explanation_html
from gradindex.plots.rendering import Renderer, as_rendered, png, shade_range
from tests.jobs import digits, digits_job

X, Y = digits()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    job = digits_job(render=lambda i: X[i].reshape(8, 8), class_names=list("abcdefghij"))
    return gradindex.build(job, tmp_path_factory.mktemp("rendering") / "index")


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((5, 4), (5, 4)), ((5, 4, 1), (5, 4)), ((1, 5, 4), (5, 4)), ((3, 5, 4), (5, 4, 3)), ((5, 4, 3), (5, 4, 3))],
)
def test_pictures_in_every_order_of_axes(shape, seen):
    found = as_rendered(np.arange(np.prod(shape)).reshape(shape))
    assert (found.kind, found.value.shape) == ("image", seen)


def test_texts_tables_and_pillow():
    from PIL import Image

    assert as_rendered("a text").value == "a text"
    assert as_rendered({"age": np.float32(3.5), 2: None}).value == {"age": 3.5, "2": "None"}
    picture = as_rendered(Image.fromarray(np.full((3, 2, 3), 7, np.uint8)))
    np.testing.assert_array_equal(picture.value, np.full((3, 2, 3), 7.0))
    table = as_rendered(np.arange(70.0))
    assert (table.kind, len(table.value), table.value["…"]) == ("table", 65, "6 more")
    with pytest.raises(TypeError, match="Cannot show a object: a renderer returns a picture, a string or a dict"):
        as_rendered(object())
    with pytest.raises(TypeError, match="render must be callable, render\\(i\\), got int"):
        digits_job(render=3)


def test_without_a_renderer_inputs_are_shown_as_they_are():
    x = {"text": ["one", "two"], "length": np.array([3, 3])}
    job = gradindex.Job(digits_job().model, digits_job().loss_fn, (x, np.array([0, 1])))
    assert Renderer(job)(1).value == "two"
    assert Renderer(digits_job())(0).kind == "table"
    job = gradindex.Job(job.model, job.loss_fn, (X.reshape(-1, 8, 8), Y))
    np.testing.assert_array_equal(Renderer(job)(3).value, X[3].reshape(8, 8))


def test_a_query_takes_the_form_of_the_pictures():
    render = Renderer(digits_job(render=lambda i: X[i].reshape(8, 8)))
    np.testing.assert_array_equal(render.query(X[5:7], 1).value, X[6].reshape(8, 8))
    assert render.shades == (0.0, 1.0)


def test_png_keeps_the_values():
    from PIL import Image

    picture = np.array([[0.0, 0.5], [1.0, np.nan]])
    back = np.asarray(Image.open(io.BytesIO(png(picture, 0.0, 1.0))))
    assert back.tolist() == [[0, 128], [255, 0]]
    assert shade_range([np.array([[-2.0, 3.0]])]) == (-2.0, 3.0)
    assert shade_range([np.zeros((2, 2))]) == (0.0, 1.0)


def cells(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def test_a_result_draws_itself(index):
    for result in (index.explain(X[[3, 9]], k=3), index.explain(ids=[3, 9], k=3)):
        found = cells(result.plot(k=2))
        assert len(found) == 2 * (1 + 2 + 2)
        np.testing.assert_array_equal(found["query 1"].images[0].get_array(), X[9].reshape(8, 8))
        best = result.ordered_indices[0, 1]
        np.testing.assert_array_equal(found["most similar 0 1"].images[0].get_array(), X[best].reshape(8, 8))
        assert found["most similar 0 1"].get_title().startswith("abcdefghij"[Y[best]])


def test_texts_and_tables_are_written_into_the_cells(index):
    result = index.explain(ids=[3], k=2)
    job, _, _ = result.view
    for value, text in (("word " * 90, "…"), ({"age": 3.14159, "name": "$x$"}, "age: 3.142\nname: $x$")):
        object.__setattr__(job, "render", lambda i, value=value: value)
        found = cells(result.plot(k=1))
        (written,) = found["most similar 0 0"].texts
        assert text in written.get_text()
        found["query 0"].get_figure(root=True).draw_without_rendering()
        box, cell = written.get_window_extent(), found["most similar 0 0"].get_window_extent()
        assert box.x1 <= cell.x1 + 1 and box.y0 >= cell.y0 - 1
    object.__setattr__(job, "render", lambda i: X[i].reshape(8, 8))


def test_it_draws_into_axes_of_a_grid(index):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5))
    left, right = figure.subplots(1, 2)
    result = index.explain(ids=[3], k=2)
    drawn = result.plot(k=2, axes=left)
    assert drawn in figure.subfigs
    assert len(drawn.axes) == 5
    plot_scores(result, axes=right)
    counts = [sum(bar.get_height() for bar in bars) for bars in right.containers]
    assert counts == [2, 2]
    assert right.get_xlabel() == "gradient cosine"
    free = Figure().add_axes((0, 0, 1, 1))
    with pytest.raises(ValueError, match="axes must be part of a grid"):
        result.plot(axes=free)


def test_a_result_from_a_file_says_what_it_lacks(index):
    result = Explanation.from_json(index.explain(ids=[3], k=2).to_json())
    with pytest.raises(ValueError, match=r"use gradindex\.plots\.plot_similar with pictures"):
        result.plot()


def test_notebooks_show_tables_and_run_nothing(index):
    result = index.explain(ids=[3], k=2, rerank=0)
    assert "<td>240</td>" in index._repr_html_()
    page = result._repr_html_()
    assert f"<td>{result.ordered_indices[0, 0]}</td><td>d</td><td>≈{result.scores[0, 0]:.4g}</td>" in page
    names = ["<script>"] * 10
    object.__setattr__(result.view[0], "class_names", names)
    assert "<script>" not in explanation_html(result)
    assert "&lt;script&gt;" in explanation_html(result)
    object.__setattr__(result.view[0], "class_names", list("abcdefghij"))


def test_results_of_whitened_rows_say_what_their_scores_are(tmp_path):
    index = gradindex.build(digits_job(render=lambda i: X[i].reshape(8, 8)), tmp_path / "index")
    index.whiten()
    for kernel, title in (("white_dot", "whitened product"), ("grad_cos", "gradient cosine")):
        result = index.explain(ids=[3, 4], k=4, kernel=kernel)
        assert repr(result).startswith(f"Explanation(Index, {kernel}: ")
        head = "<th>{0}</th><th>label</th><th>" + title + "</th>"
        assert result._repr_html_().count(head.format("proponent")) == 2
        assert result._repr_html_().count(head.format("opponent")) == 2
        assert ("≈" in result._repr_html_()) == (kernel == "white_dot")
        titles = [text.get_text() for text in result.plot().texts]
        assert {f"Most similar ({title})", f"Least similar ({title})"} <= set(titles)
        assert plot_scores(result).axes[0].get_xlabel() == title


def test_a_sample_that_is_gone_says_so_and_spares_the_others(caplog):
    def render(i):
        if i in (0, 2):
            raise FileNotFoundError(2, "No such file or directory", f"/secret/{i}.png")
        return np.full((4, 4), i / 8)

    model, loss = nn.Linear(4, 2), nn.CrossEntropyLoss()
    renderer = Renderer(gradindex.Job(model, loss, (np.eye(8, 4, dtype="f4"), np.arange(8) % 2), render=render))
    gone = renderer(2)
    assert (gone.kind, gone.value, gone.failed) == ("text", "sample 2 cannot be shown (FileNotFoundError)", True)
    assert "/secret/2.png" in caplog.text
    assert renderer(3).value.shape == renderer.picture_shape == (4, 4)
    assert renderer.shades == (0.0, 1.0)

    class Files:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            if i == 1:
                raise OSError(5, "Input/output error")
            return np.ones(4, "f4"), 0

    renderer = Renderer(gradindex.Job(model, loss, Files()))
    assert renderer(1).value == "sample 1 cannot be shown (OSError)" and renderer(2).kind == "table"


def test_half_a_surrogate_pair_is_printable():
    assert as_rendered("a\ud800b").value == "a?b"
    assert as_rendered({"\udc00": "\ud800", "n": 1}).value == {"?": "?", "n": 1}
