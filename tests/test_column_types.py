"""Every kind of column from the user's table to results, filters, exported files and compaction: type and values."""

import datetime as dt
import io
import json
import pickle
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import gradindex
from gradindex import Explanation
from gradindex.ann.selection import parse, select
from gradindex.data.columns import as_columns, common_schema, extended
from gradindex.data.table import Columns
from gradindex.store import Store
from tests.jobs import ROWS, digits, digits_job

pandas = pytest.importorskip("pandas")
DAYS = pandas.date_range("2024-03-25", periods=ROWS, freq="h", tz="Europe/Berlin")  # with a clock change


def sparse(make, every=7):
    return [None if i % every == 5 else make(i) for i in range(ROWS)]


GIVEN = {
    "whole": sparse(lambda i: 2**53 + i),
    "unsigned": np.arange(ROWS, dtype=np.uint64) + np.uint64(2**63),
    "python big": sparse(lambda i: 2**63 + i),
    "small": np.arange(ROWS).astype(np.int8),
    "big-endian": np.arange(ROWS, dtype=">i4"),
    "flag": sparse(lambda i: i % 2 == 0),
    "half": np.arange(ROWS).astype(np.float16),
    "float": [float("nan") if i == 3 else None if i == 4 else i / 3 for i in range(ROWS)],
    "text": sparse(lambda i: "" if i % 11 == 0 else f"é{i}"),
    "objects": np.array([float("nan") if i == 3 else f"t{i}" for i in range(ROWS)], object),
    "category": pandas.Series([None if i % 3 == 0 else "ab"[i % 2] for i in range(ROWS)], dtype="category"),
    "nullable": pandas.Series(sparse(lambda i: 2**60 + i), dtype="Int64"),
    "arrow text": pandas.Series(sparse(lambda i: f"x{i}"), dtype="string[pyarrow]"),
    "date": sparse(lambda i: dt.date(2024, 1, 1) + dt.timedelta(i)),
    "day": np.arange(ROWS).astype("M8[D]"),
    "hour": np.arange(ROWS).astype("M8[h]"),
    "zoned": pandas.Series(DAYS),
    "nanoseconds": [pandas.Timestamp(i) for i in range(ROWS)],
    "time": sparse(lambda i: dt.time(i % 24, 1, 2, i)),
    "lasting": pandas.Series(pandas.to_timedelta(range(ROWS), unit="h")),
    "money": np.array([Decimal(i) / 10 for i in range(ROWS)], object),
    "bytes": sparse(lambda i: bytes([i, 255 - i])),
    "list": sparse(lambda i: [dt.date(2024, 1, 1)] * (i % 3)),
    "struct": sparse(lambda i: {"a": i, "b": [Decimal(i)]}),
    "nothing": [None] * ROWS,
    "vector": [f"v{i}" for i in range(ROWS)],
}
NESTED = {"list", "struct"}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(digits_job(columns=GIVEN), tmp_path_factory.mktemp("types") / "i", shard_rows=50)


@pytest.fixture(scope="module")
def result(index):
    return index.explain(ids=[3, 100], k=6, rerank=0)


def values(name, ids):
    """Return the given values of some samples, as an Arrow array."""
    return as_columns({name: GIVEN[name]}, ROWS)[name].take(pa.array(ids))


def same(name, got, ids):
    got = got.combine_chunks() if isinstance(got, pa.ChunkedArray) else got
    want = values(name, ids)
    if pa.types.is_dictionary(want.type):
        assert pa.types.is_dictionary(got.type)
        got, want = got.cast(want.type.value_type), want.cast(want.type.value_type)
    if name == "hour":  # Parquet has no seconds
        want = want.cast(pa.timestamp("ms"))
    assert got.type == want.type
    assert got.is_null().equals(want.is_null())
    if pa.types.is_floating(got.type):
        np.testing.assert_array_equal(got.to_numpy(zero_copy_only=False), want.to_numpy(zero_copy_only=False))
    else:
        assert got.equals(want)


