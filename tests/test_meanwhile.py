"""What another process does to an index between two steps of this one, made to happen at the worst moment."""

import logging
import shutil
import threading

import numpy as np
import pytest

import gradindex
from gradindex.errors import MismatchError
from gradindex.lifecycle import add, build, header
from gradindex.store import Store, changes, disk, locks, replace
from gradindex.store.location import make_directory
from tests.jobs import ROWS, digits_job, longer_job, other_model_job


def built(path, job=None):
    return gradindex.build(job or digits_job(), path, shard_rows=60, progress=False)


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def replaced(tmp_path):
    """An open index, of another state than the first, at whose place another one was built since."""
    built(tmp_path / "index").remove([3, 4])
    index = gradindex.load(tmp_path / "index", digits_job())
    gradindex.build(other_model_job(), tmp_path / "index", overwrite=True, progress=False)
    return index, tmp_path / "index"


@pytest.mark.parametrize("changed", [False, True], ids=["as built", "changed itself"])
def test_changes_of_a_replaced_index_leave_the_new_one_alone(replaced, changed):
    index, place = replaced
    if changed:
        Store.open(place).remove([7])
    before = contents(place)
    with pytest.raises(MismatchError, match="Another index was built at"):
        index.remove([9])
    with pytest.raises(MismatchError, match="was built from something else"):
        gradindex.add(place, longer_job(ROWS + 5), progress=False)
    assert contents(place) == before
    assert len(gradindex.load(place)) == ROWS


def test_measurements_of_a_replaced_index_are_not_kept_in_the_new_one(replaced, caplog):
    index, place = replaced
    before = contents(place)
    with caplog.at_level(logging.WARNING):
        assert index.verify(queries=4, k=3).recall > 0.9
        index.tune(queries=4, k=3)
    assert contents(place) == before
    assert sum("could not be kept" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize("change", ["replaced", "compacted", "added to"])
def test_what_an_old_state_lacks_is_no_damage(tmp_path, change):
    built(tmp_path / "index").remove([3, 4])
    index = gradindex.load(tmp_path / "index", digits_job())
    want = index.explain(ids=[0, 1], k=3)
    if change == "replaced":
        gradindex.build(other_model_job(), tmp_path / "index", overwrite=True, progress=False)
    elif change == "compacted":
        gradindex.compact(tmp_path / "index", progress=False)
    else:
        gradindex.add(tmp_path / "index", longer_job(ROWS + 5), progress=False)
    for ask in (index.check, lambda: index.curve):
        with pytest.raises(MismatchError, match=r"since this index was opened.*Open it again"):
            ask()
    found = index.explain(ids=[0, 1], k=3)
    np.testing.assert_array_equal(found.ordered_indices, want.ordered_indices)
    np.testing.assert_array_equal(found.scores, want.scores)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_proof_over_ranges_of_an_old_state(tmp_path, replaced):
    """What it measures of FAISS's rounding has no place in the new state's manifest, and is used all the same."""
    place, how = tmp_path / "index", {"index": "IVF4,SQ8", "sketch": gradindex.Landmark(landmarks=60, dims=16)}
    gradindex.build(digits_job(), place, progress=False, **how).remove([3])
    index = gradindex.load(place, digits_job())
    index.sketch(ids=[0])  # reads the landmarks
    if replaced:
        gradindex.build(other_model_job(), place, overwrite=True, progress=False, **how)
    else:
        gradindex.compact(place, progress=False)
    before = contents(place)
    found = index.explain(ids=[7], k=3, certify=True)
    assert found.meta["params"]["searched"] == "FAISS"
    assert found.proved.all()
    exact = gradindex.exact_gradients(digits_job(), range(ROWS)).astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    values = exact @ exact[7]
    values[3] = -2
    np.testing.assert_array_equal(found.ordered_indices[0], np.argsort(-values)[:3])
    assert contents(place) == before


def test_nothing_to_add_while_another_process_compacts(tmp_path, monkeypatch):
    built(tmp_path / "index").remove([3, 4])

    def settle(store):
        gradindex.compact(tmp_path / "index", progress=False)

    monkeypatch.setattr(add, "settle", settle)
    index = gradindex.add(tmp_path / "index", digits_job(), progress=False)
    assert len(index) == ROWS - 2


def test_a_build_whose_result_is_replaced_at_once(tmp_path, monkeypatch):
    built(tmp_path / "index")
    fill = build._fill

    def filled(job, store, *rest):
        summary = fill(job, store, *rest)
        if job.model is not digits_job().model:
            monkeypatch.setattr(replace, "_put", lambda new, place: None)  # another process is first, so to say
        return summary

    monkeypatch.setattr(build, "_fill", filled)
    with pytest.raises(MismatchError, match="another process replaced it at once"):
        gradindex.build(other_model_job(), tmp_path / "index", overwrite=True, progress=False)


def test_a_directory_that_is_moved_while_it_is_made(tmp_path, monkeypatch):
    mkdir, times = disk.mkdir, []

    def moved(path):
        times.append(path)
        if len(times) == 1:
            raise FileExistsError(path)
        mkdir(path)

    monkeypatch.setattr(disk, "mkdir", moved)
    make_directory(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    assert len(times) == 2
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "file")


def test_a_header_that_is_moved_while_it_is_looked_at(tmp_path, monkeypatch):
    index = built(tmp_path / "index")
    monkeypatch.setattr(header, "exists", lambda path: True)
    assert header.begun(tmp_path / "gone") is None
    assert header.begun(index.store.path) is None  # nothing is missing
    shutil.rmtree(index.store.path / "shards")
    assert header.begun(index.store.path).seal == index.store.header.seal


def test_a_lock_is_on_what_lies_there_now(tmp_path):
    """Who waited for a lock on a directory that was moved away has one on what took its place."""
    place, inside, out = tmp_path / "place", threading.Event(), []
    place.mkdir()

    def wait():
        inside.set()
        with locks.alone(place, wait=True):
            out.append(sorted(p.name for p in place.iterdir()))
            with pytest.raises(BlockingIOError), locks.alone(place):
                pass

    waiting = threading.Thread(target=wait)
    with locks.alone(place):
        waiting.start()
        inside.wait()
        waiting.join(0.2)
        place.rename(tmp_path / "old")
        place.mkdir()
        (place / "new").touch()
        assert not out
    waiting.join(10)
    assert out == [["new"]]


def test_a_change_waits_for_a_replacement(tmp_path):
    """An index is not exchanged between the look at its header and the writing of a change."""
    index, began, done = built(tmp_path / "index"), threading.Event(), []

    def remove():
        began.set()
        try:
            done.append(index.remove([5]))
        except MismatchError as error:
            done.append(str(error))

    removing = threading.Thread(target=remove)
    with locks.alone(tmp_path / "index"):
        removing.start()
        began.wait()
        removing.join(0.3)
        assert not done
    removing.join(10)
    assert done == [1]
    with changes.in_place(tmp_path / "index", index.store.header), pytest.raises(BlockingIOError):
        locks.alone(tmp_path / "index").__enter__()
