"""An object store that answers 500, times out after it did what it was asked, or lists what was there before."""

import contextlib
from typing import ClassVar

import numpy as np
import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

import gradindex
from gradindex.errors import DamagedIndexError, IndexExistsError
from gradindex.store import remote
from gradindex.store.location import exists, locate
from tests.jobs import ROWS, digits_job, longer_job

HOW = {"shard_rows": 100, "sketch": gradindex.CountSketch(32), "progress": False}
MORE, GONE = 20, [1, 2, ROWS + 3]
STATES = {ROWS: "old", ROWS + MORE: "added or removed", ROWS + MORE - 3: "compacted"}


class Faulty(MemoryFileSystem):
    """Memory that fails at the writes and reads whose numbers are in `at`."""

    protocol = "faulty"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    cachable = False
    at: ClassVar = frozenset()
    kind, asked = "", 0
    listed: ClassVar[dict] = {}

    @classmethod
    def set(cls, kind="", at=frozenset()):
        cls.kind, cls.at, cls.asked, cls.listed = kind, at, 0, {}

    @classmethod
    def empty(cls):
        cls.store, cls.pseudo_dirs = {}, [""]

    def _try(self, work):
        cls = type(self)
        cls.asked += 1
        fails = cls.asked in cls.at
        if fails and cls.kind == "500":
            raise OSError("Internal Server Error")
        found = work()
        if fails and cls.kind == "timeout":
            raise TimeoutError("the answer did not come")
        return found

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        return self._try(lambda: super(Faulty, self).pipe_file(path, value, mode=mode, **kwargs))

    def put_file(self, lpath, rpath, **kwargs):
        return self._try(lambda: super(Faulty, self).put_file(lpath, rpath, **kwargs))

    def cat_file(self, path, **kwargs):
        return self._try(lambda: super(Faulty, self).cat_file(path, **kwargs))

    def info(self, path, **kwargs):
        return self._try(lambda: super(Faulty, self).info(path, **kwargs))

    def rm_file(self, path):
        return self._try(lambda: super(Faulty, self).rm_file(path))

    def ls(self, path, detail=True, **kwargs):
        now = super().ls(path, detail=detail, **kwargs)
        if self.kind != "late":
            return now
        before = type(self).listed.get((path, detail), now)  # as it was when it was last asked for
        type(self).listed[path, detail] = now
        return before


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT", 0)
    monkeypatch.setattr(remote, "_exclusive", set())
    Faulty.empty()
    Faulty.set()


def act(url):
    with contextlib.suppress(IndexExistsError):
        gradindex.build(digits_job(), url, **HOW)
    index = gradindex.add(url, longer_job(ROWS + MORE), progress=False)
    removed = index.remove(GONE)
    gradindex.compact(url, progress=False)
    return removed


def contents():
    return {name: file.getvalue() for name, file in Faulty.store.items()}


def asked(url):
    """Return how many questions everything takes, and what it leaves."""
    assert act(url) == 3
    count, want = Faulty.asked, contents()
    Faulty.empty()
    return count, want


@pytest.mark.parametrize("kind", ["500", "timeout"])
def test_one_failure_is_not_seen(kind):
    count, want = asked("faulty://b/i")
    for at in np.unique(np.linspace(1, count, 25).astype(int)).tolist():
        Faulty.empty()
        remote._exclusive.clear()
        Faulty.set(kind, {at})
        assert act("faulty://b/i") == 3  # also where the removal itself was answered by a timeout
        assert contents() == want, at


@pytest.mark.parametrize("kind", ["500", "timeout"])
def test_a_store_that_stays_away_leaves_a_state_that_goes_on(kind):
    count, want = asked("faulty://b/i")
    for at in np.unique(np.linspace(1, count, 25).astype(int)).tolist():
        Faulty.empty()
        remote._exclusive.clear()
        Faulty.set(kind, range(at, 10 * count))
        # The last request looks whether there are whitened rows; only writes are carried out and then not answered.
        harmless = kind == "timeout" and at == count
        wanted = pytest.raises(OSError, match=r"Internal Server Error|the answer did not come")
        with contextlib.nullcontext() if harmless else wanted:
            act("faulty://b/i")
        Faulty.set()
        try:
            index = gradindex.load("faulty://b/i")
        except (FileNotFoundError, DamagedIndexError) as error:
            assert "missing" in str(error)
        else:
            assert len(index) in STATES
        act("faulty://b/i")
        assert {name: data for name, data in contents().items() if data != want.get(name)} == {}
        assert set(want) <= set(contents())
        gradindex.load("faulty://b/i")


def test_late_listings_delete_nothing_that_is_needed():
    _, want = asked("faulty://b/i")
    Faulty.set("late")
    assert act("faulty://b/i") == 3
    gradindex.repair("faulty://b/i")
    gradindex.load("faulty://b/i").check()
    Faulty.set()
    assert set(want) <= set(contents())
    gradindex.repair("faulty://b/i")
    gradindex.load("faulty://b/i").check()


def test_what_cannot_be_told_is_not_missing():
    gradindex.build(digits_job(), "faulty://b/i", **HOW)
    Faulty.set("500", range(1, 1000))
    for work in (gradindex.load, gradindex.repair, lambda url: exists(locate(url))):
        with pytest.raises(OSError, match="Internal Server Error"):
            work("faulty://b/i")
