import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradindex
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from gradindex.store import Header, Rows, Store, manifest, side_files


def header(rows=25, shard_rows=10, dim=4, **changes):
    values = {
        "rows": rows,
        "shard_rows": shard_rows,
        "dim": dim,
        "sketch": {"kind": "countsketch", "dim": dim},
        "seed": 0,
        "batch_size": 8,
        "task": "classification",
        "backend": "torch",
        "parameters": [{"name": "w", "position": 0, "shape": [2, 2], "dtype": "float32"}],
        "state": [["w", "aa"]],
        "versions": {},
    }
    return Header(**{**values, **changes})


def fill(store, rng=None):
    rng = rng or np.random.default_rng(0)
    every = []
    for number in range(store.header.shards):
        start, stop = store.header.span(number)
        n = stop - start
        rows = Rows(
            rng.normal(size=(n, store.header.dim)).astype(np.float16),
            rng.random(n).astype(np.float32),
            np.arange(start, stop),
            {"loss": rng.random(n).astype(np.float32), "label": rng.integers(0, 3, n)},
        )
        store.write(number, rows)
        every.append(rows)
    return every


@pytest.fixture
def filled(tmp_path):
    store = Store.create(tmp_path / "s", header())
    return store, fill(store)


def test_reads_back_what_was_written(filled):
    store, written = filled
    found = Store.open(store.path)
    np.testing.assert_array_equal(found.norms, np.concatenate([r.norms for r in written]))
    np.testing.assert_array_equal(found.ids, np.arange(25))
    np.testing.assert_array_equal(found.columns["label"], np.concatenate([r.columns["label"] for r in written]))
    sketches = np.concatenate([r.sketches for r in written])
    starts, blocks = zip(*found.blocks(size=7), strict=True)
    np.testing.assert_array_equal(np.concatenate(blocks), sketches.astype(np.float32))
    assert starts == (0, 7, 10, 17, 20)
    np.testing.assert_array_equal(found.gather(np.array([24, 0, 9, 10])), sketches[[24, 0, 9, 10]])
    found.check()


def test_the_readers_in_format_md_reads_it(filled):
    store, written = filled
    text = (Path(gradindex.__file__).parent / "store" / "FORMAT.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    assert len(code.strip().splitlines()) <= 10
    names = {}
    exec(code, names)
    shards = list(names["read"](store.path))
    assert len(shards) == 3
    for (ids, sketches, norms), rows in zip(shards, written, strict=True):
        np.testing.assert_array_equal(ids, rows.ids)
        np.testing.assert_array_equal(sketches, rows.sketches)
        np.testing.assert_array_equal(norms, rows.norms)


def test_same_rows_give_the_same_bytes(tmp_path):
    stores = [Store.create(tmp_path / name, header()) for name in "ab"]
    for store in stores:
        fill(store)
    files = [{p.relative_to(s.path): p.read_bytes() for p in s.path.rglob("*") if p.is_file()} for s in stores]
    assert files[0] == files[1]
    assert not [name for name in files[0] if ".tmp" in str(name)]


def test_the_first_publisher_of_a_shard_wins(filled):
    store, written = filled
    before = (store.path / "shards" / "000000.json").read_bytes()
    other = Rows(written[0].sketches * 2, written[0].norms, written[0].ids, written[0].columns)
    store.write(0, other)
    assert (store.path / "shards" / "000000.json").read_bytes() == before
    np.testing.assert_array_equal(Store.open(store.path).shards[0].sketches, written[0].sketches)


def reseal(path, saved):
    """Write a manifest that only its contents give away."""
    saved.pop("seal", None)
    path.write_text(json.dumps({**saved, "seal": manifest.seal(saved)}))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def damage_extend(path):
    path.write_bytes(path.read_bytes() + b"x")


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def damage_delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_extend, damage_flip, damage_delete])
@pytest.mark.parametrize("kind", ["sketch.npy", "norm.npy", "id.npy", "columns.parquet"])
def test_damage_to_any_file_is_found_and_named(filled, damage, kind):
    store, _ = filled
    (path,) = (store.path / "shards").glob(f"000001.*.{kind}")
    damage(path)
    with pytest.raises(DamagedIndexError, match=re.escape(path.name)):
        Store.open(store.path).check()


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", "", ".hidden", "a\\b"])
def test_a_manifest_may_not_name_files_elsewhere(filled, name):
    store, _ = filled
    path = store.path / "shards" / "000000.json"
    saved = json.loads(path.read_text())
    saved["files"]["norm"]["name"] = name
    reseal(path, saved)
    with pytest.raises(DamagedIndexError, match="is not a plain file name"):
        Store.open(store.path).norms  # noqa: B018


