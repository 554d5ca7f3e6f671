"""Builds on a two-node cluster: the bytes of the embedded build, whatever dies."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import gradindex
from gradindex.job import load_job
from tests.distributed.jobs import Trouble, job

OPTIONS = {"shard_rows": 20, "batch_size": 10, "index": "IVF4,SQ8"}


def files(path):
    found = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.name.startswith(".tmp-")}


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_killed_worker_and_a_lost_node_change_no_byte(nodes, tmp_path, caplog):
    gradindex.build(job(Trouble(tmp_path)), tmp_path / "here", **OPTIONS)

    def lose_a_node():
        until(lambda: len(list(tmp_path.glob("waits-*"))) >= 2)  # both workers are in the middle of a shard
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    engine = gradindex.Ray(address=nodes.address, workers=2)
    trouble = job(Trouble(tmp_path, dies=30, waits=150, owner=os.getpid()))
    there = gradindex.build(trouble, tmp_path / "there", engine=engine, **OPTIONS)
    thread.join()
    nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    assert (tmp_path / "died").exists()
    assert caplog.text.count("a worker was lost with shard") >= 2
    assert files(tmp_path / "there") == files(tmp_path / "here")
    there.check()
    assert there.summary.embedded == len(there) == 240
    assert there.explain(ids=[3], k=2).columns["name"][0, 0] == "digit 3"


WAITING = """
from pathlib import Path
from tests.distributed.jobs import Trouble, job

def waiting():
    return job(Trouble(Path(__file__).parent, waits=100))
"""


def test_a_killed_driver_is_started_again(nodes, tmp_path):
    (tmp_path / "made_here.py").write_text(WAITING)
    reference, out = f"{tmp_path}/made_here.py:waiting", tmp_path / "there"
    command = ["-m", "gradindex", "build", reference, str(out), "--shard-rows", "20", "--batch-size", "10"]
    command += ["--index", "IVF4,SQ8", "--engine", "ray", "--address", nodes.address, "--workers", "1"]
    driver = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: driver.poll() is not None or list(tmp_path.glob("waits-*")))
        assert driver.poll() is None, driver.stderr.read()
    finally:
        driver.kill()
        driver.communicate()
    published = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir() if path.suffix == ".json"}
    assert 1 <= len(published) <= 5
    (tmp_path / "go").touch()
    engine = gradindex.Ray(address=nodes.address, workers=1)
    index = gradindex.build(load_job(reference), out, engine=engine, **OPTIONS)
    assert index.summary.embedded == 240 - 20 * len(published)
    gradindex.build(job(Trouble(tmp_path)), tmp_path / "here", **OPTIONS)
    assert files(out) == files(tmp_path / "here")
    assert {name: (out / "shards" / name).stat().st_mtime_ns for name in published} == published


def test_three_failures_stop_the_build_with_the_shards_error(nodes, tmp_path):
    engine = gradindex.Ray(address=nodes.address, workers=1)
    with pytest.raises(OSError, match="disk on fire") as caught:
        gradindex.build(job(Trouble(tmp_path, fails=130)), tmp_path / "i", engine=engine, **OPTIONS)
    assert caught.value.__notes__ == ["Shard 6 failed 3 times; this is the last error."]
    index = gradindex.build(job(Trouble(tmp_path)), tmp_path / "i", **OPTIONS)  # continued without a cluster
    assert index.summary.embedded == 20


def test_sigterm_is_answered_as_before(nodes, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    engine = gradindex.Ray(address=nodes.address, workers=1)
    with gradindex.load(gradindex.build(job(Trouble(tmp_path)), tmp_path / "i").store.path, engine=engine):
        assert signal.getsignal(signal.SIGTERM) is before
