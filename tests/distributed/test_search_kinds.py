"""Lookups by parts, as `test_search` compares them: replicas, landmarks and proofs, rows added, removed, compacted."""

import os
import signal

import numpy as np
import pytest

import gradindex
from gradindex.ann import files as index_files
from gradindex.errors import MismatchError
from tests.distributed.test_search import assert_same
from tests.jobs import ROWS, digits, digits_job, longer_job

KERNELS = ("grad_cos", "grad_dot", "grad_asym_dot")
MORE = 60
OPTIONS = {"shard_rows": 50, "index": "IVF4,SQ8", "sketch": gradindex.CountSketch(256)}


def compare(here, there, ids, kernels=KERNELS, **options):
    """Ask both indexes the same, for some kernels."""
    for kernel in kernels:
        asked = {"ids": ids, "k": 7, "kernel": kernel, **options}
        assert_same(here.explain(**asked), there.explain(**asked))


def test_a_killed_replica_leaves_the_other_to_answer(nodes, tmp_path, caplog):
    here = gradindex.build(digits_job(), tmp_path / "i", **OPTIONS)
    engine = gradindex.Ray(address=nodes.address, workers=2, replicas=2, resources={"CPU": 0.5})
    with gradindex.load(tmp_path / "i", digits_job(), engine=engine) as there:
        before = [there.parts.ask("process") for _ in range(2)]
        assert len(np.unique(before)) == 4
        os.kill(before[0][1], signal.SIGKILL)
        for _ in range(2):  # every replica's turn
            compare(here, there, [1, 50, 200], kernels=KERNELS[:1], rerank=0)
        compare(here, there, [1, 50, 200], kernels=KERNELS[1:], rerank=0)
        assert caplog.text.count("an actor of part 1 of the index was lost and is replaced") == 1
        after = [there.parts.ask("process") for _ in range(2)]
        assert len(set(np.ravel(before)) & set(np.ravel(after))) == 3


@pytest.mark.parametrize("kind", ["Flat", "IVF4,SQ8"])
def test_landmarks_and_proofs(nodes, tmp_path, kind):
    sketch = gradindex.Landmark(landmarks=64, dims=16)
    here = gradindex.build(digits_job(), tmp_path / "i", sketch=sketch, shard_rows=50, index=kind)
    here.remove([8, 77])
    with gradindex.load(tmp_path / "i", digits_job(), engine=gradindex.Ray(address=nodes.address, workers=2)) as there:
        compare(here, there, [3, 130], certify=True)
        assert there.explain(ids=[3, 130], k=7, certify=True).proved.all()
        os.kill(there.parts.ask("process")[0], signal.SIGKILL)
        compare(here, there, [4, 131])
        compare(here, there, [4, 131], certify=True, where={"label": [3, 8]})


def test_norms_prove_inner_products(nodes, tmp_path):
    here = gradindex.build(digits_job(), tmp_path / "i", **OPTIONS)
    with gradindex.load(tmp_path / "i", digits_job(), engine=gradindex.Ray(address=nodes.address, workers=2)) as there:
        os.kill(there.parts.ask("process")[1], signal.SIGKILL)
        compare(here, there, [3, 130], certify=True)
        assert there.explain(ids=[3, 130], k=7, kernel="grad_dot", certify=True).proved.all()


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """Digits built in shards of 50, others added, some of both removed; ids 5, 100, 160, 242 and 299 are gone."""
    path = tmp_path_factory.mktemp("changed") / "i"
    index = gradindex.build(digits_job(), path, **OPTIONS)
    index.remove([5, 100])
    index.add(tuple(part[ROWS:] for part in digits(ROWS + MORE)))
    index.remove([160, ROWS + 2, ROWS + MORE - 1])
    return index


@pytest.mark.parametrize("sent", [True, False], ids=["extended job", "longer dataset"])
def test_rows_that_were_added_and_removed(nodes, changed, sent):
    engine, asked = gradindex.Ray(address=nodes.address, workers=2), [1, 150, ROWS + 4]
    job = changed.job if sent else longer_job(ROWS + MORE)
    with gradindex.load(changed.store.path, job, engine=engine) as there:
        assert len(there) == ROWS + MORE
        compare(changed, there, asked)
        os.kill(there.parts.ask("process")[1], signal.SIGKILL)
        compare(changed, there, asked, kernels=KERNELS[:1], where=[1, 5, ROWS, ROWS + 2, ROWS + 3])
        compare(changed, there, asked, kernels=KERNELS[:1], rerank=12)


def test_changes_while_it_is_open_on_the_cluster(nodes, tmp_path):
    """Removals count at once; what others add or compact is not seen, and a worker that comes later says why."""
    gradindex.build(digits_job(), tmp_path / "i", **OPTIONS)
    engine, asked = gradindex.Ray(address=nodes.address, workers=2), [1, 150, 200]
    with gradindex.load(tmp_path / "i", digits_job(), engine=engine) as there:
        first = np.unique(there.explain(ids=asked, k=3).ordered_indices[:, 0])
        assert there.remove(first) == len(first)
        before = gradindex.load(tmp_path / "i", digits_job())
        compare(before, there, asked, kernels=KERNELS[:2])
        gradindex.load(tmp_path / "i", digits_job()).compact()
        compare(before, there, asked, kernels=KERNELS[:2])
        for change in (lambda: there.add(digits()), there.compact):
            with pytest.raises(ValueError, match="Open the index without an engine to add to it or to compact it"):
                change()
        os.kill(there.parts.ask("process")[1], signal.SIGKILL)
        with pytest.raises(MismatchError, match=r"compacted after it was opened.*Open it again\."):
            there.explain(ids=asked)
    here = gradindex.load(tmp_path / "i", digits_job())
    with gradindex.load(tmp_path / "i", digits_job(), engine=engine) as there:
        assert len(there) == ROWS - len(first)
        compare(here, there, asked, kernels=KERNELS[:2])


def test_another_process_compacts_while_it_is_opened(nodes, tmp_path, monkeypatch):
    path, check = tmp_path / "i", index_files.check
    gradindex.build(digits_job(), path, **OPTIONS).remove([3])

    def late(store):
        monkeypatch.undo()
        gradindex.compact(path)
        check(store)

    monkeypatch.setattr(index_files, "check", late)
    with gradindex.load(path, engine=gradindex.Ray(address=nodes.address, workers=1)) as there:
        assert len(there) == ROWS - 1
        vectors = there.store.gather(np.arange(5))
        np.testing.assert_array_equal(there.search(vectors, 4)[1], gradindex.load(path).search(vectors, 4)[1])