def test_swapped_arrays_are_refused(filled):
    store, _ = filled
    path = store.path / "shards" / "000000.json"
    saved = json.loads(path.read_text())
    saved["files"]["norm"], saved["files"]["id"] = saved["files"]["id"], saved["files"]["norm"]
    reseal(path, saved)
    with pytest.raises(DamagedIndexError, match=r"expected the \.npy header of float32"):
        Store.open(store.path).norms  # noqa: B018


def test_pickles_are_refused(filled):
    store, _ = filled
    path = store.path / "shards" / "000000.json"
    saved = json.loads(path.read_text())
    bad = store.path / "shards" / "bad.npy"
    np.save(bad, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    saved["files"]["norm"] = vars(manifest.FileEntry("bad.npy", bad.stat().st_size, "0"))
    reseal(path, saved)
    with pytest.raises(DamagedIndexError, match=r"bad\.npy is damaged"):
        Store.open(store.path).norms  # noqa: B018


def test_every_changed_character_of_a_manifest_is_noticed(filled):
    store, _ = filled
    for path in (store.path / "store.json", store.path / "shards" / "000001.json"):
        good = path.read_text()
        for place, character in enumerate(good):
            if character.isalnum():
                path.write_text(good[:place] + ("0" if character != "0" else "1") + good[place + 1 :])
                with pytest.raises(DamagedIndexError, match=path.name):
                    Store.open(store.path)
        path.write_text(good)


def test_shards_keep_their_place_and_their_store(filled, tmp_path):
    store, _ = filled
    first, second = (store.path / "shards" / f"00000{n}.json" for n in range(2))
    before = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedIndexError, match=r"000000\.json is not the manifest of shard 0 of this store"):
        Store.open(store.path)
    first.write_bytes(before)
    other = Store.create(tmp_path / "other", header(seed=1))
    fill(other)
    second.write_bytes((other.path / "shards" / "000001.json").read_bytes())
    with pytest.raises(DamagedIndexError, match=r"000001\.json is not the manifest of shard 1 of this store"):
        Store.open(store.path)


def test_every_changed_byte_of_an_array_header_is_noticed(filled):
    store, _ = filled
    (path,) = (store.path / "shards").glob("000001.*.norm.npy")
    good = path.read_bytes()
    for place in range(128):
        path.write_bytes(good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
        with pytest.raises(DamagedIndexError, match=re.escape(path.name)):
            Store.open(store.path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_broken_json_is_refused(filled, text):
    store, _ = filled
    (store.path / "store.json").write_text(text)
    with pytest.raises(DamagedIndexError, match=r"store\.json is damaged"):
        Store.open(store.path)


def test_other_format_versions_are_refused(filled):
    store, _ = filled
    path = store.path / "store.json"
    reseal(path, {**json.loads(path.read_text()), "version": 2})
    with pytest.raises(DamagedIndexError, match="format version 2; this gradindex reads version 1"):
        Store.open(store.path)


def test_an_incomplete_store_says_how_to_continue(filled):
    store, _ = filled
    (store.path / "shards" / "000002.json").unlink()
    assert store.missing() == [2]
    with pytest.raises(DamagedIndexError, match=r"1 of 3 shards are missing.*Run the same build again"):
        Store.open(store.path)


def test_creating_over_the_same_store_continues_it(filled):
    store, _ = filled
    again = Store.create(store.path, header())
    assert again.missing() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": 26}, "rows is 25, not 26"),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"state": [["w", "bb"]]}, "parameter 'w' has other values"),
        ({"sketch": {"kind": "gaussian", "dim": 4}}, "sketch is"),
        ({"parameters": [{"name": "v", "position": 0, "shape": [4], "dtype": "float32"}]}, "parameter 'w' is missing"),
    ],
)
def test_creating_over_another_store_names_the_difference(filled, changes, said):
    store, _ = filled
    with pytest.raises(MismatchError, match=said):
        Store.create(store.path, header(**changes))


def test_names_alone_do_not_matter(filled):
    """Keras numbers the names it makes up: a rebuilt model has others, with the same weights."""
    store, _ = filled
    renamed = header(
        parameters=[{"name": "w_1", "position": 0, "shape": [2, 2], "dtype": "float32"}], state=[["w_1", "aa"]]
    )
    assert Store.create(store.path, renamed).missing() == []


