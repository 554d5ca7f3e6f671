"""Indexes in other processes than the one that opened them: forked, spawned, sent."""

import copy
import os
import pickle
import signal

import numpy as np
import pytest
import torch

import gradindex
from gradindex.runtime import forking
from tests.jobs import ROWS, digits_job

IDS = [1, 5, 8]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("processes") / "i", index="IVF4,SQ8")


def in_child(work, seconds=60):
    """Return the exit code of a forked process that does some work, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.alarm(seconds)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def threads():
    """Let FAISS and torch start their threads in this process, which a forked one then lacks."""
    import faiss

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(2), faiss.omp_set_num_threads(2)
    _ = (torch.zeros(3_000_000) + 1).sum()
    flat = faiss.IndexFlatIP(64)
    flat.add(np.ones((20_000, 64), "f4"))
    flat.search(np.ones((200, 64), "f4"), 5)
    yield
    torch.set_num_threads(before[0]), faiss.omp_set_num_threads(before[1])


def test_an_opened_index_works_in_a_forked_process(index, threads):
    want = index.explain(ids=IDS, k=5)
    rows = index.store.gather(np.arange(200))
    found = index.search(rows, 3)[1]

    def ask():
        np.testing.assert_array_equal(index.explain(ids=IDS, k=5).ordered_indices, want.ordered_indices)
        np.testing.assert_array_equal(index.search(rows, 3)[1], found)
        again = gradindex.load(index.store.path, digits_job())
        np.testing.assert_array_equal(again.explain(ids=IDS, k=5).ordered_indices, want.ordered_indices)
        assert torch.get_num_threads() == 1

    assert in_child(ask) == 0
    assert torch.get_num_threads() == 2  # here nothing changed


def test_a_build_in_a_forked_process(tmp_path, threads):
    assert in_child(lambda: gradindex.build(digits_job(), tmp_path / "i", index="IVF4,SQ8")) == 0
    assert gradindex.load(tmp_path / "i").store.header.threads == 1


def test_a_build_of_more_threads_is_not_continued_in_a_forked_process(tmp_path, threads):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gradindex.lifecycle.embed_shards.embed_shard", stop)
        gradindex.build(digits_job(), tmp_path / "i")

    def go_on():
        with pytest.raises(RuntimeError, match=r"begun with 2 threads.*get_context\('spawn'\)"):
            gradindex.build(digits_job(), tmp_path / "i")

    assert in_child(go_on) == 0


def test_tensorflow_says_that_it_cannot_be_forked(monkeypatch):
    forking.settle("tensorflow")  # here nothing was forked
    monkeypatch.setattr(forking, "_lost", True)
    with pytest.raises(RuntimeError, match=r"TensorFlow does not work in a process that was forked.*spawn"):
        forking.settle("tensorflow")


def test_a_pickled_index_is_opened_by_its_path(index):
    text = pickle.dumps(index)
    again = pickle.loads(text)
    assert (again.store.path, len(again)) == (index.store.path, ROWS)
    want = index.explain(ids=IDS, k=5)
    np.testing.assert_array_equal(again.explain(ids=IDS, k=5).scores, want.scores)
    without = pickle.loads(pickle.dumps(gradindex.load(index.store.path)))
    np.testing.assert_array_equal(
        without.search(index.sketch(ids=IDS), 3)[1], index.search(index.sketch(ids=IDS), 3)[1]
    )
    shared = copy.copy(index)
    assert shared.store is index.store and shared.searcher is index.searcher


def test_a_pickled_result_has_neither_model_nor_data(index):
    result = index.explain(ids=IDS, k=5)
    text = pickle.dumps(result)
    again = pickle.loads(text)
    np.testing.assert_array_equal(again.scores, result.scores)
    assert again.view is None and result.view is not None
    assert len(text) < 20_000 and b"torch" not in text
    with pytest.raises(ValueError, match="does not know its samples"):
        again.plot()
