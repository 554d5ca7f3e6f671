"""An index on an object store is the one on the local disk, file for file."""

import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.store import Store, cache, location, remote
from gradindex.store.location import locate
from gradindex.store.remote import RemotePath
from tests import programs
from tests.jobs import ROWS, digits, digits_job, longer_job, other_model_job
from tests.store.remote import s3  # noqa: F401
from tests.test_builder import files

QUERIES = [1, 5, 8]
ROOT = Path(__file__).parents[2]


def build(out, **options):
    return gradindex.build(digits_job(), out, shard_rows=50, index="IVF4,SQ8", **options)


def keys(url):
    """Return every file's bytes by its path below `url`."""
    root = locate(url)
    return {Path(key).relative_to(root.key): root.fs.cat_file(key) for key in root.fs.find(root.key)}


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return build(tmp_path_factory.mktemp("disk") / "i").store.path


@pytest.fixture
def url(s3, disk, request):  # noqa: F811
    """Return the URL of a finished index."""
    out = f"{s3}/{re.sub('[^a-z0-9_]', '-', request.node.name)}/i"
    root = locate(out)
    for name, data in files(disk).items():
        root.fs.pipe_file(f"{root.key}/{name}", data)
    return out


def answer(index):
    found = index.explain(ids=QUERIES, k=10)
    return found.scores, found.ordered_indices, found.opponent_indices


def test_a_build_writes_the_same_files(s3, disk):  # noqa: F811
    index = build(f"{s3}/built")
    assert keys(f"{s3}/built") == files(disk)
    assert str(index.store.path) == f"{s3}/built"
    for path in (f"{s3}/built", f"{s3}/built/"):
        for got, want in zip(
            answer(gradindex.load(path, digits_job())), answer(gradindex.load(disk, digits_job())), strict=True
        ):
            np.testing.assert_array_equal(got, want)
    gradindex.load(f"{s3}/built").check()


def test_a_build_that_was_stopped_is_continued(s3, disk, monkeypatch):  # noqa: F811
    out, write, written = f"{s3}/stopped", Store.write, []

    def stopped(store, number, rows):
        if number == 2:
            raise KeyboardInterrupt
        write(store, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(out)
    with pytest.raises(DamagedIndexError, match="3 of 5 shards are missing"):
        gradindex.load(out)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda store, number, rows: written.append(number) or write(store, number, rows))
        build(out)
    assert written == [2, 3, 4]
    assert keys(out) == files(disk)


def test_what_is_there_is_not_touched(s3, url, disk):  # noqa: F811
    with pytest.raises(IndexExistsError, match="already holds an index of 240 samples"):
        build(url)
    with pytest.raises(MismatchError, match="has other values"):
        gradindex.build(other_model_job(), url)
    with pytest.raises(ValueError, match="cannot be replaced: object stores rename nothing"):
        build(url, overwrite=True)
    strangers = locate(f"{s3}/strangers")
    location.create(strangers / "thesis.tex", b"x")
    with pytest.raises(IndexExistsError, match="not empty and holds no gradindex store"):
        build(str(strangers))
    with pytest.raises(FileNotFoundError, match="holds no gradindex index"):
        gradindex.load(f"{s3}/nowhere")
    assert keys(url) == files(disk)


def test_removal_repair_and_checks(url, disk):
    before = gradindex.load(url, digits_job())
    want = answer(before)
    first = want[1][0, :3]
    gradindex.load(url, digits_job()).remove(first)
    np.testing.assert_array_equal(answer(before)[1], want[1])
    assert not np.isin(answer(gradindex.load(url, digits_job()))[1], first).any()
    root = locate(url)
    (shard,) = root.fs.glob(f"{root.key}/shards/000001.*.sketch.npy")
    (saved,) = root.fs.glob(f"{root.key}/index/*.faiss")
    for key in (shard, saved):
        root.fs.pipe_file(key, root.fs.cat_file(key)[:-2] + b"xy")
    location.replace(root / "shards" / "000009.abc.sketch.npy", b"x")
    location.replace(root / "shards" / "mine.npy", b"x")
    with pytest.raises(ValueError, match=r"mine\.npy does not belong to the index, and may be yours"):
        gradindex.repair(url, digits_job())
    location.unlink(root / "shards" / "mine.npy")
    with pytest.raises(DamagedIndexError, match=r"sketch\.npy is damaged"):
        gradindex.load(url).check()
    done = gradindex.repair(url, digits_job())
    assert (done.shards, done.index) == (("1",), True)
    assert "000009.abc.sketch.npy" in done.removed
    gradindex.load(url).check()
    missing = {name for name in keys(url) if name not in files(disk)}
    assert {name: data for name, data in keys(url).items() if name not in missing} == files(disk)