@pytest.mark.parametrize("name", sorted(set(GIVEN) - {"float"}))
def test_arrow_has_the_values_that_were_given(name):
    given = GIVEN[name]
    plain = given.tolist() if isinstance(given, np.ndarray) else list(given)
    nested = name in NESTED
    assert values(name, range(ROWS)).to_pylist() == [v if nested else None if pandas.isna(v) else v for v in plain]


@pytest.mark.parametrize("name", GIVEN)
def test_a_result_keeps_type_and_values(result, name):
    table = result.to_arrow()
    same(name, table[name], table["id"].to_numpy())
    for again in (Explanation.from_json(result.to_json()), Explanation({}, pickle.loads(pickle.dumps(result.data)))):
        other = again.to_arrow()[name]
        if name == "float":
            np.testing.assert_array_equal(other.to_numpy(), table[name].to_numpy())
        else:
            assert other.type == table[name].type and other.to_pylist() == table[name].to_pylist()


def test_an_order_of_categories_is_kept(tmp_path):
    given = pandas.Series(pandas.Categorical.from_codes(np.arange(ROWS) % 2 * 2, ["low", "mid", "high"], ordered=True))
    index = gradindex.build(digits_job(columns={"c": given}), tmp_path / "i", shard_rows=100)
    result = index.explain(ids=[0], k=5, rerank=0)
    frame = result.to_pandas()
    assert frame["c"].dtype.categories.tolist() == ["low", "mid", "high"] and frame["c"].dtype.ordered
    assert ((frame["c"] > "low") == (frame["id"] % 2 == 1)).all()
    assert not Explanation.from_json(result.to_json()).to_arrow()["c"].type.ordered  # JSON has no order


def test_results_as_arrays(result):
    ids = result.ordered_indices
    assert result.columns["unsigned"].dtype == np.uint64
    assert result.columns["small"].dtype == np.int8
    np.testing.assert_array_equal(result.columns["unsigned"], ids.astype(np.uint64) + np.uint64(2**63))
    assert result.columns["whole"].tolist() == [[GIVEN["whole"][i] for i in line] for line in ids]
    assert result.columns["flag"].tolist() == [[GIVEN["flag"][i] for i in line] for line in ids]
    assert result.columns["zoned"][0, 1] == DAYS[ids[0, 1]]
    assert result.columns["list"][1, 2] == GIVEN["list"][ids[1, 2]]
    assert result.columns["day"].dtype == "M8[D]"
    assert "columns" in repr(result) and list(result.columns) == list(result.opponent_columns)
    with pytest.raises(KeyError):
        result.columns["colour"]
    json.dumps(json.loads(result.to_json())["data"]["columns"], allow_nan=False)


def test_what_was_not_found_has_no_columns(index):
    found = index.explain(ids=[0], k=3, rerank=0, where={"small": [1]})
    assert found.ordered_indices.tolist() == [[1, -1, -1]]
    assert found.columns["text"].tolist() == [["é1", None, None]]
    assert np.isnan(found.columns["half"][0, 1:]).all() and len(found.to_arrow()) == 2


@pytest.mark.parametrize("name", sorted(set(GIVEN) - NESTED - {"nothing"}))
def test_a_filter_finds_what_has_the_value(index, name):
    given = values(name, range(ROWS))
    python = given.to_pylist()
    for i in (4, 8, 13):
        want = [j for j in range(ROWS) if python[j] == python[i]]
        assert np.flatnonzero(select(index.store, {name: python[i]}).mask).tolist() == want
    if given.null_count:
        np.testing.assert_array_equal(select(index.store, {name: None}).mask, given.is_null())


