import re

import numpy as np
import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.compute import watch
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.store.manifest import publish
from tests.jobs import digits_job, other_model_job
from tests.test_builder import files


@pytest.fixture
def built(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", shard_rows=50, index="IVF4,SQ8")
    return tmp_path / "i", files(tmp_path / "i")


def flip(path, place=-2):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def only(path, pattern):
    (found,) = path.glob(pattern)
    return found


def test_a_whole_index_is_left_alone(built):
    path, before = built
    assert str(gradindex.repair(path)) == "Nothing was damaged."
    assert files(path) == before


@pytest.mark.parametrize("pattern", ["index/*.faiss", "index/index.json"])
def test_the_index_is_rebuilt_without_the_model(built, pattern):
    path, before = built
    flip(only(path, pattern), 20)
    done = gradindex.repair(path)
    assert done.index and not done.shards
    if pattern.endswith("faiss"):  # a lost manifest loses the choice of index, and 'auto' is taken
        assert files(path) == before
    gradindex.load(path).check()


@pytest.mark.parametrize("kind", ["sketch.npy", "norm.npy", "id.npy", "columns.parquet", "json"])
def test_only_damaged_shards_are_embedded_again(built, kind):
    path, before = built
    flip(only(path, f"shards/000002*.{kind}" if kind != "json" else "shards/000002.json"))
    with pytest.raises(ValueError, match=r"Shards 2 have to be embedded again, which needs the job"):
        gradindex.repair(path)
    with pytest.raises(MismatchError, match="has other values"):
        gradindex.repair(path, other_model_job())
    done = gradindex.repair(path, digits_job())
    assert done.shards == ("2",) and not done.index
    assert files(path) == before


def test_leftovers_and_strangers_are_named_then_removed(built):
    path, before = built
    stranger = path / "shards" / "000009.abc.sketch.npy"
    stranger.write_bytes(b"x")
    (path / "shards" / ".tmp-0123").write_bytes(b"x")
    with pytest.raises(DamagedIndexError, match=re.escape("000009.abc.sketch.npy belongs to no manifest")):
        gradindex.load(path).check()
    assert run(["info", str(path), "--check"]) == 1
    assert gradindex.repair(path).removed == (".tmp-0123", stranger.name)
    assert files(path) == before
    (path / "index" / "old.faiss").write_bytes(b"x")
    with pytest.raises(DamagedIndexError, match=re.escape("old.faiss belongs to no manifest")):
        gradindex.load(path).check()
    assert run(["repair", str(path)]) == 0
    assert files(path) == before


def test_a_damaged_header_or_no_index(built, tmp_path):
    path, _ = built
    flip(path / "store.json", 30)
    with pytest.raises(DamagedIndexError, match=r"store\.json is damaged"):
        gradindex.repair(path)
    with pytest.raises(FileNotFoundError, match=r"holds no gradindex index .* Next: gradindex build"):
        gradindex.repair(tmp_path / "nowhere")


def test_a_flipped_bit_in_a_row_is_noticed_when_the_row_is_read(built):
    path, _ = built
    flip(only(path, "shards/000002*.sketch.npy"))
    store = gradindex.load(path).store
    store.gather(np.array([0, 101]))
    with pytest.raises(DamagedIndexError, match=r"000002.*sketch\.npy is damaged: rows from 48 on"):
        store.gather(np.array([0, 149]))
    with pytest.raises(DamagedIndexError, match="fail their checksum"):
        list(store.blocks())


def test_a_continued_build_keeps_batches_threads_and_versions(tmp_path, monkeypatch):
    import torch

    want = gradindex.build(digits_job(), tmp_path / "whole", shard_rows=50, batch_size=7).store.path
    with monkeypatch.context() as patch:
        patch.setattr("gradindex.ann.build.build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gradindex.build(digits_job(), tmp_path / "i", shard_rows=50, batch_size=7)
    (tmp_path / "i" / "shards" / "000001.json").unlink()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        gradindex.build(digits_job(), tmp_path / "i")  # neither sizes nor threads are those of the first call
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert files(tmp_path / "i") == files(want)
    (tmp_path / "i" / "shards" / "000001.json").unlink()
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(MismatchError, match=r"begun with torch .*, not 9\.9\. Install those versions"):
        gradindex.build(digits_job(), tmp_path / "i")


def test_what_lies_beside_the_records_of_the_watch_is_removed(built):
    path, before = built
    (path / "watch" / ".tmp-0123456789abcdef").write_bytes(b"half a rec")
    (path / "watch" / "000099.json").write_text("{}")
    assert set(gradindex.repair(path).removed) == {".tmp-0123456789abcdef", "000099.json"}
    assert files(path) == before


@pytest.mark.parametrize("record", ["", "{", '{"rows": 3}', "sealed"])
def test_a_torn_record_of_the_watch_counts_as_not_compared(built, record):
    path, _ = built
    for one in (path / "watch").glob("*.json"):
        if record == "sealed":
            publish(one, {"rows": "many"}, replace=True)
        else:
            one.write_text(record)
    index = gradindex.load(path, digits_job())
    assert watch.of_store(index.store) == watch.Compared()
    found = index.explain(ids=[0, 7], k=3)
    assert found.meta["params"]["compared"]["rows"] == 64  # compared now
    assert found.exact.all()
    if record == "sealed":
        index.check()
        return
    with pytest.raises(DamagedIndexError, match=r"watch/000000\.json is damaged"):
        index.check()
    assert len(gradindex.repair(path).removed) == len(index.store.shards)
    index.check()


def test_a_file_beside_the_records_of_the_watch_is_found(built):
    path, _ = built
    (path / "watch" / "000099.json").write_text("{}")
    with pytest.raises(DamagedIndexError, match=r"000099\.json belongs to no manifest"):
        gradindex.load(path).check()
