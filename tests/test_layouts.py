"""Columns in the layouts of other packages, and of any depth: to results, and to JSON and back."""

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

import gradindex
from gradindex.data.columns import as_columns, common_schema, read_stream
from gradindex.data.frames import as_table, samples
from gradindex.data.layouts import plain_type
from gradindex.data.table import Columns
from gradindex.store import Store

VIEWS = {
    "texts": (pa.string_view(), ["a", None, "b"], pa.large_string()),
    "bytes": (pa.binary_view(), [b"a", None, b"\xff"], pa.large_binary()),
    "list": (pa.list_(pa.string_view()), [["a"], None, []], pa.list_(pa.large_string())),
    "large list": (pa.large_list(pa.binary_view()), [[b"a"], None, []], pa.large_list(pa.large_binary())),
    "array": (pa.list_(pa.string_view(), 1), [["a"], None, ["b"]], pa.list_(pa.large_string(), 1)),
    "struct": (
        pa.struct({"s": pa.string_view()}),
        [{"s": "a"}, None, {"s": None}],
        pa.struct({"s": pa.large_string()}),
    ),
    "map": (
        pa.map_(pa.string(), pa.string_view()),
        [[("a", "b")], None, []],
        pa.map_(pa.string(), pa.large_string()),
    ),
    "list view": (pa.list_view(pa.string_view()), [["a"], None, []], pa.list_(pa.large_string())),
    "large list view": (pa.large_list_view(pa.int8()), [[1], None, []], pa.large_list(pa.int8())),
    "decimal32": (pa.decimal32(5, 1), [Decimal("1.5"), None, Decimal(2)], pa.decimal128(5, 1)),
    "decimal64": (pa.decimal64(12, 1), [Decimal("1.5"), None, Decimal(2)], pa.decimal128(12, 1)),
}
NESTED = {
    "bytes in lists": pa.array([[b"\x00\xff"], None, [None]]),
    "bytes in structs": pa.array([{"a": b"\x00\xff"}, None, {"a": None}]),
    "kinds of bytes": pa.array([b"\xff", None, b"\xff"]).dictionary_encode(),
    "times in lists": pa.array([[dt.time(1, 2, 3, 4)], None, [None]]),
    "times": pa.array([1, None, 86399_999_999_999], pa.time64("ns")),
    "whole seconds": pa.array([[3661], None, []], pa.list_(pa.time32("s"))),
    "maps": pa.array([[("k", b"\xff"), ("l", None)], None, []], pa.map_(pa.string(), pa.binary())),
    "kinds in lists": pa.array([["a"], None, ["b"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "durations": pa.array([[dt.timedelta(seconds=3)], None, []]),
    "days": pa.array([{"d": dt.date(2024, 1, 1)}, None, {"d": None}]),
    "infinities": pa.array([float("inf"), None, float("-inf")]),
    "half infinities": pa.array([np.float16("inf"), None, np.float16(0.5)], pa.float16()),
    "infinities in lists": pa.array([[float("inf")], None, [0.25]]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_and_short_decimals_become_what_everything_reads(tmp_path, name):
    kind, given, want = VIEWS[name]
    array = pa.array(given, kind)
    found = as_columns(pa.table({"c": array}), 3)["c"]
    assert found.type == want and found.to_pylist() == given
    found.validate(full=True)
    store = Store.from_arrays(np.eye(3), np.arange(3), np.ones(3), tmp_path / "s", columns={"c": array}, shard_rows=2)
    taken = store.columns.take(np.array([[2, -1], [0, 1]]), ["c"])
    assert taken.table["c"].to_pylist() == [given[2], None, given[0], given[1]]
    if not pa.types.is_nested(want):
        index = gradindex.index_store(store)
        assert index.search(np.eye(3)[:1], 1, where={"c": given[2]})[1].tolist() == [[2]]


def test_a_store_that_has_views_gives_plain_types():
    kind = pa.list_(pa.string_view())
    assert common_schema([pa.schema([("c", kind)])]) == pa.schema([("c", plain_type(kind))])


@pytest.mark.parametrize("name", NESTED)
def test_values_of_any_depth_come_back_from_json(name):
    array = NESTED[name]
    columns = Columns(pa.table({"c": array}), (1, 3))
    saved = json.loads(json.dumps(columns.to_json(), allow_nan=False))
    back = Columns.from_json(saved, columns.types).table["c"].combine_chunks()
    assert back.type == array.type and back.to_pylist() == array.to_pylist()


class Frame:
    """As polars': a schema by names, columns of Python's objects, of which Arrow gets the addresses."""

    schema = {"a": "Int64", "c": "Object"}  # noqa: RUF012

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table({"a": [1, 2], "c": [b"12345678"] * 2}).__arrow_c_stream__(requested_schema)


class Series:
    """As polars' of objects."""

    dtype = "Object"

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.chunked_array([[b"12345678"] * 2]).__arrow_c_stream__(requested_schema)


def test_addresses_of_objects_are_no_values():
    for read in (read_stream, as_table, lambda frame: as_columns(frame, 2)):
        with pytest.raises(ValueError, match="Column 'c' holds Python's objects: give texts or numbers"):
            read(Frame())
    with pytest.raises(ValueError, match="Column 'c' cannot be stored: it holds Python's objects"):
        as_columns({"c": Series()}, 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"c": (i for i in range(2))}, "Column 'c' cannot be stored: a generator can be read only once: give a list"),
        ({"c": map(str, range(2))}, "a map can be read only once"),
        (pa.RecordBatchReader.from_batches(pa.schema([]), []), r"read only once: give the table of its \.read_all"),
        (pa.table([[1, 2], [3, 4]], ["c", "c"]), "There are several columns 'c': rename them"),
        ([1, 2], r"Expected columns by name, a mapping .* got a list"),
        (np.zeros(2), "Expected columns by name"),
        (type("Lazy", (), {"collect": None})(), r"got a Lazy\. Give its \.collect\(\)"),
    ],
)
def test_what_is_no_table_of_columns_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        as_columns(given, 2)


def test_columns_of_a_hugging_face_dataset():
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"c": ["a", "b", "c"]})
    assert as_columns(whole.select([2, 0]), 2)["c"].to_pylist() == ["c", "a"]


def test_none_within_a_sample_is_named():
    x = [[1.0, 2.0], [3.0, None], [5.0, 6.0]]
    for given in (pa.table({"x": x}), pa.table({"x": pa.array(x, pa.list_view(pa.float32()))})):
        with pytest.raises(ValueError, match=r"x holds None within entries \[1\]"):
            samples(given, "x")
    from gradindex.data.source import ColumnSource

    with pytest.raises(ValueError, match=r"X holds None within entries \[1\]: expected numbers"):
        ColumnSource(x, [0, 1, 2])
