"""Which index is chosen, and operating points."""

import pytest

import gradindex
from gradindex.ann.choice import choose_index as choose
from tests.jobs import ROWS, digits_job


def test_auto_is_exact_while_small_then_narrow_and_quantised():
    assert choose(100_000, 1024) == "Flat"
    assert choose(1_000_000, 1024) == "Fold256,IVF4096,SQ8"
    assert choose(1_000_000, 1000) == "IVF4096,SQ8"
    assert choose(1_000_000, 1024, foldable=False) == "IVF4096,SQ8"
    assert choose(1_000_000, 256) == "IVF4096,SQ8"


def test_a_build_within_a_memory_budget(tmp_path):
    job, quantised = digits_job(), "Fold256,IVF64,SQ8"
    index = gradindex.build(job, tmp_path / "i", index_memory=264 * ROWS + 4 * 256 * 64)
    assert (index.searcher.factory, index.store.header.dim) == (quantised, 1024)
    assert index.searcher.bytes <= 264 * ROWS + 4 * 256 * 64 + 4096  # FAISS's own headers
    for options, said in (
        ({"index_memory": 100}, r"No index of 240 rows reaches recall 0\.99 in 100 bytes"),
        ({"index_memory": 0}, "memory must be positive"),
        ({"index_memory": 10**6, "index": "Flat"}, "index_memory=1000000 is for index='auto'; 'Flat'"),
    ):
        with pytest.raises(ValueError, match=said):
            gradindex.build(job, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_memory_and_recall_decide():
    assert choose(60_000, 1024, memory=250_000_000) == "Flat"
    assert choose(60_000, 1024, memory=20_000_000) == "Fold256,IVF1024,SQ8"
    assert choose(60_000, 1024, memory=10_000_000) == "Fold256,IVF1024,SQ4"
    assert choose(60_000, 1024, memory=5_000_000) == "Fold256,IVF1024,RaBitQ"
    with pytest.raises(ValueError, match=r"No index of 60000 rows reaches recall 1\.0 in 1000000 bytes; 'Flat' takes"):
        choose(60_000, 1024, memory=1_000_000, recall=1.0)
    for bad in ({"memory": 0}, {"recall": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            choose(10, 4, **bad)
    with pytest.raises(ValueError, match="rows must be positive"):
        choose(0, 4)
