import errno
import os
import signal
import time
from pathlib import Path

import pytest

import gradindex
from gradindex.runtime.interrupts import explain_full_disk, stop_on_sigterm
from tests import programs
from tests.jobs import digits_job
from tests.test_builder import files

ROOT = Path(__file__).parents[1]
BUILD = """
import sys, time, resource, signal
sys.path.insert(0, {root!r})
import gradindex
from tests.jobs import digits, trained
from torch import nn

class Slow:
    x, y = digits()
    def __len__(self): return 240
    def __getitem__(self, i):
        time.sleep({pause})
        if i == 100:
            print("here", flush=True)
        return self.x[i], self.y[i]

model = trained()
{before}
job = gradindex.Job(model, nn.CrossEntropyLoss(), Slow())
gradindex.build(job, sys.argv[1], shard_rows=20, batch_size=8)
"""


def command(out, pause=0.0, before=""):
    return ["-c", BUILD.format(root=str(ROOT), pause=pause, before=before), str(out)]


def finish(out):
    build = programs.run(command(out))
    assert build.returncode == 0, build.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a build that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "i"
    finish(path)
    return files(path)


def test_sigterm_leaves_published_shards_and_no_temporary_file(tmp_path, whole):
    build = programs.start(command(tmp_path / "i", pause=0.01))
    for _ in range(6000):  # a minute
        if build.said[0]:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    os.kill(build.pid, signal.SIGTERM)
    done = build.finish(timeout=60)
    assert done.returncode == 143
    assert "published shards are kept" in done.stderr
    names = [path.name for path in (tmp_path / "i").rglob("*")]
    assert not [name for name in names if name.startswith(".tmp-")]
    assert len([name for name in names if name[0] == "0" and name.endswith(".json")]) >= 4
    finish(tmp_path / "i")
    assert files(tmp_path / "i") == whole


def test_a_full_disk_is_named_and_the_build_continues(tmp_path, whole):
    """A limit on the size of a file stands in for the disk: a write fails part of the way through."""
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))"
    build = programs.run(command(tmp_path / "i", before=limit))
    assert build.returncode == 1
    said = build.stderr
    assert "OSError" in said and "The disk is full (0 of 12 shards are published)" in said
    assert "run the same build again" in said
    assert not list((tmp_path / "i").rglob(".tmp-*"))
    finish(tmp_path / "i")
    assert files(tmp_path / "i") == whole


def test_faiss_on_a_full_disk_and_other_errors():
    with (
        pytest.raises(OSError, match=r"The disk is full \(3 of 3\)") as caught,
        explain_full_disk(lambda: "3 of 3"),
    ):
        raise RuntimeError("write error in x: 0 != 3 (No space left on device)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="disk on fire"), explain_full_disk(lambda: ""):
        raise OSError("disk on fire")


def test_a_programs_own_handler_is_left_alone():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # other tests may have left one, as Ray does
        with stop_on_sigterm():
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_two_builders_share_a_directory(tmp_path, whole):
    builders = [programs.start(command(tmp_path / "i", pause=0.002)) for _ in range(2)]
    for build in builders:
        done = build.finish()
        # The slower one may find the index finished when it starts.
        assert done.returncode == 0 or "already holds an index of 240" in done.stderr
    found = {name: data for name, data in files(tmp_path / "i").items() if not name.name.startswith(".tmp-")}
    assert found == whole
    assert len(gradindex.load(tmp_path / "i", digits_job())) == 240