def test_a_build_killed_before_its_header_was_there_is_taken_up(tmp_path, monkeypatch):
    def killed(*_, **__):
        (tmp_path / "s" / ".tmp-0123").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gradindex.store.store.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            Store.create(tmp_path / "s", header())
    fill(Store.create(tmp_path / "s", header()))
    assert len(Store.open(tmp_path / "s")) == 25


def test_strangers_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(IndexExistsError, match="not empty and holds no gradindex store"):
        Store.create(tmp_path, header())
    with pytest.raises(IndexExistsError, match="is a file"):
        Store.create(tmp_path / "thesis.tex", header())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_opening_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no gradindex index"):
        Store.open(tmp_path)


def test_which_ids_are_there(filled):
    store, _ = filled
    assert store.holds(np.array([24, -1, 0, 25, 2**40])).tolist() == [True, False, True, False, False]


def test_unknown_ids_are_refused(filled):
    store, _ = filled
    np.testing.assert_array_equal(store.rows_of(np.array([24, 3])), [24, 3])
    with pytest.raises(IndexError, match=r"Ids \[25, -1\] are out of range"):
        store.rows_of(np.array([25, 3, -1]))


def test_an_empty_header_is_refused():
    with pytest.raises(ValueError, match="rows must be a positive integer"):
        header(rows=0)


def test_links_and_pipes_are_not_followed(filled, tmp_path):
    store, _ = filled
    path = next((store.path / "shards").glob("000001.*.norm.npy"))
    data = path.read_bytes()
    (tmp_path / "elsewhere").write_bytes(data)
    for replace in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path), path.mkdir):
        path.unlink()
        replace()
        with pytest.raises(DamagedIndexError, match=r"norm\.npy is damaged: not a plain file"):
            Store.open(store.path)
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(data)
    header = store.path / "store.json"
    header.rename(tmp_path / "header")
    header.symlink_to(tmp_path / "header")
    with pytest.raises(DamagedIndexError, match=r"store\.json is damaged: not a plain file"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"rows": 1 << 47, "shard_rows": 1}, "more than 1048576 shards"),
        ({"rows": 1 << 60}, "rows must be a positive integer"),
        ({"rows": True}, "rows must be a positive integer"),
        ({"rows": float("nan")}, "rows must be a positive integer"),
        ({"dim": 1 << 40}, "sketch"),
        ({"rows": 1 << 40, "shard_rows": 1 << 39}, "expected 549755813888 rows, found 10"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_sizes_are_bounded_before_anything_is_allocated(filled, edit, said):
    """A header that was forged, its seal and those of the shards included."""
    store, _ = filled
    path = store.path / "store.json"
    reseal(path, {**json.loads(path.read_text()), **edit})
    seal = json.loads(path.read_text())["seal"]
    for shard in (store.path / "shards").glob("*.json"):
        reseal(shard, {**json.loads(shard.read_text()), "store": seal})
    with pytest.raises(DamagedIndexError, match=said):
        Store.open(store.path)


def test_arrays_of_assets_are_bounded_too(tmp_path):
    header = np.lib.format.header_data_from_array_1_0(np.empty(3))
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {**header, "shape": (1 << 50,)})
    side_files.write(tmp_path, "seal", "a", {"ids": np.arange(3)})
    saved = json.loads((tmp_path / "assets" / "a.json").read_text())
    entry = saved["files"]["ids"]
    (tmp_path / "assets" / entry["name"]).write_bytes(data.getvalue())
    entry |= {"bytes": len(data.getvalue()), "sha256": hashlib.sha256(data.getvalue()).hexdigest()}
    reseal(tmp_path / "assets" / "a.json", saved)
    with pytest.raises(DamagedIndexError, match="is damaged"):
        side_files.read(tmp_path, "seal", "a", {"ids"})


COUNTS_THREADS = """
import os, sys, gradindex
from gradindex.store import Store

store = Store.open(sys.argv[1])
before = os.listdir("/proc/self/task")
tables = [shard.table() for shard in store.shards]
assert all(len(table) for table in tables)
print(len(os.listdir("/proc/self/task")) - len(before))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_reading_columns_starts_no_thread_of_arrow(filled):
    """A thread of Arrow's that lets go of Python's bytes while Python ends aborts the process."""
    store, _ = filled
    done = subprocess.run(
        [sys.executable, "-c", COUNTS_THREADS, str(store.path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
