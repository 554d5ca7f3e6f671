"""What other programs read: Parquet files and FAISS indexes, against the store."""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradindex
from gradindex.errors import IndexExistsError
from gradindex.interop.export import faiss_vectors, query_vectors
from tests.jobs import ROWS, digits, digits_job

GONE = [3, 64, 65, 200]


@pytest.fixture(scope="module", params=["Flat", "IVF4,SQ8"])
def index(request, tmp_path_factory):
    columns = {"name": [f"digit {row}" for row in range(ROWS)]}
    path = tmp_path_factory.mktemp("export") / "i"
    index = gradindex.build(digits_job(columns=columns), path, index=request.param, shard_rows=64)
    index.remove(GONE)
    return index


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_holds_the_stores_rows(index, tmp_path, dtype):
    done = gradindex.export(index.store.path, parquet=tmp_path / "p", dtype=dtype)
    assert (done.rows, len(done.files)) == (ROWS - len(GONE), 4)
    table = pq.read_table(tmp_path / "p")
    alive = np.setdiff1d(np.arange(ROWS), GONE)
    assert table.column_names == ["id", "vector", "norm", "loss", "label", "prediction", "name"]
    assert table.schema.field("vector").type == pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), 1024)
    np.testing.assert_array_equal(table["id"], alive)
    vectors = np.stack(table["vector"].to_numpy())
    np.testing.assert_array_equal(vectors, index.store.gather(alive).astype(dtype))
    np.testing.assert_array_equal(table["norm"], index.store.norms[alive])
    np.testing.assert_array_equal(table["label"], digits()[1][alive])
    assert table["name"][0].as_py() == "digit 0"


def test_the_faiss_file_finds_the_same_ids(index, tmp_path):
    done = gradindex.export(index.store.path, faiss=tmp_path / "deep" / "i.faiss")
    assert done.factory == index.searcher.factory
    found = faiss.read_index(str(tmp_path / "deep" / "i.faiss"))
    assert found.ntotal == done.rows == ROWS - len(GONE)
    lists = faiss.try_extract_index_ivf(found)
    if lists is not None:
        lists.nprobe = lists.nlist
    vectors = query_vectors(index, ids=[0, 3, 100])
    scores, ids = found.search(faiss_vectors(index, vectors), 9)
    want, rows = index.search(vectors, 9, where=np.setdiff1d(np.arange(ROWS), GONE))
    if lists is None:
        np.testing.assert_array_equal(ids, rows)
        np.testing.assert_allclose(scores, want, atol=1e-3)  # half precision is not quite of unit norm
    else:  # eight bits instead of the store's sixteen
        assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, rows, strict=True)]) >= 8
        np.testing.assert_allclose(scores, want, atol=0.02)
    assert not np.isin(ids, GONE).any()


def test_an_unchanged_index_is_exported_too(tmp_path):
    for kind in ("Flat", "IVF4,SQ8", "HNSW8"):
        index = gradindex.build(digits_job(), tmp_path / kind, index=kind)
        gradindex.export(tmp_path / kind, faiss=tmp_path / f"{kind}.faiss")
        found = faiss.read_index(str(tmp_path / f"{kind}.faiss"))
        query = faiss_vectors(index, query_vectors(index, ids=[7]))
        np.testing.assert_array_equal(found.search(query, 5)[1], index.search(query, 5)[1])
    index.remove([7])
    with pytest.raises(ValueError, match="Removed samples cannot be taken out of an index 'HNSW8'"):
        gradindex.export(tmp_path / "HNSW8", faiss=tmp_path / "new.faiss")


def test_nothing_is_overwritten(index, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").touch()
    with pytest.raises(IndexExistsError, match="is there already; give a new or an empty directory"):
        gradindex.export(index.store.path, parquet=tmp_path / "p")
    (tmp_path / "f").touch()
    with pytest.raises(IndexExistsError, match="is there already; give a new file"):
        gradindex.export(index.store.path, faiss=tmp_path / "f")
    with pytest.raises(ValueError, match="Give a directory for Parquet files"):
        gradindex.export(index.store.path)
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float16', got 'int8'"):
        gradindex.export(index.store.path, parquet=tmp_path / "q", dtype="int8")
