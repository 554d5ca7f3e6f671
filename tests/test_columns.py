import dataclasses

import numpy as np
import pyarrow as pa
import pytest

import gradindex
from gradindex.errors import IndexExistsError, MismatchError
from tests.jobs import ROWS, digits_job

NAMES = [f"picture {i}" for i in range(ROWS)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    columns = {"name": NAMES, "weight": np.arange(ROWS) / 2}
    job = dataclasses.replace(digits_job(), columns=columns)
    index = gradindex.build(job, tmp_path_factory.mktemp("columns") / "i", shard_rows=50)
    return index.explain(ids=[3, 100], k=4)


def test_columns_come_back_with_results(result):
    for prefix, ids in (("", result.ordered_indices), ("opponent_", result.opponent_indices)):
        found = result.data[f"{prefix}columns"]
        assert found["name"].tolist() == [[NAMES[i] for i in line] for line in ids]
        np.testing.assert_array_equal(found["weight"], ids / 2)
    again = gradindex.Explanation.from_json(result.to_json())
    assert again.columns["name"].tolist() == result.columns["name"].tolist()


def test_results_as_a_table(result):
    table = result.to_arrow()
    assert table.column_names[:5] == ["query", "side", "rank", "id", "score"]
    rows = table.to_pylist()
    assert len(rows) == 2 * 2 * 4
    assert [row["query"] for row in rows] == [0] * 8 + [1] * 8
    first = rows[0]
    assert (first["side"], first["rank"], first["id"]) == ("proponent", 1, 3)
    assert first["score"] == pytest.approx(1.0, abs=1e-5)
    for row in rows:
        assert row["name"] == NAMES[row["id"]] and row["weight"] == row["id"] / 2 and row["exact"]
    pandas = pytest.importorskip("pandas")
    pandas.testing.assert_frame_equal(result.to_pandas(), table.to_pandas())


def test_missing_results_have_no_row():
    data = {"scores": np.array([[1.0, np.nan]]), "ordered_indices": np.array([[5, -1]])}
    assert gradindex.Explanation({}, data).to_arrow().to_pylist() == [
        {"query": 0, "side": "proponent", "rank": 1, "id": 5, "score": 1.0}
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"loss": np.zeros(ROWS)}, "may not be called 'loss'"),
        ({"name": NAMES[:-1]}, "has 239 entries, the dataset 240 samples"),
        ({"name": [object()] * ROWS}, "'name' cannot be stored"),
    ],
)
def test_bad_columns(tmp_path, columns, said):
    with pytest.raises(ValueError, match=said):
        gradindex.build(dataclasses.replace(digits_job(), columns=columns), tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_an_arrow_table_gives_the_same_bytes_as_a_dict(tmp_path):
    columns = {"name": NAMES}
    for name, given in (("a", columns), ("b", pa.table(columns))):
        gradindex.build(dataclasses.replace(digits_job(), columns=given), tmp_path / name)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "ab")
    assert a == b


def test_a_store_of_ones_own_embeddings(tmp_path):
    rng = np.random.default_rng(0)
    vectors, ids = rng.normal(size=(70, 12)) * 5, rng.permutation(1000)[:70]
    norms = np.linalg.norm(vectors, axis=1)
    store = gradindex.Store.from_arrays(vectors, ids, norms, tmp_path / "s", columns={"n": ids * 2}, shard_rows=32)
    np.testing.assert_array_equal(store.ids, ids)
    index = gradindex.index_store(store)
    opened = gradindex.load(tmp_path / "s")
    for found in (index, opened):
        scores, rows = found.search(vectors[:5], k=70)
        np.testing.assert_array_equal(rows[:, 0], ids[:5])
        unit = vectors / norms[:, None]
        np.testing.assert_allclose(np.sort(scores), np.sort(unit[:5] @ unit.T), atol=2e-3)
        influence, who = found.self_influence(3)
        np.testing.assert_array_equal(who, ids[np.argsort(-norms)[:3]])
        np.testing.assert_allclose(influence, np.sort(norms)[:-4:-1] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(store.columns["n"], ids * 2)
    opened.check()
    with pytest.raises(MismatchError, match="was made from arrays"):
        gradindex.load(tmp_path / "s", digits_job())
    with pytest.raises(ValueError, match="This needs the model and the data"):
        opened.explain(ids=[int(ids[0])])
    with pytest.raises(IndexExistsError, match="already holds a gradindex store"):
        gradindex.Store.from_arrays(vectors, ids, norms, tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sketch": np.zeros((3, 0))}, "Expected sketch"),
        ({"ids": np.arange(4)}, "Expected sketch"),
        ({"ids": np.array([1, 1, 2])}, "distinct integers"),
        ({"ids": np.array([-1, 1, 2])}, "distinct integers"),
        ({"norms": np.array([1.0, np.nan, 2.0])}, "must be finite"),
        ({"norms": np.array([1.0, -1.0, 2.0])}, "must be finite"),
        ({"sketch": np.ones((3, 2)) * 1j}, "are complex: give real numbers"),
    ],
)
def test_bad_arrays(tmp_path, change, said):
    given = {"sketch": np.ones((3, 2)), "ids": np.arange(3), "norms": np.ones(3)} | change
    with pytest.raises(ValueError, match=said):
        gradindex.Store.from_arrays(**given, path=tmp_path / "s")
