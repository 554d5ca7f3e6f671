"""FAISS's kinds of index at sizes where its tables are larger than the file: built, opened, searched, added to."""

import faiss
import numpy as np
import pytest

import gradindex
from gradindex.ann import files
from gradindex.ann import plan as index_plan
from gradindex.errors import DamagedIndexError
from gradindex.store import Store

ROWS, DIM = 320, 32
# "np" leaves out FAISS's polysemous training, which takes seconds; it changes no table.
KINDS = {  # and which share of rows finds itself first
    "Flat": 1,
    "SQ4": 1,
    "SQ6": 1,
    "SQ8": 1,
    "SQfp16": 1,
    "SQbf16": 1,
    "PQ8np": 1,
    "PQ8x4np": 0.8,
    "PQ16x4fs": 0.9,
    "PQ8x4fs,RFlat": 0.8,
    "PQ8x6np,Refine(SQfp16)": 0.9,
    "RQ2x4": 0,
    "RQ4x6_Nqint8": 0.9,
    "LSQ2x4": 0,
    "PRQ2x2x4": 0.5,
    "PLSQ2x2x4": 0.5,
    "RaBitQ": 0.8,
    "RaBitQfs": 0.8,
    "HNSW8": 0.9,
    "HNSW8,SQ8": 0.9,
    "HNSW8_SQ8": 0.9,
    "HNSW8,PQ8x4np": 0.5,
    "NSG8": 0.9,
    "NSG8,SQ8": 0.9,
    "IVF64,Flat": 1,
    "IVF64,SQ8": 1,
    "IVF64,SQfp16": 1,
    "IVF64,PQ8np": 1,
    "IVF64,PQ16np": 1,
    "IVF64,PQ8x4np": 0.9,
    "IVF64,PQ16x4fs": 0.9,
    "IVF64,PQ16x4fsr": 0.9,
    "IVF64,PQ16np,RFlat": 1,
    "IVF64,PQ8x6np,Refine(SQ8)": 0.9,
    "IVF64(HNSW8),PQ16np": 0.9,
    "IVF64_HNSW8,PQ16np": 0.9,
    "IVF64_HNSW8,Flat": 0.9,
    "IVF64(PQ4x4np),Flat": 0.5,
    "IVF64(RCQ2x3),Flat": 0.9,
    "IVF64,RQ2x4": 0,
    "IVF64,LSQ2x4": 0,
    "IVF64,PRQ2x2x4": 0.5,
    "IVF64,PLSQ2x2x4fsr_32": 0.5,
    "IVF64,RaBitQ": 0.9,
    "IVF64,RaBitQfs": 0.9,
    "PCA16,IVF64,PQ16np": 0.8,
    "PCAR16,IVF64,SQ8": 0.8,
    "OPQ8,IVF64,PQ8np": 0.9,
    "OPQ8_16,PQ8x4fs": 0.5,
    "RR16,IVF64,PQ16np": 0.8,
    "ITQ16,Flat": 0.5,
    "Pad64,Flat": 1,
    "L2norm,IVF64,PQ16np": 0.9,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    return Store.from_arrays(rows, np.arange(ROWS), np.ones(ROWS), tmp_path_factory.mktemp("s") / "i", shard_rows=150)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_opens(kind, store):
    gradindex.index_store(store, kind)
    index = gradindex.load(store.path)
    index.check()
    rows = store.gather(np.arange(ROWS))
    ids = index.search(rows, 5)[1]
    assert (ids[:, 0] >= 0).all() and index.searcher.factory == kind
    assert (ids[:, 0] == np.arange(ROWS)).mean() >= KINDS[kind]
    few = index.search(rows[:9], 3, where=range(9))[1]
    np.testing.assert_array_equal(few[:, 0], np.arange(9))


def test_the_table_is_larger_than_the_file(store):
    """Else the matrix above would not have seen that the limit has to leave room for it."""
    gradindex.index_store(store, "IVF64,PQ16np")
    index = gradindex.load(store.path)
    assert files.table_bytes("IVF64,PQ16np") > 4 * 64 * 16 * 256 > index.searcher.bytes
    path = store.path / "index" / index.searcher.file
    before = faiss.get_deserialization_vector_byte_limit()
    with pytest.raises(DamagedIndexError, match="is damaged: Error"):
        files.read(path, "Flat", mapped=False)
    assert faiss.get_deserialization_vector_byte_limit() == before


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Flat", 4),
        ("PQ16", 4),
        ("IVF64,SQ8", 4),
        ("IVF64,PQ16", 4 * 64 * 16 * 256 + 4),
        ("Fold256,OPQ8_64,IVF2k_HNSW32,PQ8x10,Refine(PQ4)", 4 * 2048 * 8 * 1024 + 4),
        ("IVF1M,PQ16x4fsr", 4 * 2**20 * 16 * 16 + 4),
    ],
)
def test_bytes_of_tables(text, size):
    assert files.table_bytes(text) == size


@pytest.mark.parametrize("kind", ["NSG8", "IVF16,PQ8x4np,RFlat", "HNSW8"])
def test_rows_are_added(kind, tmp_path):
    from tests.jobs import digits, digits_job

    index = gradindex.build(digits_job(), tmp_path / "i", index=kind, shard_rows=100)
    x, y = digits()
    ids = index.add((x[:9], y[:9]))
    assert index.searcher.index.ntotal == len(index) == len(digits()[0]) + 9
    found = index.search(index.sketch(x[:9], y[:9]), 20)[1]
    assert np.mean([i in line for i, line in zip(ids, found, strict=True)]) >= 0.7


def test_strings_that_are_no_index_of_inner_products(store):
    for kind in ("LSH", "IMI2x4,Flat", "IVF64,ZnLattice2x8_4", "nonsense"):
        with pytest.raises(ValueError, match=r"Unknown index .* Expected 'auto' or a FAISS factory string"):
            index_plan.plan(store.header, kind)
    with pytest.raises(ValueError, match="FAISS cannot train 'IVF64_NSG8,Flat' on 320 rows"):
        gradindex.index_store(store, "IVF64_NSG8,Flat")
