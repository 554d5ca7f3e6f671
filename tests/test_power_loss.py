"""After a loss of power there is the old index or the new one, or an unfinished build that continues.

The long form is `python benchmarks/faults.py --states 200000`.
"""

import logging
import shutil
import tempfile
from pathlib import Path

import pytest

from gradindex.store import disk, location
from tests.crashes import Recorder
from tests.power import replay

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path():
    """A folder in memory where there is room: thousands of trees of files are laid and removed."""
    room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=MEMORY if room else None) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("build", 8),
        ("build with landmarks", 20),
        ("replace", 4),
        ("add, remove, compact", 4),
        ("whiten", 4),
        ("whiten again", 4),
        ("calibrate", 6),
        ("calibrate again", 6),
        ("repair", 12),
        ("save", 4),
        ("report", None),
    ],
)
def test_every_state_is_one_that_was_asked_for(name, most, tmp_path):
    found = replay(name, tmp_path / "work", seed=5, most=most, go_on=0.04)
    assert not {what: times for what, times in found.items() if what.startswith("WRONG")}
    assert found["distinct"] > 8 and found["states"] == found["as one of the states before and after"]


def wrong(name, tmp_path, most=None):
    return sum(n for what, n in replay(name, tmp_path / "w", 1, most, 0).items() if what.startswith("WRONG"))


@pytest.mark.parametrize("kind", ["files", "directories"])
def test_flushes_that_are_left_out_are_noticed(kind, tmp_path, monkeypatch):
    real = Recorder._sync

    def sync(recorder, path):
        if path.is_dir() == (kind == "files"):
            real(recorder, path)

    monkeypatch.setattr(Recorder, "_sync", sync)
    assert wrong("report", tmp_path) > 0


def test_a_name_that_is_not_flushed_before_its_manifest_is_noticed(tmp_path, monkeypatch):
    def move(written, path):
        disk.sync(written)
        disk.rename(written, path)

    monkeypatch.setattr(location, "move", move)
    assert wrong("build with landmarks", tmp_path, 8) > 0


def test_a_manifest_before_its_files_is_noticed(tmp_path, monkeypatch):
    """The old index is deleted before the new one is in its place."""
    real = disk.exchange

    def exchange(new, place):
        location.unlink(place / "store.json")
        real(new, place)

    monkeypatch.setattr(disk, "exchange", exchange)
    assert wrong("replace", tmp_path, 3) > 0


def test_the_states_of_one_renaming(tmp_path):
    """What is right here was written down by hand."""
    root = tmp_path / "disk"
    root.mkdir()
    (root / "a").write_bytes(b"old")
    recorder = Recorder(root)
    with recorder.recording():
        disk.write(root / "b", [b"new"])
        disk.rename(root / "b", root / "a")
    import random

    last = [tree for _, tree in recorder.states(random.Random(0))]
    got = {frozenset(tree.items()) for tree in last}
    contents = [b"new", b"", b"n", b"n\0\0", b"\0\0\0"]
    want = [{"a": b"old"}, *({"a": b"old", "b": data} for data in contents)]  # lost; written
    want += [{"a": data} for data in contents]  # renamed
    want += [{"a": data, "b": data} for data in contents[:2]]  # both names
    assert got == {frozenset(tree.items()) for tree in want}


def test_what_changes_the_disk_goes_through_one_module():
    """Else a recording would not see it: names of functions that change directories stand in `disk` alone."""
    import ast
    from pathlib import Path

    import gradindex

    calls = {"rename", "replace", "unlink", "rmdir", "mkdir", "makedirs", "link", "write_text", "write_bytes", "touch"}
    owners = {
        "os",
        "shutil",
        "path",
        "part",
        "folder",
        "file",
        "cached",
        "out",
        "target",
        "parent",
        "directory",
        "place",
    }
    allowed = {"store/disk.py", "store/cache.py", "store/hashed.py", "lifecycle/measure.py"}
    package, found = Path(gradindex.__file__).parent, []
    for source in package.rglob("*.py"):
        if str(source.relative_to(package)) in allowed:
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls):
                continue
            owner = node.func.value
            name = getattr(owner, "id", None) or getattr(owner, "attr", None)
            if name in owners or isinstance(owner, ast.BinOp):
                found.append(f"{source.relative_to(package)} {name}.{node.func.attr}")
    assert found == ["store/location.py place.write_bytes"]  # into a pipe or a device