def test_filters_of_the_command_line(index):
    for text, rows in {"flag=False": [1, 3], "day=1970-01-03": [2], "whole=9007199254740995": [3]}.items():
        assert np.flatnonzero(select(index.store, parse(index.store, [text])).mask)[: len(rows)].tolist() == rows
    with pytest.raises(TypeError, match=r"Column 'list' holds list<.*>, by which rows cannot be selected"):
        select(index.store, {"list": [[1]]})


def test_files_and_compaction_keep_type_and_values(index, tmp_path):
    gone = np.arange(0, 55)
    copied = gradindex.build(digits_job(columns=GIVEN), tmp_path / "i", shard_rows=50)
    copied.remove(gone)
    for name in ("before", "after"):
        gradindex.export(copied.store.path, parquet=tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        schemas = {pq.read_schema(file).remove_metadata() for file in files}
        assert len(schemas) == 1 and len(files) > 1
        table = pq.read_table(tmp_path / name)
        assert table["id"].to_pylist() == list(range(55, ROWS))
        for column in GIVEN:
            same(column, table["user_vector" if column == "vector" else column], range(55, ROWS))
        unit = np.stack(table["vector"].to_numpy())
        np.testing.assert_array_equal(unit, index.store.gather(np.arange(55, ROWS)))
        copied.compact()
    assert select(copied.store, {"unsigned": 2**63 + 60}).mask.sum() == 1


def test_added_samples_keep_the_types(tmp_path):
    """Categories that the first samples do not have, a column that was empty, whole numbers that come as floats."""
    x, y = digits()
    first = {"kind": pandas.Series([f"c{i % 100}" for i in range(ROWS)], dtype="category"), "note": [None] * ROWS}
    first |= {"n": list(range(ROWS)), "when": [dt.date(2024, 1, 1)] * ROWS}
    index = gradindex.build(digits_job(columns=first), tmp_path / "i", shard_rows=100)
    more = {"kind": [f"d{i}" for i in range(99)] + [None], "note": ["new"] * 100}
    more |= {"n": np.arange(100.0) + 2**52, "when": [dt.date(2025, 1, 1)] * 100}
    ids = index.add((x[:100], y[:100]), columns=more)
    table = index.store.columns.table
    assert table["kind"].to_pylist() == [f"c{i % 100}" for i in range(ROWS)] + more["kind"]
    assert table["note"].to_pylist() == [None] * ROWS + ["new"] * 100
    assert table["n"].type == pa.int64() and table["n"].to_pylist()[ROWS:] == [2**52 + i for i in range(100)]
    assert np.flatnonzero(select(index.store, {"kind": "d3"}).mask).tolist() == [ids[3]]
    gradindex.export(tmp_path / "i", parquet=tmp_path / "p")
    assert pq.read_table(tmp_path / "p")["kind"].to_pylist() == table["kind"].to_pylist()
    index.remove([0])
    index.compact()
    assert index.store.columns.table["kind"].to_pylist() == table["kind"].to_pylist()[1:]
    with pytest.raises(ValueError, match=r"Column 'n' holds int64, the new samples do not fit: .*"):
        extended(first, ROWS, more | {"n": [0.5] * 100}, 100)


def test_types_of_stores_that_were_written_by_parts():
    schemas = [pa.schema([("a", pa.int8()), ("b", pa.null()), ("c", kind)]) for kind in (pa.string(), pa.null())]
    schemas.append(pa.schema([("c", pa.dictionary(pa.int8(), pa.string())), ("a", pa.int64()), ("b", pa.bool_())]))
    assert common_schema(schemas) == pa.schema([("a", pa.int64()), ("b", pa.bool_()), ("c", pa.string())])
    with pytest.raises(ValueError, match="values of column 'a' have types that do not go together"):
        common_schema([pa.schema([("a", pa.int8())]), pa.schema([("a", pa.string())])])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 5)], "it mixes dates and times without a zone"),
        (
            [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)],
            "mixes times with a zone and times without",
        ),
        (["a", b"b"], "it mixes bytes and str"),
        ({1, 2}, "expected a sequence with an entry a sample, got a set"),
        ("ab", "expected a sequence with an entry a sample, got a str"),
        ({1: 2, 3: 4}, "expected a sequence with an entry a sample, got a dict"),
        ([2**70, 1], "too large|too big|out of"),
        ([2**63, -1], "too large|too big|out of|negative"),
        ([Decimal(1), 0.5], "Decimal"),
        (["\ud800", "a"], "surrogates not allowed"),
        (pandas.Series(pandas.period_range("2024", periods=2, freq="Y")), "extension type"),
        (np.ones((2, 2)), "1-dimensional"),
        (pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval()), "interval"),
        (pa.array([0, 1], pa.timestamp("s", "Mars/Base")), "Mars/Base"),
        (pc.run_end_encode(pa.array([1, 1])), "run_end_encoded"),
    ],
)
def test_what_no_type_holds_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=rf"Column 'c' cannot be stored: .*(?:{said})"):
        as_columns({"c": given}, 2)


