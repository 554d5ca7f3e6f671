"""Batches: what runs together, in which order, and what happens when one fails or the end comes."""

import threading
import time

import pytest

from gradindex.serve.batching import Closed, Full, Task, Worker


class Recorder:
    """Doubles numbers; holds the first batch until told to go on."""

    def __init__(self):
        self.go, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, key, tasks):
        self.begun.set()
        assert self.go.wait(10)
        self.batches.append((key, [task.payload for task in tasks]))
        if any(task.payload == "bad" for task in tasks):
            raise ValueError("bad")
        return [task.payload * 2 for task in tasks]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def worker(recorder):
    worker = Worker(recorder, most=4, waiting=10, linger=0.0)
    yield worker
    recorder.go.set()
    worker.close()


def busy(worker, recorder):
    """Submit one task and wait until it runs, so that what follows has to queue."""
    future = worker.submit(Task("first", 0, 1))
    assert recorder.begun.wait(10)
    return future


def test_tasks_alike_run_together_oldest_first(worker, recorder):
    busy(worker, recorder)
    futures = [worker.submit(Task(key, i, 1)) for i, key in enumerate("abaaab")]
    recorder.go.set()
    assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10]
    assert recorder.batches[1:] == [("a", [0, 2, 3, 4]), ("b", [1, 5])]


def test_a_batch_holds_at_most_its_limit_but_always_one_request(worker, recorder):
    busy(worker, recorder)
    sizes = [3, 3, 1, 9, 1]
    with pytest.raises(Full, match="10 queries are waiting already"):
        [worker.submit(Task("a", i, size)) for i, size in enumerate(sizes)]
    recorder.go.set()
    worker.close()
    assert recorder.batches[1:] == [("a", [0, 2]), ("a", [1])]


def test_one_that_fails_does_not_spoil_the_others(worker, recorder):
    busy(worker, recorder)
    futures = [worker.submit(Task("a", payload, 1)) for payload in (1, "bad", 2)]
    recorder.go.set()
    assert futures[0].result(10) == 2
    assert futures[2].result(10) == 4
    with pytest.raises(ValueError, match="bad"):
        futures[1].result(10)


def test_closing_answers_what_is_queued_and_takes_no_more(worker, recorder):
    busy(worker, recorder)
    futures = [worker.submit(Task(i, i, 1)) for i in range(5)]
    threading.Timer(0.05, recorder.go.set).start()
    worker.close()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [0, 2, 4, 6, 8]
    with pytest.raises(Closed):
        worker.submit(Task("a", 1, 1))


def test_a_request_that_was_given_up_is_not_run(worker, recorder):
    busy(worker, recorder)
    gone, kept = worker.submit(Task("a", 1, 1)), worker.submit(Task("a", 2, 1))
    assert gone.cancel()
    recorder.go.set()
    assert kept.result(10) == 4
    assert recorder.batches[1] == ("a", [2])


def test_it_waits_for_company_only_after_company():
    recorder = Recorder()
    recorder.go.set()
    worker = Worker(recorder, most=4, waiting=10, linger=5.0)
    began = time.perf_counter()
    for _ in range(3):  # a lone client is answered at once
        worker.submit(Task("a", 1, 1)).result(10)
    assert time.perf_counter() - began < 2
    recorder.go.clear()
    recorder.begun.clear()
    busy(worker, recorder)
    pair = [worker.submit(Task("a", i, 1)) for i in (1, 2)]
    recorder.go.set()
    [future.result(10) for future in pair]
    pair = [worker.submit(Task("a", i, 1)) for i in (3, 4)]  # the last batch had two
    [future.result(10) for future in pair]
    assert recorder.batches[-1] == ("a", [3, 4])
    worker.close()
