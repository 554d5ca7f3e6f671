"""Machines as they are: what the system refuses is said as it is, and costs no more than it has to."""

import errno
import os
import resource
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import gradindex
from gradindex.errors import DamagedIndexError, IndexExistsError
from gradindex.store import Store, cache, changes, disk, hashed, location, replace
from tests.jobs import ROWS, digits_job, other_model_job

HOW = {"shard_rows": 100, "sketch": gradindex.CountSketch(32), "progress": False}


@pytest.fixture
def path(tmp_path):
    return gradindex.build(digits_job(), tmp_path / "i", **HOW).store.path


def files(path):
    return {one: one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def refuse(number):
    def act(source, target, *_):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    return act


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_hard_links(tmp_path, monkeypatch, number):
    monkeypatch.setattr(disk, "link", refuse(number))
    location.create(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        location.create(tmp_path / "a", b"two")
    assert files(tmp_path) == {tmp_path / "a": b"one"}
    monkeypatch.setattr(disk, "rename_new", refuse(errno.EINVAL))
    with pytest.raises(OSError, match=r"neither hard links nor renaming.*'.*/b'"):
        location.create(tmp_path / "b", b"one")
    assert files(tmp_path) == {tmp_path / "a": b"one"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("kind", ["norm.npy", "sketch.npy", "columns.parquet", ".json", ".faiss"])
def test_errors_of_the_machine_are_no_damage(path, monkeypatch, number, kind):
    before, real = files(path), os.lstat
    victim = next(one for one in before if one.name.endswith(kind) and one.parent != path)

    def fail(self, *arguments, **options):
        if Path(self) == victim:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "lstat", fail)
    for work in (gradindex.load, gradindex.repair, lambda path: gradindex.repair(path, digits_job())):
        with pytest.raises(OSError) as caught:
            work(path)
        assert (caught.value.errno, caught.value.filename) == (number, str(victim))
    assert files(path) == before


def test_more_shards_than_descriptors(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rows = np.random.default_rng(0).normal(size=(300, 8))
    store = Store.from_arrays(rows, np.arange(300), np.ones(300), tmp_path / "i", shard_rows=2)
    gradindex.index_store(store)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        index = gradindex.load(tmp_path / "i")
        index.check()
        assert (index.search(rows[:5], 1)[1][:, 0] == np.arange(5)).all()
        assert str(gradindex.repair(tmp_path / "i")) == "Nothing was damaged."
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_paths_stay_where_they_were_opened(path, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    other = gradindex.build(digits_job(), tmp_path / "elsewhere" / "i", **HOW)
    monkeypatch.chdir(tmp_path)
    index = gradindex.load("i")
    monkeypatch.chdir(tmp_path / "elsewhere")
    index.remove([3])
    assert len(list(changes.history(path, index.store.header))) == 2
    assert len(list(changes.history(other.store.path, other.store.header))) == 1


def test_ids_that_do_not_fit_are_refused(tmp_path):
    rows = np.eye(3)
    ids = np.array([5, 2**63, 7], np.uint64)
    with pytest.raises(ValueError, match=r"ids must be less than 2\*\*63, got 9223372036854775808"):
        Store.from_arrays(rows, ids, np.ones(3), tmp_path / "i")
    store = Store.from_arrays(rows, np.array([5, 2**63 - 1, 7], np.uint64), np.ones(3), tmp_path / "i")
    with pytest.raises(IndexError, match="out of range"):
        store.remove(np.array([2**64 - 1], np.uint64))
    assert store.remove(np.array([2**63 - 1], np.uint64)) == 1
    assert len(Store.open(tmp_path / "i")) == 3


def test_a_change_that_no_reader_accepts_is_dropped_by_repair(path):
    index = gradindex.load(path)
    index.remove([3])
    state = index.store.header.seal, Store.open(path).state.last
    bad = {"store": state[0], "number": 2, "before": state[1], "kind": "remove", "ids": [4, -9]}
    changes.publish(changes.file(path, 2), bad)  # as earlier versions did
    with pytest.raises(DamagedIndexError, match="which are no ids"):
        gradindex.load(path)
    assert gradindex.repair(path).removed == ("changes/000002.json",)
    again = gradindex.load(path)
    again.check()
    assert again.store.state.removed.tolist() == [3]
    with pytest.raises(OverflowError, match="no ids"):
        changes.commit(path, again.store.header, lambda state: {"kind": "remove", "ids": [-1]})
    assert not changes.file(path, 2).exists()


def test_tiny_and_huge_vectors_find_themselves(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 8)) * np.array([1e-310, 1e-200, 1e-30, 1, 1e30, 1e200])[:, None]
    index = gradindex.index_store(Store.from_arrays(rows, np.arange(6), np.ones(6), tmp_path / "i"))
    scores, ids = index.search(rows, 1)
    assert ids[:, 0].tolist() == list(range(6)) and scores.min() > 0.999
    with pytest.raises(ValueError, match=r"Expected norms of 0 or from 1\.2e-38"):
        Store.from_arrays(rows, np.arange(6), np.full(6, 1e-200), tmp_path / "j")


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_replacement_that_fails_is_taken_back(path, monkeypatch, exchanged):
    before = files(path)
    if not exchanged:
        monkeypatch.setattr(disk, "exchange", refuse(errno.ENOSYS))
        real = disk.rename
        at = iter([False, True, False])
        building = str(path.with_name(".i.building"))
        monkeypatch.setattr(
            disk, "rename", lambda a, b: refuse(errno.EIO)(a, b) if str(a) == building and next(at, 0) else real(a, b)
        )
        at = iter([True])
    else:
        monkeypatch.setattr(disk, "exchange", refuse(errno.EBUSY))
    with pytest.raises(OSError, match=r"cannot be renamed .* It is as it was; the new one is in .*\.i\.building"):
        gradindex.build(other_model_job(), path, overwrite=True, **HOW)
    assert files(path) == before
    monkeypatch.undo()
    gradindex.build(other_model_job(), path, overwrite=True, **HOW)
    assert files(path) != before and list(path.parent.iterdir()) == [path]


def test_a_replacement_without_exchange(path, monkeypatch):
    monkeypatch.setattr(disk, "exchange", refuse(errno.EINVAL))
    gradindex.build(other_model_job(), path, overwrite=True, **HOW)
    gradindex.load(path, other_model_job())
    assert list(path.parent.iterdir()) == [path]


def test_of_two_replacements_one_is_refused(path):
    inside, said = threading.Event(), []
    header = gradindex.load(path).store.header

    def other():
        inside.wait()
        try:
            gradindex.build(other_model_job(), path, overwrite=True, **HOW)
        except IndexExistsError as error:
            said.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(KeyboardInterrupt), replace.replacement(path, header):
        inside.set()
        thread.join()
        raise KeyboardInterrupt
    assert "Another process builds what is to replace this index" in said[0]
    assert len(gradindex.load(path)) == ROWS


def test_a_mount_point_is_not_replaced(path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda one: Path(one) == path)
    with pytest.raises(ValueError, match="it is a mount point"):
        gradindex.build(digits_job(), path, overwrite=True)


def test_results_that_cannot_be_kept_are_returned(path, monkeypatch, caplog):
    index = gradindex.load(path, digits_job())
    before = files(path)
    monkeypatch.setattr(
        disk, "write", lambda path, _: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only", str(path)))
    )
    assert index.verify(queries=5, k=3).queries == 5
    assert len(index.tune(queries=5, k=3).points) > 0
    assert caplog.text.count("could not be kept") == 2
    assert files(path) == before


def test_an_unknown_or_locked_home(monkeypatch, tmp_path):
    monkeypatch.delenv("GRADINDEX_CACHE", raising=False)

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    file = tmp_path / "large"
    file.write_bytes(b"x")
    monkeypatch.setattr(hashed, "LARGE", 0)
    assert not hashed.known(file, "0" * 64)
    hashed.note(file, "0" * 64, file.stat())
    with pytest.raises(OSError, match="Set GRADINDEX_CACHE"):
        cache.directory()
    cache._of_this_process.cache_clear()
    assert cache._folder().is_dir()


def test_a_full_cache_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path / "c"))
    place = location.locate("memory://full/a")
    location.replace(place, b"x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_download", full)
    with pytest.raises(OSError, match=r"has no room for memory://full/a \(1 bytes\). Set GRADINDEX_CACHE") as caught:
        cache.local(place, 1, "0" * 64)
    assert caught.value.errno == errno.ENOSPC


def test_loops_compile_where_nothing_can_be_cached(monkeypatch):
    from gradindex.compiled import jit

    def failing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def nowhere(function):
        raise RuntimeError("cannot cache function: no locator available")

    def double(x):
        return 2 * x

    monkeypatch.setattr(jit.FunctionCache, "save_overload", failing)
    monkeypatch.setattr(jit.FunctionCache, "load_overload", failing)
    assert jit.compiled()(double)(3) == 6
    monkeypatch.setattr(jit, "_Cache", nowhere)
    assert jit.compiled()(double)(4) == 8


def test_chained_urls(path, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "i.zip", "w") as file:
        for one in path.rglob("*"):
            file.write(one, Path("inner") / one.relative_to(path))
    url = f"zip://inner::file://{tmp_path / 'i.zip'}"
    rows = gradindex.load(path).store.gather(np.arange(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        index = gradindex.load(url)
        assert (index.search(rows, 1)[1][:, 0] == np.arange(5)).all()
        index.check()