def test_what_is_added_removed_and_compacted(url, disk, tmp_path):
    """The same changes of an index in a bucket and of one on the disk leave the same files and answers."""
    here = shutil.copytree(disk, tmp_path / "i")
    more = tuple(part[ROWS:] for part in digits(ROWS + 20))
    before = gradindex.load(url, digits_job())
    was = answer(before)
    pair = [gradindex.load(path, digits_job()) for path in (url, here)]

    def same():
        assert keys(url) == files(here)
        for there in (pair[0], gradindex.load(url, longer_job(ROWS + 20))):
            for got, want in zip(answer(there), answer(pair[1]), strict=True):
                np.testing.assert_array_equal(got, want)

    for index in pair:
        np.testing.assert_array_equal(index.add(more), np.arange(ROWS, ROWS + 20))
    same()
    for index in pair:
        assert index.remove([3, 14, ROWS + 1]) == 3
    same()
    for index in pair:
        assert index.compact() == 3
    same()
    assert len(pair[0]) == ROWS + 17
    pair[0].check()
    for got, want in zip(answer(before), was, strict=True):  # opened before, it sees what was there
        np.testing.assert_array_equal(got, want)
    assert str(gradindex.repair(url)) == "Nothing was damaged."


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_stopped_change_goes_on(url, monkeypatch, step):
    """Stopped before one of its writes, an addition or a compaction leaves the old state, and then goes on."""
    writes = [(remote, "create"), (location, "move")]
    job = longer_job(ROWS + 20)

    def stopped(change):
        left = [step]

        def counted(real):
            def write(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return real(*args, **options)

            return write

        with monkeypatch.context() as patch:
            for module, name in writes:
                patch.setattr(module, name, counted(getattr(module, name)))
            with pytest.raises(KeyboardInterrupt):
                change()
        rows = len(gradindex.load(url))
        change()
        return rows

    assert stopped(lambda: gradindex.add(url, job)) == ROWS
    gradindex.load(url, job).remove([3])
    assert stopped(lambda: gradindex.compact(url)) == ROWS + 20
    index = gradindex.load(url, job)
    assert len(index) == ROWS + 19 and str(gradindex.repair(url)) == "Nothing was damaged."
    index.check()
    assert not np.isin(3, answer(index)[1])


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("*.sketch.npy", "flipped"),
        ("*.norm.npy", "truncated"),
        ("*.columns.parquet", "missing"),
        ("*.faiss", "flipped"),
    ],
)
def test_damage_is_noticed_before_anything_is_read(url, kind, damage, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path))
    root = locate(url)
    key = root.fs.glob(f"{root.key}/*/{kind}")[0]
    data = root.fs.cat_file(key)
    if damage == "missing":
        root.fs.rm_file(key)
    else:
        root.fs.pipe_file(key, data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedIndexError, match=Path(key).name):
        gradindex.load(url)


def test_the_commands(s3, url, capsys):  # noqa: F811
    out = f"{s3}/command"
    assert run(["build", "tests.jobs:digits_job", out]) == 0
    assert run(["info", url, "--check"]) == 0
    assert run(["explain", out, "tests.jobs:digits_job", "--ids", "3", "-k", "2"]) == 0
    assert run(["remove", url, "--ids", "3,14"]) == 0
    assert run(["repair", url]) == 0
    assert run(["verify", out, "tests.jobs:digits_job", "--queries", "5"]) == 0
    said = capsys.readouterr().out
    assert "Removed 2 samples." in said and "every file matches its sha256" in " ".join(said.split())
    assert Store.open(url).alive.sum() == ROWS - 2


def test_of_many_creators_one_succeeds(s3):  # noqa: F811
    """Eight threads create the same 40 files, each with contents of its own."""
    root, won, start = locate(f"{s3}/race"), [], threading.Barrier(8)

    def race(me):
        for number in range(40):
            start.wait()
            try:
                location.create(root / f"{number}", bytes([me]))
                won.append((number, me))
            except FileExistsError:
                pass

    threads = [threading.Thread(target=race, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in won) == list(range(40))
    assert all((root / f"{number}").read_bytes() == bytes([me]) for number, me in won)


def test_a_file_system_that_overwrites_is_refused(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, value, mode: self.store.update({path: value}))
    with pytest.raises(OSError, match="overwrites where a file should only be created if it is absent"):
        location.create(locate("memory://careless/a"), b"x")


BUILD = """
import contextlib, sys
from gradindex.errors import IndexExistsError
from tests.store.test_remote import build
with contextlib.suppress(IndexExistsError):
    build(sys.argv[1])
"""


def test_two_builders_share_the_shards(s3, disk):  # noqa: F811
    builders = [programs.start(["-c", BUILD, f"{s3}/two"], cwd=ROOT) for _ in range(2)]
    for one in builders:
        done = one.finish()
        assert done.returncode == 0, done.stderr
    assert keys(f"{s3}/two") == files(disk)


def test_the_cache_is_bounded_and_used(url, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path / "c"))
    gradindex.load(url)
    held = {path: path.stat().st_size for path in (tmp_path / "c").iterdir()}
    monkeypatch.setattr(cache, "_download", lambda *_: pytest.fail("downloaded again"))
    index = gradindex.load(url)
    monkeypatch.undo()
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("GRADINDEX_CACHE_BYTES", "1")
    cache._make_room(tmp_path / "c", 1)
    assert len(list((tmp_path / "c").iterdir())) == len(held)  # all were asked for just now
    later = time.time() + 3600
    monkeypatch.setattr(cache.time, "time", lambda: later)
    cache._make_room(tmp_path / "c", 1)
    assert not list((tmp_path / "c").iterdir())
    assert len(list(index.store.blocks())) == 5  # what is mapped stays readable


def test_memory_works_too(disk):
    index = build("memory://i")
    assert len(gradindex.load("memory://i")) == len(index) == ROWS
    assert keys("memory://i") == files(disk)
    locate("memory://i").fs.store.clear()


def test_paths_and_urls(tmp_path):
    assert locate(f"file://{tmp_path}") == locate(str(tmp_path)) == locate(tmp_path) == tmp_path
    bucket = locate("s3://bucket/a/b/")
    assert (str(bucket), bucket.name, str(bucket.parent)) == ("s3://bucket/a/b", "b", "s3://bucket/a")
    assert isinstance(bucket / "c", RemotePath)
    with pytest.raises(TypeError, match="s3://bucket/a/b is not on this machine"):
        shutil.copy(bucket, tmp_path)


def test_missing_packages_say_what_to_type(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"pip install 'gradindex\[remote\]'"):
        gradindex.load("s3://bucket/i")
