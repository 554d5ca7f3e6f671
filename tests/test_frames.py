"""Data frames of every kind, in as a job's samples and out as results: the same as plain arrays."""

import numpy as np
import pyarrow as pa
import pytest
from torch import nn

import gradindex
from gradindex.data.columns import as_columns
from gradindex.data.frames import as_table, samples
from gradindex.plots.rendering import Renderer
from tests.jobs import ROWS, digits, trained

pandas = pytest.importorskip("pandas")
X, Y = digits()
NAMES = [f"pixel{i}" for i in range(64)]
WRITER = [f"writer {i % 7}" for i in range(ROWS)]
TABLE = pa.table({**{name: X[:, i].astype(np.float64) for i, name in enumerate(NAMES)}, "digit": Y, "writer": WRITER})


class Frame:
    """A data frame that is known by Arrow's protocol alone."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


FRAMES = {
    "arrow": lambda: TABLE,
    "in pieces": lambda: pa.concat_tables([TABLE.slice(0, 100), TABLE.slice(100)]),
    "batch": lambda: TABLE.to_batches()[0],
    "reader": lambda: TABLE.to_reader(),
    "pandas": lambda: TABLE.to_pandas(),
    "pandas with an index": lambda: TABLE.to_pandas().set_index(pandas.Index(range(1000, 1000 + ROWS), name="number")),
    "pandas of Arrow's types": lambda: TABLE.to_pandas(types_mapper=pandas.ArrowDtype),
    "protocol": lambda: Frame(TABLE),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_is_its_arrays(kind):
    job = gradindex.Job.from_table(trained(), nn.CrossEntropyLoss(), FRAMES[kind](), x=NAMES, y="digit")
    batch = job.source.take(np.arange(ROWS))
    assert (batch.x.dtype, batch.y.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(batch.x, X)
    np.testing.assert_array_equal(batch.y, Y)
    assert job.columns.column_names == ["writer"] and job.columns["writer"].to_pylist() == WRITER


def test_an_index_over_one_answers_as_over_arrays(tmp_path):
    loss = nn.CrossEntropyLoss()
    job = gradindex.Job.from_table(trained(), loss, TABLE, x=NAMES, y="digit", columns=["writer", "pixel3"])
    found = gradindex.build(job, tmp_path / "frame").explain(ids=[3, 7], k=4, where={"writer": "writer 2"})
    plain = gradindex.Job(trained(), loss, (X, Y), columns={"writer": WRITER})
    want = gradindex.build(plain, tmp_path / "plain").explain(ids=[3, 7], k=4, where={"writer": "writer 2"})
    np.testing.assert_array_equal(found.ordered_indices, want.ordered_indices)
    np.testing.assert_array_equal(found.columns["pixel3"], X[:, 3][found.ordered_indices])


def test_polars_in_and_out(tmp_path):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(TABLE).with_columns(polars.col("writer").cast(polars.Categorical))
    job = gradindex.Job.from_table(trained(), nn.CrossEntropyLoss(), frame, x=NAMES, y="digit")
    np.testing.assert_array_equal(job.source.take(np.arange(ROWS)).x, X)
    result = gradindex.build(job, tmp_path / "index").explain(ids=[3], k=4)
    out = result.to_polars()
    assert out["id"].to_list()[:4] == result.ordered_indices[0].tolist()
    assert out["writer"].to_list()[:4] == [WRITER[i] for i in result.ordered_indices[0]]
    assert polars.DataFrame(result).equals(out)
    texts = samples(polars.DataFrame({"x": [[1.0, 2.0], [3.0, 4.0]], "y": ["b", "a"]}), "x", "y")
    assert texts.dataset[0].tolist() == [[1, 2], [3, 4]] and texts.dataset[1].tolist() == [1, 0]


def test_a_dataset_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "pixels": datasets.Sequence(datasets.Value("float32")),
            "digit": datasets.ClassLabel(names=list("0123456789")),
            "writer": datasets.Value("string"),
        }
    )
    given = datasets.Dataset.from_dict({"pixels": list(X), "digit": Y, "writer": WRITER}, features=features)
    job = gradindex.Job.from_table(trained(), nn.CrossEntropyLoss(), given, x="pixels", y="digit")
    batch = job.source.take(np.array([5, 3]))
    np.testing.assert_array_equal(batch.x, X[[5, 3]])
    assert job.class_names == list("0123456789") and job.columns.column_names == ["writer"]
    result = gradindex.build(job, tmp_path / "index").explain(ids=[3], k=4)
    assert result.columns["writer"].tolist()[0] == [WRITER[i] for i in result.ordered_indices[0]]


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (pa.array(["b", "a", "b"]), [1, 0, 1], ["a", "b"]),
        (pa.array(["b", "a", "b"], pa.large_string()), [1, 0, 1], ["a", "b"]),
        (pa.DictionaryArray.from_arrays([1, 0, 1], ["low", "high"]), [1, 0, 1], ["low", "high"]),
        (pa.array([2, 0, 1], pa.uint8()), [2, 0, 1], None),
        (pa.array([True, False, True]), [1, 0, 1], None),
        (pa.array([0.5, 1.5, 2.5]), [0.5, 1.5, 2.5], None),
    ],
)
def test_labels_are_numbers_or_become_classes(labels, numbers, names):
    found = samples(pa.table({"x": [1.0, 2.0, 3.0], "y": labels}), "x", "y")
    assert found.dataset[1].tolist() == numbers and found.class_names == names
    assert found.dataset[1].dtype == (np.float32 if 0.5 in numbers else np.int64)


def test_categories_in_pieces_are_the_same_ones():
    one, other = (
        pa.table({"x": [1.0, 2.0], "y": pa.array(two).dictionary_encode()}) for two in (["b", "a"], ["c", "b"])
    )
    found = samples(pa.concat_tables([one, other]), "x", "y")
    assert [found.class_names[i] for i in found.dataset[1]] == ["b", "a", "c", "b"]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (pa.array([[1.0, 2.0], [3.0, 4.0]]), [[1, 2], [3, 4]]),
        (pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4]), 2), [[1, 2], [3, 4]]),
        (pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        (pa.array([1, 2], pa.int32()), [1, 2]),
        (pa.array(["a text", "another"]), ["a text", "another"]),
    ],
)
def test_one_column_of_inputs(values, want):
    (found,) = samples(pa.table({"x": values}), "x").dataset
    assert (found if isinstance(found, list) else found.tolist()) == want
    assert isinstance(found, list) or found.dtype != np.float64


def test_lists_of_several_lengths():
    (found,) = samples(pa.table({"x": [[1.0], [2.0, 3.0]]}), "x").dataset
    assert [one.tolist() for one in found] == [[1], [2, 3]] and {one.dtype for one in found} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("columns", "x", "y", "error", "said"),
    [
        ({"a": [1.0]}, "b", None, ValueError, "There is no column 'b'; the table has 'a'"),
        ({"a": [1.0]}, [], None, ValueError, "x must name at least one column"),
        ({"a": [1.0], "b": [1]}, [], "b", ValueError, "x must name at least one column"),
        ({"a": [1.0], "b": [1]}, ["a", "a"], "b", ValueError, "Column 'a' is named twice"),
        ({"a": [1.0], "b": [1]}, ["a", "b"], "b", ValueError, "Column 'b' is named twice"),
        ({"a": [1.0, None]}, "a", None, ValueError, r"Column 'a' has no value in rows \[1\]"),
        ({"a": [1.0, 2.0], "b": ["x", None]}, "a", "b", ValueError, r"Column 'b' has no value in rows \[1\]"),
        ({"a": [1.0], "b": ["x"]}, ["a", "b"], None, TypeError, "Column 'b' holds string: several inputs side by side"),
        ({"a": [b"x"]}, "a", None, TypeError, "Column 'a' holds binary: inputs are numbers"),
        ({"a": [1.0], "b": [[1]]}, "a", "b", TypeError, "labels are numbers, texts or categories"),
    ],
)
def test_what_is_no_sample_is_refused(columns, x, y, error, said):
    with pytest.raises(error, match=said):
        samples(pa.table(columns), x, y)


def test_views_of_texts_are_columns_as_texts_are():
    """As polars has them."""
    texts = pa.array(["a", None, "b"]).cast(pa.string_view())
    kinds = pa.DictionaryArray.from_arrays(
        pa.array([1, None, 0], pa.uint32()), pa.array(["x", "y"]).cast(pa.string_view())
    )
    found = as_columns(pa.table({"texts": texts, "kinds": kinds}), 3)
    assert found["texts"].to_pylist() == ["a", None, "b"] and found["kinds"].to_pylist() == ["y", None, "x"]
    assert found["texts"].type == pa.large_string()
    assert found["kinds"].type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize("given", [[1, 2], {"a": [1]}, np.zeros(3), pa.chunked_array([[1]]), pandas.Series([1]), None])
def test_what_is_no_table_is_refused(given):
    with pytest.raises(TypeError, match="Expected a table"):
        as_table(given)


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ValueError, match="There are several columns 'a'"):
        samples(pa.table([[1.0], [2.0]], ["a", "a"]), "a")
    twice = pandas.DataFrame([[1.0, 2.0, 3.0]], columns=["a", "b", "b"])
    with pytest.raises(ValueError, match="There are several columns 'b': rename them"):
        samples(twice, "a")
    with pytest.raises(TypeError, match=r"A column holds values of several kinds.*column b"):
        samples(pandas.DataFrame({"a": [1.0, 2.0], "b": [1, "x"]}), "a")


def test_rows_of_numbers_are_shown_by_name():
    frame = pandas.DataFrame({"width": [1.5, 2.5], "count": [1, 2], "label": [0, 1]})
    job = gradindex.Job.from_table(nn.Linear(2, 2), nn.CrossEntropyLoss(), frame, x=["count", "width"], y="label")
    assert job.dataset[0].dtype == np.float32  # as models take them, though some numbers are whole
    assert Renderer(job)(1).value == {"count": 2.0, "width": 2.5}
    given = gradindex.Job.from_table(
        nn.Linear(2, 2), nn.CrossEntropyLoss(), frame, x=["count", "width"], y="label", render=lambda i: f"row {i}"
    )
    assert Renderer(given)(1).value == "row 1"
    wide = pandas.DataFrame(np.zeros((2, 65)), columns=[f"c{i}" for i in range(65)])
    assert samples(wide, list(wide.columns)).named is None


def test_results_go_out_to_all_of_them(tmp_path):
    job = gradindex.Job.from_table(trained(), nn.CrossEntropyLoss(), TABLE, x=NAMES, y="digit")
    index = gradindex.build(job, tmp_path / "index")
    for result in (index.explain(ids=[3], k=4), index.select(X[:5], Y[:5], budget=10)):
        table = result.to_arrow()
        assert pa.table(result).equals(table)
        pandas.testing.assert_frame_equal(result.to_pandas(), table.to_pandas())
    from gradindex.review import review

    found = review(index, top=5)
    assert found.to_pandas()["kind"].tolist() == [one.kind for one in found.findings]


def test_what_is_missing_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "polars", None)
    result = gradindex.Explanation({}, {"scores": np.array([[1.0]]), "ordered_indices": np.array([[5]])})
    with pytest.raises(ImportError, match="pip install polars"):
        result.to_polars()
