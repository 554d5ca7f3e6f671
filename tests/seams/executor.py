"""What every `Executor` of a build must do: the shards and the FAISS index of this process, byte by byte.

A test class of an implementation inherits `ExecutorSuite` and has a fixture `begin`, which takes a job and a store and
returns the executor of that build.
"""

import faiss
import numpy as np
import pytest

from gradindex.ann import build as indexing
from gradindex.ann.plan import new_index
from gradindex.ann.searcher import as_vectors
from gradindex.lifecycle.embed_shards import embed_missing
from gradindex.lifecycle.header import header
from gradindex.lifecycle.options import BuildOptions
from gradindex.sketch import CountSketch
from gradindex.store import Store
from gradindex.store.shard import manifest_path
from tests.jobs import ROWS, digits_job
from tests.test_builder import files

SHARD_ROWS, WIDTH = 50, 64


def begun(path):
    """Return a job and its store, in which nothing is published yet."""
    job = digits_job()
    return job, Store.create(
        path, header(job, BuildOptions(sketch=CountSketch(WIDTH), batch_size=8, shard_rows=SHARD_ROWS))
    )


class ExecutorSuite:
    @pytest.fixture
    def whole(self, tmp_path):
        """A store that was embedded without an executor."""
        job, store = begun(tmp_path / "whole")
        embed_missing(job, store)
        return store

    def test_what_is_missing_is_embedded_and_no_more(self, begin, whole, tmp_path):
        job, store = begun(tmp_path / "i")
        with begin(job, store) as executor:
            assert executor.embed_missing() == ROWS
            assert executor.embed_missing() == 0
            manifest_path(store.path / "shards", 2).unlink()
            assert executor.embed_missing() == SHARD_ROWS
        assert not store.missing()
        assert files(store.path) == files(whole.path)

    @pytest.mark.parametrize("factory", ["Flat", "IVF4,SQ8", "HNSW8"])
    def test_all_rows_are_added_in_their_order(self, begin, whole, factory):
        want, got = self.trained(whole, factory), self.trained(whole, factory)
        indexing.add(want, whole, WIDTH, lambda rows: None)
        told = []
        with begin(digits_job(), whole) as executor:
            executor.add(got, whole, WIDTH, told.append)
        assert sum(told) == ROWS
        np.testing.assert_array_equal(faiss.serialize_index(got), faiss.serialize_index(want))

    def trained(self, store, factory):
        index = new_index(factory, WIDTH)
        index.train(as_vectors(store.gather(np.arange(ROWS)), WIDTH))
        return index
