"""Removed samples are found by nobody who opens the index afterwards, and by everybody who had it open before."""

import json
import shutil
import threading

import numpy as np
import pytest

import gradindex
from gradindex.errors import DamagedIndexError
from gradindex.store import Store, changes
from gradindex.store import store as stores
from tests import oracles
from tests.jobs import ROWS, digits_job

KERNELS = ["grad_cos", "grad_dot", "grad_asym_dot"]
GONE = np.arange(0, ROWS, 3)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("removals") / "i", shard_rows=100).store.path


@pytest.fixture
def path(original, tmp_path):
    return shutil.copytree(original, tmp_path / "i")


def found(index, **options):
    result = index.explain(ids=[1, 5, 8], k=20, **options)
    return np.concatenate([result.ordered_indices, result.opponent_indices], axis=1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_answers_are_those_of_an_index_that_never_had_them(path, kernel):
    index = gradindex.load(path, digits_job())
    assert index.remove(GONE) == len(GONE)
    gradients = gradindex.exact_gradients(index.job, np.arange(ROWS)).astype(np.float64)
    values = oracles.kernel(kernel, gradients[[1, 5, 8]], gradients, eps=0)
    values[:, GONE] = -np.inf
    want = np.argsort(-values, axis=1, kind="stable")[:, :20]
    for one in (index, gradindex.load(path, digits_job())):
        for options in ({}, {"certify": True, "max_checks": ROWS}):
            ids = one.explain(ids=[1, 5, 8], k=20, kernel=kernel, rerank=ROWS, **options).ordered_indices
            np.testing.assert_array_equal(ids, want)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW16", "SQ8"])
def test_every_kind_of_index_forgets(path, factory):
    index = gradindex.index_store(Store.open(path), factory)
    rows = index.store.gather(np.arange(10))
    index.remove(GONE)
    _, ids = index.search(rows, 30)
    assert not np.isin(ids, GONE).any()
    _, of_few = index.search(rows, 30, where=[0, 3, 4, 5])
    assert {tuple(sorted(line)) for line in of_few[:, :2].tolist()} == {(4, 5)}
    assert (of_few[:, 2:] == -1).all()


def test_who_opened_it_before_sees_it_as_it_was(path):
    before = gradindex.load(path, digits_job())
    answer = found(before)
    other = gradindex.load(path, digits_job())
    other.remove(answer[0, :3])
    np.testing.assert_array_equal(found(before), answer)
    assert not np.isin(found(other), answer[0, :3]).any()
    assert not np.isin(found(gradindex.load(path, digits_job())), answer[0, :3]).any()


def test_the_rest_of_the_index_knows(path):
    index = gradindex.load(path, digits_job())
    loudest = index.self_influence(3)[1]
    index.remove(loudest)
    assert not np.isin(index.self_influence(20)[1], loudest).any()
    audit = index.verify(queries=ROWS, k=3)
    assert audit.rows == audit.queries == ROWS - 3
    assert audit.recall == 1
    index.check()
    assert str(gradindex.repair(path)) == "Nothing was damaged."
    assert Store.open(path).alive.sum() == ROWS - 3


def test_removing_twice_counts_once(path):
    store = Store.open(path)
    assert store.remove([4, 4, 7]) == 2
    assert store.remove([7, 9]) == 1
    assert store.remove([]) == 0
    assert sorted(p.name for p in (path / "changes").iterdir()) == ["000001.json", "000002.json", "head.json"]
    assert np.flatnonzero(~Store.open(path).alive).tolist() == [4, 7, 9]


def test_what_cannot_be_removed(path):
    store = Store.open(path)
    with pytest.raises(IndexError, match="out of range"):
        store.remove([ROWS])
    with pytest.raises(TypeError, match="Expected ids"):
        store.remove([0.5])
    with pytest.raises(ValueError, match="All 240 samples would be removed"):
        store.remove(np.arange(ROWS))
    assert store.alive is None


def test_many_at_once_lose_nothing(path):
    """Eight threads publish lists with the same numbers; losers take the next."""
    parts = np.arange(200).reshape(8, 25)
    threads = [threading.Thread(target=Store.open(path).remove, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.flatnonzero(~Store.open(path).alive).tolist() == list(range(200))


def test_lists_of_many_files(path, monkeypatch):
    monkeypatch.setattr(stores, "_IDS_PER_CHANGE", 10)
    Store.open(path).remove(np.arange(35))
    assert len(list((path / "changes").iterdir())) == 4 + 1
    assert np.flatnonzero(~Store.open(path).alive).tolist() == list(range(35))


@pytest.mark.parametrize(
    "damage", ["first missing", "last missing", "edited", "swapped", "another store's", "unknown id"]
)
def test_damage_is_refused(path, damage, tmp_path):
    store = Store.open(path)
    store.remove([3])
    store.remove([4])
    first, second = (changes.file(path, number) for number in (1, 2))
    if damage == "first missing":
        first.unlink()
    elif damage == "last missing":
        second.unlink()
    elif damage == "edited":
        first.write_text(first.read_text().replace("3", "5", 1))
    elif damage == "swapped":
        a, b = first.read_text(), second.read_text()
        first.write_text(b), second.write_text(a)
    elif damage == "another store's":
        other = gradindex.build(digits_job(), tmp_path / "other", seed=1).store
        other.remove([3])
        shutil.copy(changes.file(other.path, 1), first)
    else:
        saved = json.loads(second.read_text())
        saved.pop("seal")
        second.unlink()
        changes.publish(second, {**saved, "ids": [ROWS + 5]})
    for reader in (Store.open, gradindex.load, gradindex.repair):
        with pytest.raises(DamagedIndexError, match="changes"):
            reader(path)


def test_the_command(path, capsys):
    from gradindex.cli.app import run

    assert run(["remove", str(path), "--ids", "3,14"]) == 0
    assert "Removed 2 samples." in capsys.readouterr().out
    assert np.flatnonzero(~Store.open(path).alive).tolist() == [3, 14]


def test_repair_removes_what_a_killed_removal_left(path):
    Store.open(path).remove([3])
    (path / "changes" / ".tmp-1234").write_text("{")
    Store.open(path).check()
    assert gradindex.repair(path).removed == (".tmp-1234",)
    assert Store.open(path).alive.sum() == ROWS - 1
