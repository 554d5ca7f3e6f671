"""A flat index gives several queries at once the answers of one by one, and FAISS's setting stays what it was."""

import threading

import faiss
import numpy as np

import gradindex
from tests.jobs import digits_job


def test_many_queries_get_the_answers_of_one_by_one(tmp_path, monkeypatch):
    index = gradindex.build(digits_job(), tmp_path / "i", index="Flat")
    vectors = index.store.gather(np.arange(60))
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 77_777)  # as somebody else may have set it
    scores, ids = index.search(vectors, k=6)
    one_by_one = [index.search(vectors[i : i + 1], k=6) for i in range(len(vectors))]
    np.testing.assert_array_equal(ids, np.concatenate([found for _, found in one_by_one]))
    np.testing.assert_allclose(scores, np.concatenate([found for found, _ in one_by_one]), atol=1e-5)
    assert faiss.cvar.distance_compute_blas_threshold == 77_777


def test_searches_from_several_threads_leave_the_setting_of_faiss(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i", index="Flat")
    vectors = index.store.gather(np.arange(40))
    before = faiss.cvar.distance_compute_blas_threshold
    want, answers = index.search(vectors, k=3)[1], []
    threads = [
        threading.Thread(target=lambda: answers.extend(index.search(vectors, k=3)[1] for _ in range(30)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 120 and all((found == want).all() for found in answers)
    assert faiss.cvar.distance_compute_blas_threshold == before
