"""Which rows have a wanted value, for every kind of column and every form of value, against plain Python."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from gradindex.data.columns import to_arrow
from gradindex.data.conditions import listed, matches, parse_text

ZONE = dt.timezone(dt.timedelta(hours=2))
NOON = dt.datetime(2024, 3, 31, 12)
NAN = float("nan")
KINDS = {
    "whole": ([2**53, 2**53 + 1, None], pa.int64()),
    "small": ([-3, 7, None], pa.int8()),
    "unsigned": ([2**63 + 5, 0, None], pa.uint64()),
    "flag": ([True, False, None], pa.bool_()),
    "half": ([0.1, 2.5, None], pa.float16()),
    "single": ([0.1, -0.0, None], pa.float32()),
    "text": (["a", "", None], pa.string()),
    "long text": (["a", "", None], pa.large_string()),
    "category": (["a", "", None], pa.dictionary(pa.int8(), pa.string())),
    "money": ([Decimal("0.10"), Decimal("-7.25"), None], pa.decimal128(6, 2)),
    "date": ([dt.date(2024, 3, 31), dt.date(1969, 1, 1), None], pa.date32()),
    "local": ([NOON, NOON + dt.timedelta(microseconds=1), None], pa.timestamp("us")),
    "zoned": ([NOON.replace(tzinfo=ZONE), NOON.replace(tzinfo=dt.UTC), None], pa.timestamp("ns", "Europe/Berlin")),
    "time": ([dt.time(1, 2, 3), dt.time(0), None], pa.time64("us")),
    "lasting": ([dt.timedelta(hours=3), dt.timedelta(microseconds=1), None], pa.duration("us")),
    "bytes": ([b"\x00", b"", None], pa.binary()),
}


def column(values, kind):
    return pa.chunked_array([pa.array(values[:2], kind), pa.array(values[2:], kind)])


@pytest.mark.parametrize("name", KINDS)
def test_each_value_finds_its_own_row(name):
    values, kind = KINDS[name]
    for i, value in enumerate(values):
        want = np.arange(3) == i
        np.testing.assert_array_equal(matches(name, column(values, kind), value), want)
        np.testing.assert_array_equal(matches(name, column(values, kind), [value, value]), want)
    np.testing.assert_array_equal(matches(name, column(values, kind), values), [True] * 3)
    assert not matches(name, column(values, kind), []).any()


@pytest.mark.parametrize(
    ("name", "value", "rows"),
    [
        ("whole", float(2**53), [0]),
        ("whole", 2**53 + 2, []),
        ("whole", np.int64(2**53 + 1), [1]),
        ("whole", 1.5, []),
        ("whole", 2**70, []),
        ("whole", float("inf"), []),
        ("whole", NAN, [2]),
        ("small", 253, []),
        ("small", Decimal(7), [1]),
        ("unsigned", -1, []),
        ("flag", 1, [0]),
        ("flag", np.False_, [1]),
        ("half", 0.1, [0]),
        ("half", 1e30, []),
        ("single", np.float64(0.1), [0]),
        ("single", 0, [1]),
        ("single", NAN, [2]),
        ("text", np.str_("a"), [0]),
        ("money", "0.1", [0]),
        ("money", 0.1, [0]),
        ("money", Decimal("0.101"), []),
        ("money", -7.25, [1]),
        ("date", "2024-03-31", [0]),
        ("date", np.datetime64("2024-03-31"), [0]),
        ("date", dt.datetime(2024, 3, 31), [0]),
        ("date", NOON, []),
        ("local", "2024-03-31 12:00:00", [0]),
        ("local", np.datetime64("2024-03-31T12"), [0]),
        ("local", dt.date(2024, 3, 31), []),
        ("zoned", "2024-03-31T10:00:00Z", [0]),
        ("zoned", NOON.replace(tzinfo=dt.UTC), [1]),
        ("time", "01:02:03", [0]),
        ("lasting", np.timedelta64(3, "h"), [0]),
        ("bytes", bytearray(b"\x00"), [0]),
    ],
)
def test_other_ways_to_say_a_value(name, value, rows):
    assert np.flatnonzero(matches(name, column(*KINDS[name]), value)).tolist() == rows


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("whole", "3"),
        ("whole", True),
        ("flag", "False"),
        ("flag", 2),
        ("half", "0.1"),
        ("half", True),
        ("text", 3),
        ("text", b"a"),
        ("category", 0),
        ("money", "cheap"),
        ("money", True),
        ("date", 19813),
        ("date", "31.3.2024"),
        ("local", NOON.replace(tzinfo=ZONE)),
        ("local", "2024-03-31T10:00:00Z"),
        ("zoned", NOON),
        ("zoned", "2024-03-31 12:00"),
        ("time", NOON),
        ("lasting", 3),
        ("lasting", "3"),
        ("bytes", "a"),
        ("whole", {"a": 1}),
        ("whole", [[1]]),
        ("text", object()),
    ],
)
def test_another_kind_of_value_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=rf"Column '{name}' holds .*cannot be compared"):
        matches(name, column(*KINDS[name]), value)


def test_columns_of_lists_are_refused_by_name():
    for values in ([[1], [2]], [{"a": 1}, {"a": 2}]):
        with pytest.raises(TypeError, match=r"Column 'list' holds .*, by which rows cannot be selected"):
            matches("list", pa.chunked_array([pa.array(values)]), values[0])


def test_nan_is_no_value_and_none_is_no_nan():
    floats = column([1.0, NAN, None], pa.float64())
    np.testing.assert_array_equal(matches("x", floats, NAN), [False, True, True])
    np.testing.assert_array_equal(matches("x", floats, np.float32("nan")), [False, True, True])
    np.testing.assert_array_equal(matches("x", floats, None), [False, False, True])
    np.testing.assert_array_equal(matches("x", floats, [1.0, None]), [True, False, True])
    half = pa.chunked_array([pa.array(np.array([np.inf, 1], np.float16))])
    np.testing.assert_array_equal(matches("x", half, np.inf), [True, False])
    assert not matches("x", half, 1e30).any()  # which is infinite in half precision
    nothing = pa.chunked_array([pa.nulls(2)])
    assert matches("x", nothing, None).all() and not matches("x", nothing, 3).any()


def test_collections_of_any_form():
    torch, pandas = pytest.importorskip("torch"), pytest.importorskip("pandas")
    forms = [
        [1, 3],
        (1, 3),
        {1, 3},
        frozenset((1, 3)),
        range(1, 4, 2),
        {1: "a", 3: "b"}.keys(),
        (i for i in (1, 3)),
        np.array([1, 3], ">i2"),
        torch.tensor([1, 3]),
        [torch.tensor(1), np.array(3)],
        pandas.Series([1, 3], index=[7, 8]),
        pandas.Series([1, 3], dtype="Int64"),
        pandas.Index([1, 3]),
        pa.array([1, 3]),
        pa.chunked_array([[1], [3]]),
    ]
    numbers = pa.chunked_array([pa.array([0, 1, 2, 3])])
    for form in forms:
        np.testing.assert_array_equal(matches("n", numbers, form), [False, True, False, True], str(type(form)))
    for one in (3, np.int8(3), np.array(3), torch.tensor(3), pa.scalar(3), [torch.tensor(3)]):
        np.testing.assert_array_equal(matches("n", numbers, one), [False, False, False, True], str(type(one)))
    np.testing.assert_array_equal(
        matches("n", to_chunks([1, None]), pandas.Series([None], dtype="Int64")), [False, True]
    )
    np.testing.assert_array_equal(matches("t", to_chunks([NOON, None]), pandas.NaT), [False, True])
    stamp = pandas.Timestamp("2024-03-31 12:00:00.000000001")
    times = pa.chunked_array([pa.array([stamp, pandas.Timestamp(NOON)], pa.timestamp("ns"))])
    np.testing.assert_array_equal(matches("t", times, stamp), [True, False])
    np.testing.assert_array_equal(matches("t", times.cast(pa.timestamp("us"), safe=False), stamp), [False, False])
    assert listed("ab") == ["ab"]


def to_chunks(values):
    return pa.chunked_array([to_arrow(values)])


def test_texts_of_the_command_line():
    for text, value in {"True": True, "FALSE": False, "1": True, "0": False}.items():
        assert parse_text("flag", text, pa.bool_()) is value
    assert parse_text("n", "9007199254740993", pa.int64()) == 2**53 + 1
    assert parse_text("x", "1e3", pa.float32()) == 1000
    assert parse_text("s", "1", pa.string()) == "1"
    with pytest.raises(ValueError, match=r"Column 'flag' holds truth values \(True or False\), got 'yes'"):
        parse_text("flag", "yes", pa.bool_())
    with pytest.raises(ValueError, match=r"Column 'n' holds int64 numbers, got '3\.0'"):
        parse_text("n", "3.0", pa.int64())