def test_tables_of_any_kind():
    import torch

    frame = pandas.DataFrame({"a": [1, None], "b": ["x", "y"]}, index=[5, 9])
    for table in (
        frame,
        pa.Table.from_pandas(frame, preserve_index=False),
        pa.RecordBatch.from_pandas(frame[["a", "b"]]),
    ):
        found = as_columns(table, 2)
        assert found["a"].to_pylist() == [1, None] and found["b"].to_pylist() == ["x", "y"]
    assert as_columns({"a": torch.tensor([1.5, 2.5], requires_grad=True)}, 2)["a"].to_pylist() == [1.5, 2.5]
    assert as_columns({"a": np.ma.array([1, 2], mask=[0, 1])}, 2)["a"].to_pylist() == [1, None]
    assert as_columns({"a": pa.chunked_array([["x"], ["y"]])}, 2)["a"].to_pylist() == ["x", "y"]


class Frame:
    """A data frame that is known by Arrow's protocol alone, as those of polars are."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)

    def __iter__(self):
        return iter(self._table.columns)


def test_a_frame_by_arrows_protocol():
    table = pa.table({"a": pa.array([1, None], pa.int16())})
    found = as_columns(Frame(table), 2)
    assert found["a"].type == pa.int16() and found["a"].to_pylist() == [1, None]
    assert as_columns({"s": Frame(table["a"])}, 2)["s"].type == pa.int16()


def test_the_files_of_a_store_are_what_they_were():
    """Columns are written as they were before types were kept: readers of older versions read them."""
    columns = as_columns({"a": GIVEN["small"], "b": GIVEN["text"]}, ROWS)
    ours, plain = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table(columns), ours)
    pq.write_table(pa.table({"a": GIVEN["small"], "b": pa.array(GIVEN["text"])}), plain)
    assert ours.getvalue() == plain.getvalue()


def test_a_store_without_columns(tmp_path):
    rows = np.eye(4, dtype=np.float32)
    store = Store.from_arrays(rows, np.arange(4), np.ones(4), tmp_path / "s", shard_rows=2)
    index = gradindex.index_store(store)
    assert len(store.columns) == 0
    index.remove([1])
    gradindex.export(store.path, parquet=tmp_path / "p")
    assert pq.read_table(tmp_path / "p").column_names == ["id", "vector", "norm"]
    index.compact()
    assert index.store.ids.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="There is no column 'a'"):
        select(index.store, {"a": 1})


def test_saved_columns_that_are_none():
    columns = Columns(pa.table({"a": [1, 2]}), (1, 2))
    assert Columns.from_json(columns.to_json(), columns.types)["a"].tolist() == [[1, 2]]
    for saved, types in (
        ({}, columns.types),
        ({"a": [["x", "y"]]}, columns.types),
        ({"a": [[1, 2]]}, "arrow:1,2:eA=="),
    ):
        with pytest.raises(ValueError, match="columns that are not of their types"):
            Columns.from_json(saved, types)
